# SPDX-License-Identifier: GPL-2.0-or-later
"""Budgets of hosts; the sizes are worked by hand in the comments."""

import pytest

from xenpt.capacity import GuestGroup, capacity, parse_guests
from xenpt.errors import UsageError
from xenpt.inputs.config import Host, Ram

GIB, TIB = 1 << 18, 1 << 28  # pages
FIVE = (GuestGroup(5, 2 * TIB),)


def rows(found):
    return {row.name: row.pages for row in found.rows}


def test_5_guests_of_2_tib_on_12_tib():
    found = capacity(Host(memory="12T"), guests=FIVE)
    assert rows(found) == {
        "frame_table": 96 * GIB,  # 32 B a page: 8 GiB a TiB
        "m2p": 24 * GIB,  # 8 B a page
        "xen": 943,  # of golden case m520g
        "dom0": 8 * GIB,  # XenServer: 1 GiB + 5 %, at most 8 GiB
        "guests": 10 * TIB,
        "pools": 5 * (2097152 + 256),  # a page for each MiB, 1 MiB for the vCPU
        "slack": 5 * 512,  # 2 MiB each
        "left": 492825937,
    }
    assert sum(row.pages for row in found.rows) == found.nr_pages == 12 * TIB
    assert found.fits
    assert found.beyond == []


def test_overhead_is_all_but_guests_and_what_is_left():
    found = capacity(Host(memory="12T"), guests=FIVE)
    assert found.overhead == 96 * GIB + 24 * GIB + 943 + 8 * GIB + 5 * (2097152 + 256 + 512)


def test_room_for_more_and_the_largest_that_fits():
    found = capacity(Host(memory="12T"), guests=FIVE)
    small = GuestGroup(1, TIB)
    assert found.room(FIVE[0]) == 0
    assert found.room(small) == 1
    largest = found.largest_guest(found.left, small)
    need = found.need(GuestGroup(1, largest))
    assert largest + need.pool + need.slack <= found.left
    over = found.need(GuestGroup(1, largest + 1))
    assert largest + 1 + over.pool + over.slack > found.left
    assert found.largest_guest(767, small) == 0  # 256 + 512 pages go before the first one
    assert found.largest_guest(769, small) == 1


def test_guests_that_do_not_fit_leave_less_than_nothing():
    found = capacity(Host(memory="12T"), guests=(GuestGroup(6, 2 * TIB),))
    assert not found.fits
    assert found.left < 0
    assert found.room(FIVE[0]) == 0
    assert sum(row.pages for row in found.rows) == 12 * TIB


def test_pools_before_xen_4_17_are_twice_as_large():
    found = capacity(Host(memory="12T", xen="4.16"), guests=FIVE)
    assert rows(found)["pools"] == 5 * (2 * 2097152 + 256)


def test_pv_guests_have_no_pool():
    found = capacity(Host(memory="12T"), guests=(GuestGroup(5, 2 * TIB, "pv"),))
    assert "pools" not in rows(found)
    assert rows(found)["slack"] == 5 * 256


def test_bigmem_has_frame_table_entries_of_48_bytes():
    assert rows(capacity(Host(memory="12T", bigmem=True)))["frame_table"] == 144 * GIB
    assert rows(capacity(Host(memory="20T", bigmem=True)))["frame_table"] == 240 * GIB


def test_ram_above_16_tib_is_ignored_without_bigmem():
    found = capacity(Host(memory="20T"))
    assert rows(found)["ignored"] == 4 * TIB + 2  # two frames mark the ends of lists
    assert rows(found)["frame_table"] == 128 * GIB
    assert "frames that Xen uses" in {limit["limit"] for limit in found.beyond}
    assert found.next_tib == {
        "ignored": TIB, "frame_table": 0, "m2p": 0, "xen": 0, "dom0": 0, "left": 0,
    }  # fmt: skip


def test_sparse_map_loses_the_node_above_16_tib():
    e820 = (  # four sockets of Granite Rapids, 512 GiB each (xen c5c45bcbd6)
        Ram(0, 0x80000000),
        Ram(0x100000000, 0x8080000000),
        Ram(0x63E80000000, 0x6BE80000000),
        Ram(0xC7E80000000, 0xCFE80000000),
        Ram(0x12BE80000000, 0x133E80000000),
    )
    found = capacity(Host(e820=e820))
    assert found.nr_pages == 2 * TIB
    assert rows(found)["ignored"] == 512 * GIB
    assert "ignored" not in rows(capacity(Host(e820=e820, bigmem=True)))


def test_one_more_tib():
    found = capacity(Host(memory="12T"), guests=FIVE)
    assert found.next_tib == {
        "frame_table": 8 * GIB, "m2p": 2 * GIB, "xen": 0, "dom0": 0, "guests": 0, "pools": 0,
        "slack": 0, "left": 1014 * GIB,
    }  # fmt: skip


