# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.eras import era_of
from xenpt.errors import UsageError
from xenpt.inputs.config import Host
from xenpt.limits import guest_limits, host_limits, xen_frames
from xenpt.linux import SEED, V4_3, V6_1

TIB = 1 << 28  # pages


def passed_of_host(xen, tib, *, bigmem=False):
    host = Host(xen=xen, bigmem=bigmem)
    found = host_limits(host, era_of(xen), tib * TIB, tib * TIB)
    return {limit.limit: limit.value for limit in found if limit.passed}


def passed_of_guest(xen, pages, kind="hvm", rules=V6_1):
    found = guest_limits(pages, kind, era_of(xen), rules)
    return {limit.limit: limit.value for limit in found if limit.passed}


SUPPORT, FRAMES = "pages of RAM with security support", "frames that Xen uses"
SAVED = "pages of a PV guest that can be saved or migrated"


def test_support_md_ends_at_12_tib():
    assert passed_of_host("4.17", 12) == {}
    assert passed_of_host("4.17", 13) == {SUPPORT: 12 * TIB}
    assert passed_of_host("4.14", 12) == {SUPPORT: 8 * TIB}  # XSA-385
    assert SUPPORT not in passed_of_host("4.9", 12)  # no SUPPORT.md yet


def test_16_tib_without_bigmem_and_123_with():
    assert passed_of_host("4.20", 16) == {SUPPORT: 12 * TIB, FRAMES: (1 << 32) - 2}
    assert passed_of_host("4.20", 123, bigmem=True) == {SUPPORT: 12 * TIB}
    assert passed_of_host("4.20", 124, bigmem=True)[FRAMES] == 123 * TIB
    assert passed_of_host("4.2", 6)[FRAMES] == 5 * TIB


def test_xen_before_4_19_dies_of_ram_that_it_cannot_use():
    assert "frames that Xen boots with" in passed_of_host("4.18", 16)
    assert "frames that Xen boots with" not in passed_of_host("4.19", 16)
    assert "frames that Xen boots with" not in passed_of_host("4.2", 16)


def test_a_sparse_map_is_limited_by_where_it_ends():
    found = host_limits(Host(), era_of("4.17"), 2 * TIB, 20 * TIB)  # xen c5c45bcbd6
    assert FRAMES in {limit.limit for limit in found if limit.passed}


def test_bigmem_came_with_4_6():
    with pytest.raises(UsageError, match="no CONFIG_BIGMEM"):
        xen_frames(Host(xen="4.5", bigmem=True), era_of("4.5"))


def test_guests_of_any_kind():
    assert passed_of_guest("4.17", 8 * TIB) == {}
    assert passed_of_guest("4.17", 9 * TIB) == {"pages of a guest with security support": 8 * TIB}
    assert passed_of_guest("4.17", 16 * TIB)["pages of one domain"] == (1 << 32) - 1
    assert passed_of_guest("4.14", 9 * TIB) == {"pages of a guest in a bitmap of libxc": 8 * TIB}
    assert passed_of_guest("4.7", 3 * TIB) == {"pages of a guest that libxl can name": 2 * TIB}


def test_pv_guests_of_more_than_512_gib():
    uses = "pages of a PV guest that Linux uses"
    assert passed_of_guest("4.17", TIB // 2, "pv") == {}
    assert passed_of_guest("4.17", TIB, "pv") == {uses: TIB // 2}
    assert passed_of_guest("4.17", TIB // 2, "pv", SEED) == {uses: 500 << 18}
    assert passed_of_guest("4.17", TIB, "pv", V4_3) == {uses: TIB // 2}
    assert passed_of_guest("4.17", TIB) == {}


def test_save_and_dump_formats():
    assert passed_of_guest("4.9", TIB, "pv")[SAVED] == TIB - 1  # "just under 1 TB", e48e33e219
    assert SAVED not in passed_of_guest("4.10", 15 * TIB, "pv")
    assert SAVED in passed_of_guest("4.10", 16 * TIB, "pv")
    dumped = "pages of a PV guest of Linux 4.14 or later in xl dump-core"
    assert passed_of_guest("4.15", 1, "pv") == {dumped: 0}
    assert passed_of_guest("4.16", 1, "pv") == {}
    tree = "pages of a PV guest whose list the tools can read"
    assert passed_of_guest("4.6", TIB, "pv")[tree] == TIB // 2


def test_every_limit_names_its_source():
    limits = [
        *host_limits(Host(), era_of("4.17"), 1, 1),
        *guest_limits(1, "pv", era_of("4.17"), V6_1),
    ]
    assert all(limit.source and not limit.passed for limit in limits)
    assert set(limits[0].as_dict()) == {"limit", "value", "source"}
