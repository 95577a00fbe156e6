# SPDX-License-Identifier: GPL-2.0-or-later
"""Ramdisks: length, gzip's own word on its contents, and files that are none."""

import gzip
import os

import pytest

from xenpt.errors import InputError
from xenpt.inputs.initrd import Initrd, read_initrd


@pytest.mark.parametrize(
    ("content", "unpacked"),
    [
        (b"", None),
        (b"\x1f", None),
        (b"\x1f\x8b\x08\x00\x00", None),  # 5 bytes: no room for a length
        (b"\x1f\x8b\x01\x02\x00\x00", 0x201),
        (b"070701" + bytes(4000), None),
        (gzip.compress(bytes(12345)), 12345),
    ],
)
def test_length_and_what_a_gzip_file_says(tmp_path, content, unpacked):
    path = tmp_path / "initrd.img"
    path.write_bytes(content)
    assert read_initrd(path) == Initrd(len(content), unpacked, name=str(path))


def test_what_is_no_ramdisk(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in ((".", "not a regular file"), ("fifo", "not a regular file"),
                         ("none", "No such file"), ("a\0b", "null byte")):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            read_initrd(tmp_path / name)
