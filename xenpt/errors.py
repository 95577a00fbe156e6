# SPDX-License-Identifier: GPL-2.0-or-later
"""Every exception of xenpt. Each message is one line and names file, offset or field."""

from errno import errorcode


class XenptError(Exception):
    """Base of all errors that xenpt raises on purpose; the command line exits with status 2."""


class UsageError(XenptError, ValueError):
    """An argument that has no meaning: a size, a dom0_mem text, a pair of options."""


class InputError(XenptError, ValueError):
    """A file that cannot be read as what it should be.

    :ivar source: name of the file, as the user gave it
    :ivar offset: byte offset of the fault in it, or None
    """

    def __init__(self, source: object, reason: str, *, offset: int | None = None) -> None:
        self.source, self.reason, self.offset = str(source), reason, offset
        where = f"{self.source}: offset {offset:#x}" if offset is not None else self.source
        super().__init__(f"{where}: {reason}")


class MissingCodecError(InputError, ImportError):
    """A kernel payload whose codec is not installed; the message names the extra to install."""


class PanicError(XenptError):
    """A plan cannot be built because Xen, libxenguest or Linux gives up.

    :ivar panic: the exact text of whoever gives up
    """

    def __init__(self, panic: str) -> None:
        self.panic = panic
        super().__init__(panic)


class EntryError(XenptError, ValueError):
    """A page-table entry that breaks the shape of a table.

    :ivar table: index of the table in its arena
    :ivar slot: position of the entry, in [0, 512)
    :ivar entry: the 64-bit word
    """

    def __init__(self, *, table: int, slot: int, entry: int, reason: str) -> None:
        self.table, self.slot, self.entry, self.reason = table, slot, entry, reason
        super().__init__(f"table {table} slot {slot} entry {entry:#018x}: {reason}")


class MappingError(XenptError, ValueError):
    """Extents that overlap, are unsorted or leave the address space."""


class RefusedError(XenptError):
    """Xen refuses a hypercall.

    :ivar errno: the number that the guest sees, negated: 22 for -EINVAL
    :ivar lines: what Xen prints to its log, in order, without the domain's prefix
    :ivar done: requests of the hypercall that succeeded before this one
    """

    def __init__(self, errno: int, *lines: str, done: int = 0) -> None:
        self.errno, self.lines, self.done = errno, lines, done
        super().__init__(f"-{errorcode.get(errno, errno)}: {'; '.join(lines) or 'refused'}")


class OutputError(XenptError):
    """A result could not be written; a file that was there before is as it was.

    :ivar target: name of the file, or "standard output"
    """

    def __init__(self, target: str, reason: str) -> None:
        self.target, self.reason = target, reason
        super().__init__(f"{target}: {reason}")


class NoRoomError(XenptError, MemoryError):
    """A result would need more memory than is free; the message says how much of both."""


class MissingExtraError(XenptError, ImportError):
    """A package that only some uses need is not installed; the message names the extra to install.

    :ivar package: its name
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        super().__init__(f"{package} is not installed: pip install 'xenpt[{extra}]'")


class ClusterError(XenptError):
    """Workers that cannot be had, went away for good, or run another xenpt."""


class StoppedError(BaseException):
    """A signal asked to stop; like KeyboardInterrupt, it is no Exception.

    :ivar number: of the signal
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        super().__init__(f"stopped by {name}")
