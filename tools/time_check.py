# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the rules of Xen take on one dom0: as extents, and as words, built and booted.

    python tools/time_check.py 1T

Booted means: before its P->M list is freed, with a direct map and a copy of the list in 4 KiB
pages. 1 TiB takes 2.3 GiB of memory. Runs from the repository's root.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from xenpt.abi import ENTRIES, ISA_END_ADDRESS, PAGE_SHIFT  # noqa: E402
from xenpt.image import PageTableImage, materialise  # noqa: E402
from xenpt.inputs.config import Host  # noqa: E402
from xenpt.inputs.kernel import default_kernel  # noqa: E402
from xenpt.linux import Boot, Stage  # noqa: E402
from xenpt.linux.addressspace import address_space  # noqa: E402
from xenpt.plan import plan_dom0  # noqa: E402
from xenpt.units import pages  # noqa: E402
from xenpt.xen.audit import check_image  # noqa: E402
from xenpt.xen.dom0 import Domain, build  # noqa: E402


def main() -> None:
    """Time them; no rule may be broken."""
    parser = argparse.ArgumentParser(description="time of Xen's rules on one dom0")
    parser.add_argument("memory", help="its size, as 1T")
    options = parser.parse_args()
    host = Host(superpages="4k")
    domain = build(plan_dom0(default_kernel(), host, nr_pages=pages(options.memory)))
    begin = perf_counter()
    domain.check()
    print(f"Domain.check(): {perf_counter() - begin:.3f} s")
    time_words("built", materialise(domain.address_space, domain.p2m), domain)
    booted = Boot(domain, check=False).run_to(Stage.P2M_COPIED)
    time_words("booted", address_space(booted.state).image(domain.p2m), domain)


def time_words(name: str, image: PageTableImage, domain: Domain) -> None:
    """Check an image."""
    begin = perf_counter()
    found = check_image(image, domain.p2m, other=[(0, ISA_END_ADDRESS >> PAGE_SHIFT)])
    seconds = perf_counter() - begin
    if found:
        sys.exit(f"{name}: {found[0]}")
    nr_tables = len(image.level)
    print(f"{name}: {nr_tables:,} tables, {nr_tables * ENTRIES:,} words: {seconds:.3f} s")


if __name__ == "__main__":
    main()
