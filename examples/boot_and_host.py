# SPDX-License-Identifier: GPL-2.0-or-later
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # A dom0 of one TiB, from Xen's builder to the end of its early boot, and the host around it
#
# This file is a script and, opened with jupytext, a notebook. It needs `xenpt[report]`.

# %%
import xenpt
from xenpt.capacity import GuestGroup, capacity
from xenpt.linux import Boot
from xenpt.occupancy import occupancy
from xenpt.pictures.heatmap import heatmap_picture

plan = xenpt.plan_dom0(xenpt.default_kernel(), nr_pages=xenpt.pages("1T"))
boot = Boot(xenpt.build(plan)).run()
boot

# %% [markdown]
# Which stage makes the hypercalls, and where does the time go?

# %%
boot.plot()

# %% [markdown]
# One stage alone: freeing the initial P->M list.

# %%
boot.cleanup.cost

# %%
boot.cleanup.cost.plot()

# %% [markdown]
# The page tables from the root to the list, before and after. The list of 2 GiB is two pages of
# 1 GiB in one L3 table.

# %%
tables = occupancy(boot)
assert (tables.freed_tables, tables.leaked_tables) == (1, 0)
heatmap_picture(tables)

# %% [markdown]
# A host of 12 TiB with five guests of 2 TiB: what is left for more?

# %%
guests = [GuestGroup(5, xenpt.pages("2T"))]
host = capacity(xenpt.Host(memory=xenpt.pages("12T")), guests=guests)
host

# %%
host.plot()
