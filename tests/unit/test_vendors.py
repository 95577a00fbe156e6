# SPDX-License-Identifier: GPL-2.0-or-later
"""What others state, against the examples that they give themselves."""

import pytest

from xenpt.capacity import DEFAULT_RULE
from xenpt.eras import era_of
from xenpt.inputs.config import parse_dom0_mem
from xenpt.vendors import DOM0_RULES, GUEST_RULES, KINDS, libxl_need

GUEST = {rule.name: rule.overhead_mib for rule in GUEST_RULES}
NEW, OLD = era_of("4.17"), era_of("4.16")
TIB_PAGES = 1 << 28


@pytest.mark.parametrize(
    "rule, gib, option",
    [
        # test_dom0_memory.py beside xcp/dom0_memory.py; the last from docs.citrix.com, 64-1024
        ("xenserver-6", 1, "752M,max:752M"),
        ("xenserver-6", 23, "752M,max:752M"),
        ("xenserver-6", 24, "2048M,max:2048M"),
        ("xenserver-6", 47, "2048M,max:2048M"),
        ("xenserver-6", 48, "3072M,max:3072M"),
        ("xenserver-6", 63, "3072M,max:3072M"),
        ("xenserver-6", 64, "4096M,max:4096M"),
        # 1 GiB plus 5 % of 16 GiB = 819.2 MiB; 8 GiB from 140 GiB on
        ("xenserver", 16, "1843M,max:1843M"),
        ("xenserver", 139, "8140M,max:8140M"),
        ("xenserver", 140, "8192M,max:8192M"),
        ("xenserver", 12288, "8192M,max:8192M"),
        ("xcp-ng", 64, "4096M,max:4096M"),
        ("xcp-ng", 128, "8192M,max:8192M"),
        # johanlouwers.blogspot.nl, April 2015: 543 MB of 2 GB, 1173 MB of 32 GB
        ("oracle-vm", 2, "543M"),
        ("oracle-vm", 32, "1173M"),
        ("suse-11", 1000, "2048M"),
        ("qubes", 16, "min:1024M,max:4096M"),
        ("xen", 16, None),
    ],
)
def test_dom0_mem_by_rule(rule, gib, option):
    assert DOM0_RULES[rule].dom0_mem(gib << 10) == option
    if option is not None:
        parse_dom0_mem(option)


def test_default_rule_is_the_first_of_all():
    assert next(iter(DOM0_RULES)) == DEFAULT_RULE


def test_xenserver_6_counts_what_xen_keeps_back():
    assert DOM0_RULES["xenserver-6"].dom0_mem((24 << 10) - 256) == "2048M,max:2048M"
    assert DOM0_RULES["xenserver-6"].dom0_mem((24 << 10) - 257) == "752M,max:752M"


@pytest.mark.parametrize(
    "mib, vcpus, predicted",  # "Predicted Overhead" of wiki.openstack.org/wiki/XenServer/Overhead
    [
        (256, 1, 6.49936), (512, 1, 8.49872), (2048, 1, 20.49488), (2048, 2, 21.99488),
        (4096, 2, 37.98976), (4096, 4, 40.98976), (15360, 4, 128.9616), (8192, 4, 72.97952),
    ],
)  # fmt: skip
def test_nova_rounds_its_prediction_up(mib, vcpus, predicted):
    assert GUEST["nova"](mib, vcpus, "hvm") == int(predicted) + 1


def test_xapi_by_hand():
    # 256 pages a vCPU and 2 pages a MiB: 2304 pages = 9 MiB of 1 GiB, one vCPU
    assert GUEST["xapi"](1024, 1, "hvm") == 9 + 2
    assert GUEST["xapi"](1024, 1, "pv") == 9 + 1
    assert GUEST["xapi"](1024, 1, "pvh") == 9 + 2 + 23 + 11
    assert GUEST["xapi"](1025, 1, "hvm") == 10 + 2  # 2306 pages


def test_libxl_takes_a_page_a_mib_since_4_17_and_two_before():
    # 2 TiB = 2097152 MiB; 1 MiB = 256 pages a vCPU
    assert libxl_need(2 * TIB_PAGES, "pvh", 1, NEW).pool == 2097152 + 256
    assert libxl_need(2 * TIB_PAGES, "hvm", 4, OLD).pool == 2 * 2097152 + 4 * 256


def test_pool_is_whole_mib_before_4_17():
    # 3 MiB: 256 + 2 * 3 = 262 pages, in MiB 2
    assert libxl_need(3 * 256, "hvm", 1, OLD).pool == 512
    assert libxl_need(3 * 256, "hvm", 1, NEW).pool == 259


def test_qubes_measured_no_pool_of_a_pv_guest_but_xl_asks_for_one():
    need = libxl_need(TIB_PAGES, "pv", 1, NEW)
    assert (need.pool, need.slack) == (0, 256)
    # 1 page a MiB, 1 MiB a vCPU, 1 MiB more: 1048576 + 256 + 256, all of it in steps of 2 MiB
    assert need.asked == TIB_PAGES + 1048576 + 512


@pytest.mark.parametrize("kind", KINDS)
def test_what_xl_asks_for_is_whole_2_mib_and_covers_what_it_takes(kind):
    for nr_pages in (256, 1000, 77777):
        need = libxl_need(nr_pages, kind, 3, NEW)
        assert need.asked % 512 == 0
        assert nr_pages + need.pool + need.slack <= need.asked


@pytest.mark.parametrize(
    "kind, mib, vcpus, taken",  # real Xen 4.17.7, tools/guest_own.py; see docs/model.md
    [
        ("pv", 512, 1, 23), ("pv", 512, 4, 33), ("pvh", 512, 1, 815), ("pvh", 2048, 1, 2351),
        ("pvh", 2048, 4, 3148),
    ],
)  # fmt: skip
def test_real_guests_take_their_pool_and_part_of_the_slack(kind, mib, vcpus, taken):
    need = libxl_need(mib * 256, kind, vcpus, NEW)
    assert need.pool < taken < need.pool + need.slack
    assert taken - need.pool < 80
