# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.eras import era_of, parse_version
from xenpt.errors import UsageError


@pytest.mark.parametrize(
    "text, version",  # as boot-logs print them
    [
        ("4.17", (4, 17, 0)),
        ("4.14.5 (Debian)", (4, 14, 5)),
        ("4.14-unstable", (4, 14, 0)),
        ("4.13.0-rc", (4, 13, 0)),
        ("3.4.1-rc7", (3, 4, 1)),
        ("4.12.1-1.el7", (4, 12, 1)),
        ("4.22.0", (4, 22, 0)),
        ("5.0", (5, 0, 0)),
    ],
)
def test_versions_as_logs_print_them(text, version):
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "4", "unstable", "x4.17", "v4.17"])
def test_what_is_no_version(text):
    with pytest.raises(UsageError) as caught:
        parse_version(text)
    assert str(caught.value) == f"Xen version {text!r}: expected something like 4.17"


def test_xen_2_is_not_modelled():
    with pytest.raises(
        UsageError, match=r"Xen version '2\.0\.7': the oldest that is modelled is 3\.0"
    ):
        era_of("2.0.7")


SET_UP, CONSTRUCT = "Could not set up DOM0 guest OS", "Could not construct domain 0"
# Each flag at the last release without its change and the first with it.
CHANGES = [
    ("max_frames", "3.4", 1 << 28, "4.0", 5 << 28),
    ("max_frames", "4.2.5", 5 << 28, "4.3.0", (1 << 32) - 2),
    ("has_bigmem", "4.5", False, "4.6", True),
    ("libxl_counts_hap", "4.16.5", False, "4.17.0", True),
    ("init_p2m", "3.3", False, "3.4", True),
    ("start_info_bytes", "3.3.2", 1152, "3.4.0", 1168),
    ("vga_info_bytes", "3.1.4", 28, "3.2.0", 36),
    ("vga_info_bytes", "4.12.4", 36, "4.13.0", 40),
    ("initrd_in_place", "4.0.4", False, "4.1.0", True),
    ("max_order", "3.4", 20, "4.0.0", 18),
    ("compat_l3_first", "4.2.0", False, "4.2.1", True),
    ("compat_l3_first", "4.1.6", False, "4.3.0", True),
    ("legacy_clip", "3.4", False, "4.0.0", True),
    ("checks_dom0_feature", "4.1.6", False, "4.2.0", True),
    ("dom0_mem_percent", "4.11.4", False, "4.12.0", True),
    ("iommu_reserve", "4.0.4", False, "4.1.0", True),
    ("prints_rings", "4.10.4", False, "4.11.0", True),
    ("prints_empty", "4.15.5", True, "4.16.0", False),
    ("panic_stop", "4.3.4", ".", "4.4.0", ""),
    ("construct_panic", "4.13.5", SET_UP, "4.14.0", CONSTRUCT),
    ("construct_panic", "4.20.4", CONSTRUCT, "4.21.0", "Could not construct d0"),
    ("pae_of_64bit", "4.17.7", True, "4.18.0", False),
    ("pae_of_64bit", "3.0.4", False, "3.1", True),
    ("magic_version", "3.1.4", "3.1", "3.2", "3.0"),
    ("magic_version", "3.0.4", "3.0", "3.1", "3.1"),
    ("pm_flags", "3.2", False, "3.3", True),
    ("names_missing_pv32", "4.15.5", False, "4.16.0", True),
    ("hv_start_panics", "4.14.6", True, "4.15.0", False),
    ("no_elf_text", "4.7.6", "elf_init: not an ELF binary", "4.8.0", "ELF: not an ELF binary"),
]  # fmt: skip


@pytest.mark.parametrize("flag, last, before, first, after", CHANGES)
def test_flag_changes_with_its_release(flag, last, before, first, after):
    assert (getattr(era_of(last), flag), getattr(era_of(first), flag)) == (before, after)


def test_every_flag_has_its_release_in_a_test():
    flags = {name for name in era_of("4.17").__slots__ if name not in ("version", "payloads")}
    assert flags == {change[0] for change in CHANGES}


@pytest.mark.parametrize(
    "xen, payloads",
    [
        ("3.3", set()),
        ("3.4", {"none", "gzip"}),
        ("4.0", {"none", "gzip", "bzip2", "lzma"}),
        ("4.1.4", {"none", "gzip", "bzip2", "lzma", "lzo"}),
        ("4.1.5", {"none", "gzip", "bzip2", "lzma", "lzo", "xz"}),
        ("4.14.6", {"none", "gzip", "bzip2", "lzma", "lzo", "xz", "lz4"}),
        ("4.15", {"none", "gzip", "bzip2", "lzma", "lzo", "xz", "lz4", "zstd"}),
    ],
)
def test_payloads_that_each_xen_unpacks(xen, payloads):
    assert era_of(xen).payloads == payloads
