# SPDX-License-Identifier: GPL-2.0-or-later
import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]

def coalesce(runs: _Words, out: _Words, tables: bool) -> int: ...
