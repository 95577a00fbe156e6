# SPDX-License-Identifier: GPL-2.0-or-later
"""After a stage: what hypercalls and stores left under Xen's rules is what the stage says.

The one side is the machine of `Guest`, which knows only the calls and stores; the other the
extents of the new state. Equal are every word of every table, every type and every count.
"""

import numpy as np

from xenpt.abi import (
    LEVELS,
    PGC_ALLOCATED,
    PGT_COUNT_MASK,
    PGT_PINNED,
    PGT_TYPE_MASK,
    PGT_VALIDATED,
    XEN_SLOTS,
)
from xenpt.errors import MappingError
from xenpt.image import PageTableImage
from xenpt.linux.addressspace import address_space
from xenpt.linux.memblock import Regions
from xenpt.linux.state import BootState
from xenpt.xen.adopt import adopt
from xenpt.xen.frames import FrameTable, Words
from xenpt.xen.guest import Guest
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables, level_of


def compare(state: BootState, guest: Guest) -> int:
    """Compare both sides; return the 64-bit words of page tables that were equal.

    :raises MappingError: they differ; the first difference is named
    """
    image = address_space(state).image(guest.p2m)
    differing = _words(image, guest) + _frames(image, state, guest)
    if differing:
        more = f" (and {len(differing) - 1} more differences)" if len(differing) > 1 else ""
        raise MappingError(f"checked mode: {differing[0]}{more}")
    return image.pages.size - int((image.level == LEVELS).sum()) * len(XEN_SLOTS)


def _words(image: PageTableImage, guest: Guest) -> list[str]:
    found = []
    for i, mfn in enumerate(image.mfn.tolist()):
        left, right = guest.machine.tables.memory.words(mfn), image.pages[i]
        if np.array_equal(left, right):
            continue
        for slot in np.flatnonzero(left != right).tolist():
            if image.level[i] == LEVELS and slot in XEN_SLOTS:
                continue
            found.append(
                f"L{image.level[i]} table of {int(image.vaddr[i]):#018x}, slot {slot}: "
                f"{int(left[slot]):#018x} by the hypercalls, {int(right[slot]):#018x} by extents"
            )
    return found


def _frames(image: PageTableImage, state: BootState, guest: Guest) -> list[str]:
    """Frames whose types or counts are not those that the image's entries, pins and root imply."""
    expected = _implied(image, state, guest)
    actual = guest.machine.tables.frames
    both = zip(
        actual.states(0, actual.nr_frames), expected.states(0, actual.nr_frames), strict=True
    )
    found = []
    for (first, _, ours), (_, _, others) in both:
        one, other = np.broadcast_arrays(_comparable(ours), _comparable(others))
        for k in np.flatnonzero(np.any(one != other, axis=1)).tolist():
            words = [f"{int(word):#x}" for word in (*one[k], *other[k])]
            found.append(
                f"mfn {first + k:#x}: count_info {words[0]}, type_info {words[1]} by the "
                f"hypercalls, {words[2]}, {words[3]} by extents"
            )
    return found


def _comparable(pairs: Words) -> Words:
    """Without the type of a frame that has no type reference: what it was last is history."""
    out = pairs.copy()
    idle = out[:, 1] & np.uint64(PGT_COUNT_MASK) == 0
    out[idle, 1] = 0
    return out


def _implied(image: PageTableImage, state: BootState, guest: Guest) -> FrameTable:
    """References of the image's tables and of those that are pinned alone; of pins; of the root."""
    machine, frames = guest.machine, guest.fresh_frames()
    for start, end in _released(state):
        for pfn in range(start, end):
            count_info, x = frames.get(guest.mfn(pfn))
            frames.set(guest.mfn(pfn), (count_info & ~PGC_ALLOCATED) - 1, x)
    tables = PageTables(frames, Memory())
    tables.memory.put(image.mfn.tolist(), image.pages)
    mfns, levels = image.mfn.tolist(), image.level.tolist()
    pinned = {
        mfn: machine.tables.frames.get(mfn)[1]
        for mfn in machine.tables.memory.mfns()
        if machine.tables.frames.get(mfn)[1] & PGT_PINNED
    }
    for mfn in pinned.keys() - set(mfns):
        tables.memory.put([mfn], machine.tables.memory.words(mfn)[None])
        mfns.append(mfn)
        levels.append(level_of(pinned[mfn]))
    adopt(tables, mfns, levels)
    for mfn, x in (*pinned.items(), (machine.base, 0)):
        count_info, held = frames.get(mfn)
        typed = held & PGT_COUNT_MASK
        level = machine.tables.frames.get(mfn)[1] & PGT_TYPE_MASK
        frames.set(
            mfn,
            count_info + 1,
            level | PGT_VALIDATED | (held | x) & PGT_PINNED | (typed + 1),
        )
    return frames


def _released(state: BootState) -> Regions:
    """Frames that were given back to Xen: those of holes for which no RAM was left."""
    moved = Regions.of((remap.pfn, remap.pfn + remap.nr) for remap in state.remaps)
    return state.identity.clip(0, min(state.max_pfn, state.nr_pages)) - moved
