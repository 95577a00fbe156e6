# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry state of real dom0s: every guest word of every dumped table, types, start_info.

The layout comes from the plan alone; only where the host put the pages is taken from the dump.
"""

import goldendata
import numpy as np
import pytest
from goldenplan import entry_plan

from xenpt import abi
from xenpt.image import materialise
from xenpt.p2m import P2M
from xenpt.xen.dom0 import Domain, build

CASES = goldendata.cases("oracle", dump="entry")


def entry_domain(name: str) -> Domain:
    """The case's domain, built on the real host's frames."""
    arrays, facts = goldendata.arrays(name), goldendata.facts(name)
    start_info = facts["dump"]["entry"]["start_info"]
    return build(
        entry_plan(name),
        p2m=P2M.from_rows(arrays["entry_p2m_runs"].astype(np.int64)),
        shared_info=start_info["shared_info"],
    )


@pytest.mark.parametrize("name", CASES)
def test_page_tables_equal_the_dump_bit_for_bit(name: str) -> None:
    arrays, domain = goldendata.arrays(name), entry_domain(name)
    image = materialise(domain.address_space, domain.p2m)
    ours = {int(mfn): table for table, mfn in enumerate(image.mfn)}
    assert len(ours) == goldendata.facts(name)["dump"]["entry"]["pages"]
    for k, mfn in enumerate(arrays["entry_mfn"]):
        table = ours[int(mfn)]
        assert image.level[table] == arrays["entry_level"][k]
        words, real = image.pages[table].copy(), arrays["entry_pages"][k].copy()
        if image.level[table] == abi.LEVELS:  # slots 256..271 of the root are Xen's own
            words[256:272] = real[256:272] = 0
        assert np.array_equal(words, real), f"table {mfn:#x} of level {image.level[table]}"


@pytest.mark.parametrize("name", CASES)
def test_table_frames_have_the_dumped_types_and_counts(name: str) -> None:
    arrays, domain = goldendata.arrays(name), entry_domain(name)
    info = domain.page_info()
    ours = dict(
        zip(
            domain.p2m.mfn(info["pfn"]).tolist(),
            zip(info["count_info"].tolist(), info["type_info"].tolist(), strict=True),
            strict=True,
        )
    )
    real = arrays["entry_page_info"].tolist()
    for mfn, (count_info, type_info) in zip(arrays["entry_mfn"].tolist(), real, strict=True):
        assert ours[mfn] == (count_info, type_info), f"mfn {mfn:#x}"


@pytest.mark.parametrize("name", CASES)
def test_start_info_equals_the_dump_byte_for_byte(name: str) -> None:
    real = goldendata.arrays(name)["entry_start_info"].tobytes()
    assert entry_domain(name).start_info() == real[: abi.START_INFO_64.itemsize]
