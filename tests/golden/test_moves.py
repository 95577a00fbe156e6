# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux moved out of holes, and the area of its P->M list, against its own log lines."""

import re

import goldendata
import pytest

from xenpt.inputs.config import Host, parse_e820
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import Boot
from xenpt.plan import plan_dom0
from xenpt.xen import build

CASES = ("m2g", "m4g", "c8g", "m512g", "m520g-full", "c8g-relocate")  # dom0 may not grow in any


@pytest.mark.parametrize("name", CASES)
def test_moves_are_those_that_linux_printed(name):
    text = goldendata.log(name)
    option = goldendata.facts(name)["options"]["dom0_mem"].split(",")[0]
    host = Host(e820=parse_e820(text.split("Linux version")[0].splitlines()))
    plan = plan_dom0(default_kernel(), host, dom0_mem=f"{option},max:{option}")
    moves = Boot(build(plan), e820=host.map).run().moves
    area = re.search(r"p2m virtual area at \S+, size is ([0-9a-f]+)", text)
    assert moves["list_area_bytes"] == int(area[1], 16)
    remapped = re.search(r"Remapped (\d+) page", text)
    if name == "m512g":  # was ended before
        assert remapped is None
    else:
        assert moves["remapped_pages"] == int(remapped[1])
    assert (moves["list_to"] is not None) == (name == "c8g-relocate")
    assert moves["initrd_to_bytes"] is None
