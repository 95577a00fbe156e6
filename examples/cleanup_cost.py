# SPDX-License-Identifier: GPL-2.0-or-later
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # What does it cost to free the initial P->M list?
#
# A PV guest begins with a list of the machine frames of all its pages: 8 bytes for each page of
# 4 KiB, 2 GiB for each TiB. Linux copies it, and frees the first one with the page tables that map
# it. How does that grow with memory, and do large pages help?
#
# This file is a script and, opened with jupytext, a notebook. It needs `xenpt[report]`.

# %%
import xenpt

plan = xenpt.plan_dom0(xenpt.default_kernel(), nr_pages=xenpt.pages("600G"))
plan

# %% [markdown]
# Without the kernel's note INIT_P2M the list would lie in the initial mapping, which has to be one
# piece of host memory: too large a piece at this size.

# %%
plan.plot()

# %% [markdown]
# The same guest and its neighbours, with the list mapped by pages of 4 KiB, 2 MiB and 1 GiB.

# %%
sweep = xenpt.sweep(plan, nr_pages=xenpt.sizes("16 GiB", "16 TiB"), p2m_leaf=["4k", "2m", "1g"])
sweep

# %%
sweep.plot()

# %% [markdown]
# The walk over the page tables is 512 times shorter with large pages; the number of hypercalls is
# the same, for each frame of the list is made writable on its own. So the whole cost grows with
# memory to the power of one, whatever the pages are:

# %%
exponents = [round(one.exponents()["cleanup_hypercalls"], 2) for one in sweep.series]
assert exponents == [1.0, 1.0, 1.0]
exponents
