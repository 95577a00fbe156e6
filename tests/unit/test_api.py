# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that a user imports from xenpt."""

import subprocess
import sys

import pytest

import xenpt


@pytest.mark.parametrize("name", [name for name in xenpt.__all__ if name != "__version__"])
def test_every_public_name_exists_and_says_what_it_is(name):
    assert getattr(xenpt, name).__doc__
    assert name in dir(xenpt)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'xenpt' has no attribute 'planet'$"):
        xenpt.planet  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys, xenpt; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert [name for name in modules if name.startswith(("xenpt", "numpy"))] == ["xenpt"]


def test_from_a_kernel_to_the_cost_of_its_list():
    """Counts of SPEC B9 and F7 for 1 TiB."""
    from xenpt import linux

    host = xenpt.Host(memory="2 TiB", superpages="1G")
    plan = xenpt.plan_dom0(xenpt.default_kernel(), host, nr_pages=xenpt.pages("1 TiB"))
    domain = xenpt.build(plan)
    boot = linux.Boot(domain, rules=linux.MAINLINE)
    boot.run_to(linux.Stage.P2M_COPIED)
    assert [result.name for result in boot.results][-1] == "vmalloc_p2m_tree"
    freed = linux.free_initial_p2m(domain, rules=linux.MAINLINE)
    assert freed.cost.hypercalls == 524290
