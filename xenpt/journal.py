# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of a sweep as they come, in a file that a sweep can go on from after any end.

One row is one line of JSON, written by one call. What a killed process left of its last line is
dropped when the file is opened again.
"""

import fcntl
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from xenpt.errors import InputError, OutputError, UsageError

Row = dict[str, Any]
_BEGINNING = b'{"schema":'  # of every line


def json_line(row: Row) -> str:
    """One row as one line."""
    return json.dumps(row, separators=(",", ":")) + "\n"


def nr_rows(path: str | Path) -> int:
    """Whole rows that a journal holds."""
    return Path(path).read_bytes().count(b"\n")


class Journal:
    """Rows in a file, one process at a time.

    :param resume: go on from the rows that are there; without it there must be none
    :raises UsageError: rows are there and not wanted; another process has the file
    :raises InputError: a line before the last one is no row
    :raises OutputError: the file cannot be opened or written

    :ivar rows: those that were there, by input_hash
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._descriptor = self._open()
        try:
            self._lock()
            self.rows = self._read()
            if self.rows and not resume:
                raise UsageError(
                    f"{path} has {len(self.rows)} rows of a sweep that did not end: go on from "
                    "them with --resume, or remove the file"
                )
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def append(self, row: Row) -> None:
        """Add one row.

        :raises OutputError: a full disk
        """
        rest = json_line(row).encode()
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise OutputError(str(self.path), error.strerror or str(error)) from error

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(str(self.path), reason) from error

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OutputError(str(self.path), "not a regular file")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{self.path}: another sweep is writing it") from None

    def _read(self) -> dict[str, Row]:
        """The rows of all whole lines; the beginning of one behind them is cut off."""
        data = self.path.read_bytes()
        *lines, rest = data.split(b"\n")
        if not rest.startswith(_BEGINNING[: len(rest)]):
            raise InputError(self.path, "not a file of rows", offset=len(data) - len(rest))
        rows: dict[str, Row] = {}
        start = 0
        for line in lines:
            row = _parsed(line)
            if row is None:
                raise InputError(self.path, "not a row of a sweep", offset=start)
            rows[row["input_hash"]] = row
            start += len(line) + 1
        if rest:
            os.ftruncate(self._descriptor, start)
        return rows


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("input_hash"), str) else None
