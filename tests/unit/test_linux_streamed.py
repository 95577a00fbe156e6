# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.errors import MappingError
from xenpt.inputs.kernel import default_kernel
from xenpt.linux.boot import Boot
from xenpt.linux.memblock import Regions
from xenpt.linux.stages import Stage
from xenpt.linux.streamed import pack_boot, stream_boot
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

GIB = 1 << 18


@pytest.fixture(scope="module")
def boot():
    """2 GiB and one page: a list with leaves of 2 MiB and of 4 KiB."""
    return Boot(build(plan_dom0(default_kernel(), nr_pages=2 * GIB + 1)))


def test_stream_meets_every_page_of_ram_and_every_read_only_frame(boot):
    found = stream_boot(boot, threads=2)
    state = Boot(boot.domain).run_to(Stage.INIT_MEM_MAPPING).state
    ram = Regions.of([(1, 0xA0), (0x100, 2 * GIB + 1)])  # less page 0 and the ISA range
    assert found.direct_map.ptes == ram.size
    outside = Regions.of(state.ro_frames) - ram
    assert found.direct_map.read_only == Regions.of(state.ro_frames).size - outside.size
    # The list: two leaves of 2 MiB, one 4 KiB page, and an entry for each of L3, L2, L1.
    assert found.list_mapping.ptes == 1
    assert found.list_mapping.entries == 2 + 1 + 3


def test_packed_tables_have_the_same_entries(boot):
    streamed, packed = stream_boot(boot), pack_boot(boot)
    for part in ("direct_map", "list_mapping"):
        by_window, at_once = getattr(streamed, part), getattr(packed, part)
        assert at_once.windows == 1
        for count in ("ptes", "changed", "read_only"):
            assert getattr(at_once, count) == getattr(by_window, count)


def test_the_list_is_read_only_in_the_direct_map(boot):
    state = Boot(boot.domain).run_to(Stage.INIT_MEM_MAPPING).state
    first, last = state.p2m_frames
    assert Regions.of([(first, last)]).size == boot.domain.plan.nr_p2m_frames
    assert not (Regions.of([(first, last)]) - Regions.of(state.ro_frames)).size


def test_a_flipped_bit_anywhere_in_the_direct_map_is_found(boot):
    for pfn in (5, 3 * 512 * 8, 2 * GIB):
        with pytest.raises(MappingError, match="do not hold what the extents say"):
            stream_boot(boot, flip=boot.rules.page_offset + (pfn << 12))
