# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a domain's mappings: sorted runs of leaves, and of the tables that hold them.

A run says that `nr` consecutive slots of one level hold frames whose pfns are `step` apart:
slot i maps virtual page `vpn + i * 512**(level - 1)` to `pfn + i * step`. A run of *tables* says
the same of table pages: table i of level L covers the virtual pages from `vpn + i * 512**L`.
Frames are guest frames (pfn); `P2M` gives them machine frames when words are made of them.
Every count of a stage follows from the runs in O(runs), whatever the guest's size.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: One run. `vpn`: virtual page number (vaddr >> 12, unsigned); `flags`: entry bits without frame.
RUN = np.dtype(
    [
        ("vpn", "<u8"),
        ("pfn", "<u8"),
        ("nr", "<u8"),
        ("step", "<i8"),
        ("level", "<u8"),
        ("flags", "<u8"),
    ]
)
Runs = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Leaves and table pages of one part of an address space (the initial mapping, the P->M list).

    :ivar leaves: RUN array, sorted by vpn, disjoint; level 1, 2 or 3; a step of 512**(level-1)
        is contiguous memory
    :ivar tables: RUN array, sorted by (level, vpn); the frames of the table pages themselves
    """

    leaves: Runs
    tables: Runs
