#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Convert a directory of real-boot data into the compact form of tests/golden.

Usage: python tools/import_golden.py SOURCE [DESTINATION]

SOURCE holds what a harvest of real boots wrote, in any of these folders:

- ``oracle/``, ``domu/``: per case ``NAME.json`` (facts), ``NAME.npz`` (dumps),
  ``NAME.txt.xz`` (log)
- ``boot-logs/*.jsonl``: records of public logs
- ``logs-large/*.log.xz``: full serial logs
- ``icount/*.txt``: lines of logs whose clock counts instructions
- ``instructions/``: ``counts.jsonl``, ``software.json``, written by tools/calibrate.py

Facts stay as they are. Arrays are stored again without compression, in the same order, and the
whole archive is then compressed with xz: 8 to 10 times smaller than deflate member by member,
since the dumps of one boot repeat each other. The output depends on nothing but the input.
Nothing that xenpt computed is ever written here, and no path of the machine that took the data.
"""

import argparse
import io
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CASE_FOLDERS = ("oracle", "domu")
LIMIT_BYTES = 10 << 20  # of all golden data together
#: A file-system path of whoever took the data; device and /proc names of a kernel log are no such.
MACHINE_PATH = re.compile(rb"/(?:home|root|tmp|work|usr/src|var/tmp|mnt|opt)/[\w.-]+")


def main() -> int:
    """Import every known folder of SOURCE; exit status 1 if the result may not be kept."""
    parser = argparse.ArgumentParser(description="Convert data of real boots for tests/golden.")
    parser.add_argument("source", type=Path)
    here = Path(__file__).resolve().parent.parent / "tests" / "golden"
    parser.add_argument("destination", type=Path, nargs="?", default=here)
    args = parser.parse_args()
    store(args.source, args.destination)
    return report(args.destination)


def store(source: Path, destination: Path) -> None:
    """Write all that SOURCE holds."""
    for path, content in converted(source):
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def converted(source: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield (path below the destination, content) of every file to write, sorted."""
    for folder in CASE_FOLDERS:
        for facts in sorted((source / folder).glob("*.json")):
            yield facts.relative_to(source), facts.read_bytes()
            arrays, log = facts.with_suffix(".npz"), facts.with_suffix(".txt.xz")
            if arrays.exists():
                yield arrays.relative_to(source).with_suffix(".npz.xz"), pack_arrays(arrays)
            if log.exists():
                name = Path(folder) / f"{facts.stem}.log.xz"
                yield name, pack(lzma.decompress(log.read_bytes()))
    for records in sorted((source / "boot-logs").glob("*.jsonl")):
        yield records.relative_to(source), named_records(records)
    for log in sorted((source / "logs-large").glob("*.log.xz")):
        yield log.relative_to(source), pack(lzma.decompress(log.read_bytes()))
    for text in sorted((source / "icount").glob("*.txt")):
        yield text.relative_to(source), text.read_bytes()
    for counts in sorted((source / "instructions").glob("*.json*")):
        yield counts.relative_to(source), counts.read_bytes()


def pack(content: bytes) -> bytes:
    """Compress `content` with xz; the same bytes on every machine of one liblzma."""
    return lzma.compress(content, check=lzma.CHECK_CRC32, preset=9)


def pack_arrays(path: Path) -> bytes:
    """Store the arrays of an npz again uncompressed, as one xz stream; checked by reading back."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=False) as copy:
        for name, array in arrays.items():
            if copy[name].dtype != array.dtype or not np.array_equal(copy[name], array):
                raise ValueError(f"{path}: array {name} does not survive the conversion")
    return pack(buffer.getvalue())


def named_records(path: Path) -> bytes:
    """Give each record of a JSONL file its name, FILE-NN in the order of the file.

    The collector's own file numbers mean nothing to a reader and are dropped; a revision of a
    public repository goes to `source`.
    """
    lines = []
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        record = json.loads(line)
        file_id = record.pop("file_id", None) or ""
        record.pop("index_in_file", None)
        if file_id.startswith("git:"):
            record["source"] = f"{record['source']}@{file_id.removeprefix('git:')}"
        lines.append(json.dumps({"record": f"{path.stem}-{index:02d}"} | record))
    return ("\n".join(lines) + "\n").encode()


def report(destination: Path) -> int:
    """Print the size of each folder; refuse machine paths and more than LIMIT_BYTES in all."""
    status = total = 0
    for folder in sorted(p for p in destination.iterdir() if p.is_dir()):
        files = sorted(
            p for p in folder.rglob("*") if p.suffix in {".json", ".jsonl", ".xz", ".txt"}
        )
        size = sum(p.stat().st_size for p in files)
        total += size
        print(f"{folder.name}: {len(files)} files, {size:,} bytes")
        for path in files:
            content = path.read_bytes()
            if found := MACHINE_PATH.search(
                lzma.decompress(content) if path.suffix == ".xz" else content
            ):
                print(f"{path}: holds a path of a machine: {found[0].decode()}", file=sys.stderr)
                status = 1
    print(f"in all: {total:,} bytes of {LIMIT_BYTES:,}")
    return status if total <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
