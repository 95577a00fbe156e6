# SPDX-License-Identifier: GPL-2.0-or-later
"""volatility3's Intel32e layer over the same page tables, in a raw file."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from guests import direct_map

from xenpt.image import materialise
from xenpt.p2m import P2M

NR_PAGES = 1 << 18


def volatility_rate() -> dict[str, float] | None:
    """Gpte/s of volatility3's mapping() and of our walk over one image; None if not installed.

    volatility3 reads the file page by page, decodes more attributes and is general; we read an
    array in memory. The image is of guest-physical memory with the tables behind the pages.
    """
    try:
        from volatility3.framework import contexts, interfaces
        from volatility3.framework.layers import intel, physical
    except ImportError:
        sys.stderr.write("volatility3 is not installed: pip install 'xenpt[peers]'\n")
        return None
    mapping, p2m = direct_map(NR_PAGES)
    total = p2m.nr_pages
    image = materialise(mapping, P2M.linear(total, 0))
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(total << 12)
        for page, mfn in zip(image.pages, image.mfn.tolist(), strict=True):
            file.seek(mfn << 12)
            file.write(page.tobytes())
        file.flush()
        context = contexts.Context()
        join = interfaces.configuration.path_join
        context.config[join("base", "location")] = Path(file.name).as_uri()
        context.layers.add_layer(physical.FileLayer(context, "base", "memory"))
        context.config[join("top", "memory_layer")] = "memory"
        context.config[join("top", "page_map_offset")] = int(image.mfn[image.root()]) << 12
        layer = intel.Intel32e(context, "top", "top")
        start = time.perf_counter()
        first = 0xFFFF888000000000 & layer.address_mask
        found = sum(1 for _ in layer.mapping(first, NR_PAGES << 12, ignore_errors=True))
        theirs = time.perf_counter() - start
    assert found
    best = 9.0
    for _ in range(5):
        start = time.perf_counter()
        runs = image.walk().leaves
        best = min(best, time.perf_counter() - start)
    assert int(np.sum(runs["nr"])) == NR_PAGES
    return {"volatility3": NR_PAGES / theirs / 1e9, "walk": NR_PAGES / best / 1e9}
