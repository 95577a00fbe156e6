# SPDX-License-Identifier: GPL-2.0-or-later
"""Where answers go, whole or not at all, and how the process ends when they cannot.

A result is one text that is written in one go: to standard output, or to a file by way of a
temporary one beside it, so that nobody ever reads half of it and an old file stays until the new
one is complete.
"""

import contextlib
import errno
import io
import os
import secrets
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from xenpt.errors import OutputError, StoppedError

MAX_COMPLAINT = 1000  # characters: what is wrong may be quoted in it, whatever its length
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = 0.01  # seconds until a signal that was swallowed comes again


def write(text: str, path: str | None = None) -> None:
    """Write `text` to the file `path`, or to standard output if it is None.

    :raises OutputError: nobody reads standard output any more, a full disk, no permission
    """
    if path is None:
        write_stdout(text)
    else:
        write_file(path, text)


def write_stdout(text: str) -> None:
    """Write all of `text` to standard output.

    :raises OutputError: it is closed, or its disk is full
    """
    stream = sys.stdout
    if stream is None:
        raise OutputError("standard output", "it is closed")
    try:
        stream.flush()
        _write_all(stream, text)
    except BrokenPipeError as error:
        raise OutputError("standard output", "its reader has gone") from error
    except OSError as error:
        raise OutputError("standard output", _reason(error)) from error


def _write_all(stream: TextIO, text: str) -> None:
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # not a real file: somebody collects the output
        stream.write(text)
        return
    # Not stream.write(): with PYTHONUNBUFFERED it loses what a short write leaves, silently.
    rest = memoryview(text.encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_file(path: str, text: str | bytes) -> None:
    """Replace the file `path` by one that holds `text`; until then it stays as it was.

    A symbolic link stays one, and a file keeps its mode. What is no regular file (a device, a
    FIFO) is written to directly.

    :raises OutputError: see `write`
    """
    try:
        content = text.encode() if isinstance(text, str) else text
        target = Path(path).resolve()
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            with open(target, "wb") as device:
                device.write(content)
        else:
            _replace(target, content, mode)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise OutputError(path, _reason(error)) from error


def _mode(target: Path) -> int | None:
    """Mode of the file, None if there is none yet.

    :raises OSError: it may not be written; to replace it would get round that
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return mode


def _replace(target: Path, content: bytes, mode: int | None) -> None:
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o666), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def complain(text: str) -> None:
    """Write one line about what went wrong to standard error, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            line = text if len(text) <= MAX_COMPLAINT else f"{text[:MAX_COMPLAINT]} ..."
            sys.stderr.write(f"xenpt: {printable(line)}\n")
            sys.stderr.flush()


def printable(text: str) -> str:
    """`text` as one line of ASCII that does nothing to a terminal: the rest as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if " " <= c <= "~" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise StoppedError inside, so that temporary files go away.

    A signal that the caller has set to be ignored (nohup) stays ignored. One that comes while
    Python is inside a callback that may not raise, such as a module's lock has, comes again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    hook = sys.unraisablehook

    def come_again(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, StoppedError):
            hook(unraisable)
            return
        again = threading.Timer(_AGAIN, os.kill, (os.getpid(), unraisable.exc_value.number))
        again.daemon = True
        again.start()

    try:
        sys.unraisablehook = come_again
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _stop(number: int, _frame: FrameType | None) -> None:
    raise StoppedError(number, signal.Signals(number).name)


def end_by_signal(number: int) -> None:
    """End this process as the signal would have, so that a loop in a shell ends with it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