def test_one_more_tib_behind_the_last_ram_of_a_map():
    e820 = (Ram(0, 3 << 30), Ram(3 << 30, 4 << 30, "reserved"), Ram(4 << 30, 65 << 30))
    found = capacity(Host(e820=(*e820, Ram(1 << 40, (1 << 40) + 4096, "reserved"))))
    assert sum(found.next_tib.values()) == TIB
    assert found.next_tib["frame_table"] == 8 * GIB
    # 5 % of 1 TiB more, and 1 GiB + 5 % of 64 GiB, are cut at 8 GiB
    assert found.next_tib["dom0"] == 8 * GIB - (1024 + 3276) * 256


def test_dom0_by_xens_own_option_or_rule():
    # 268435456 - 2097152 - 524288 - 943 are available: 265813073, a quarter of it 66453268
    assert rows(capacity(Host(memory="1T"), dom0_mem="1G+25%"))["dom0"] == 66453268 + GIB
    found = capacity(Host(memory="1T"), dom0_rule="xen")
    assert found.left == 32768  # 128 MiB are what Xen keeps back
    assert found.dom0.guest.dom0_mem is None
    assert rows(capacity(Host(memory="1T"), dom0_rule="qubes"))["dom0"] == 4 * GIB


def test_dom0_without_a_limit_keeps_struct_pages_for_ten_times_its_memory():
    limited = capacity(Host(memory="1T"), dom0_mem="8G,max:8G").inside
    free = capacity(Host(memory="1T"), dom0_mem="8G").inside
    sizes = [{row.name: row.pages for row in each.rows}["struct_pages"] for each in (limited, free)]
    assert sizes == [32768, 11 * 32768]  # 64 B a page of 8 GiB; of 8 + 80 GiB


def test_dom0_that_panics_does_not_fit():
    found = capacity(Host(memory="1T"), dom0_mem="32M")
    assert found.inside is None
    assert not found.fits
    assert found.dom0.panic == "Domain 0 allocation is too small for kernel image"


def test_host_without_room_for_xen():
    # 512 pages of M2P, 943 of Xen's own, 8 of frame table for each 4 MiB
    with pytest.raises(UsageError, match=r"4 MiB of RAM: Xen alone takes 5\.71 MiB"):
        capacity(Host(memory="4M"))


def test_kinds_of_one_guest():
    found = capacity(Host(memory="2T"))
    pv, pvh, hvm = found.kinds(GuestGroup(1, TIB // 2))
    assert (pv.kind, pv.need.pool, pvh.need.pool) == ("pv", 0, 524288 + 256)
    assert pvh.need == hvm.need
    assert pvh.inside is hvm.inside is None
    # SPEC G: 1 GiB of list in 262144 pages, and 512 + 1 + 1 tables of it; 4096 + 8 + 1 tables of
    # the vmemmap; 64 bytes a page
    rows_of_pv = {row.name: row.pages for row in pv.inside.rows}
    assert pv.inside.boot_pages == 262144 + 514
    assert rows_of_pv["vmemmap_tables"] == 4096 + 8 + 1
    assert rows_of_pv["struct_pages"] == 2097152
    assert pv.inside.pv_pages == sum(
        rows_of_pv[name] for name in ("direct_map_tables", "vmemmap_tables", "p2m_list")
    )


def test_as_dict_is_complete():
    data = capacity(Host(memory="12T"), guests=FIVE).as_dict()
    assert set(data) == {
        "fits", "nr_pages", "xen", "bigmem", "rows", "left", "dom0", "guests", "next_tib",
        "limits", "beyond",
    }  # fmt: skip
    assert all(set(row) == {"name", "text", "pages", "tag", "source"} for row in data["rows"])
    tags = {row["tag"] for row in data["rows"]}
    assert tags == {"counted", "measured", "rule", "given", "rest"}
    assert data["guests"][0]["rules"] == {"xapi": 39711, "nova": 16384}
    assert data["dom0"]["rule"]["name"] == "xenserver"


@pytest.mark.parametrize(
    "text, group",
    [
        ("5x2T", GuestGroup(5, 2 * TIB)),
        ("40 x 512GiB", GuestGroup(40, TIB // 2)),
        ("3*1.5G", GuestGroup(3, 3 * GIB // 2)),
        ("2T", GuestGroup(1, 2 * TIB)),
    ],
)
def test_guests_as_users_write_them(text, group):
    assert parse_guests(text, "pvh", 1) == group


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "expected something like 5x2T"),
        ("x2T", "expected something like 5x2T"),
        ("5x", "size '5x': expected something like 600G"),
        ("5x2", "unit missing"),
        ("0x2T", "at least one"),
        ("5x1B", "less than one page"),
    ],
)
def test_what_is_no_group_of_guests(text, reason):
    with pytest.raises(UsageError, match=reason):
        parse_guests(text, "pvh", 1)


def test_errors():
    with pytest.raises(UsageError, match="guest type 'kvm': expected pv, pvh, hvm"):
        GuestGroup(1, 1, "kvm")
    with pytest.raises(UsageError, match="one vCPU"):
        GuestGroup(1, 1, "pv", 0)
    with pytest.raises(UsageError, match="give the host's memory"):
        capacity(Host())
    with pytest.raises(UsageError, match="not both"):
        capacity(Host(memory="1T"), dom0_mem="1G", dom0_rule="xen")
    with pytest.raises(UsageError, match="rule 'vmware': expected xenserver"):
        capacity(Host(memory="1T"), dom0_rule="vmware")
