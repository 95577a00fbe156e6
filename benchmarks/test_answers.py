# SPDX-License-Identifier: GPL-2.0-or-later
"""What users wait for: a plan of any size, a boot on extents, the sweep of the whole range."""

import pytest

from xenpt.domuplan import plan_domu
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import Boot
from xenpt.plan import plan_dom0
from xenpt.sweeps import sweep
from xenpt.units import pages, sizes
from xenpt.xen import build


@pytest.mark.benchmark(group="plan")
@pytest.mark.parametrize("planner", [plan_dom0, plan_domu], ids=["dom0", "toolstack"])
@pytest.mark.parametrize("size", ["1 GiB", "1 TiB", "64 TiB"])
def test_plan(benchmark, planner, size):
    plan = benchmark(planner, default_kernel(), nr_pages=pages(size))
    assert plan.p2m[1] - plan.p2m[0] == 8 * pages(size)
    benchmark.extra_info["nr_pt_frames"] = plan.nr_pt_frames


@pytest.mark.benchmark(group="boot")
@pytest.mark.parametrize("size", ["1 GiB", "1 TiB", "64 TiB"])
def test_boot_on_extents(benchmark, size):
    domain = build(plan_dom0(default_kernel(), nr_pages=pages(size)))
    boot = benchmark(lambda: Boot(domain).run())
    assert boot.verdict == "boots"
    benchmark.extra_info["cost"] = boot.cost.as_dict()


@pytest.mark.benchmark(group="sweep")
def test_sweep_from_1_gib_to_64_tib(benchmark):
    found = benchmark(sweep, nr_pages=sizes("1 GiB", "64 TiB"))
    assert len(found.rows) == 17
