# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen, its toolstack's library and Linux as packaged for this very machine, unpacked into a cache,
not installed.

The package lists are private to the cache, so nothing of the machine's own apt state is read as
root or changed; a week later they are read again, and newer packages replace the old ones.
"""

import fcntl
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

_FRESH_SECONDS = 7 * 24 * 3600
_KERNELS = "linux-image-amd64", "linux-image-generic"  # as Debian and as Ubuntu name the newest
_HYPERVISOR = r"^xen-hypervisor-([0-9.]+)-amd64$"
_TOOLSTACK = "libxen-dev"  # headers, and libxenguest by what it depends on
_WEAKER = "recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"
_BOOT_FILES = "./boot/*", "./usr/lib/debug/*", "./*lib/modules/*/xen-privcmd.ko*"


class UnavailableError(Exception):
    """This machine cannot run the oracle; the text says in one line why, and what to install."""


@dataclass(frozen=True)
class Software:
    """What to boot; all files are in the cache.

    :ivar xen: the hypervisor as QEMU takes it, a multiboot ELF file
    :ivar xen_syms: the same with its symbols
    :ivar linux: the kernel image
    :ivar versions: package name -> version
    """

    xen: str
    xen_syms: str
    linux: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Toolstack:
    """What to build guests with.

    :ivar folder: headers and libraries, the C library's included, as they lie below /
    :ivar versions: package name -> version
    """

    folder: str
    versions: dict[str, str]


_Kept = TypeVar("_Kept", Software, Toolstack)


def cache_folder() -> Path:
    """The cache; it is made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "xenpt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require(*programs: tuple[str, str]) -> None:
    """:raises UnavailableError: one of the (program, package) is not installed"""
    for program, package in programs:
        if not shutil.which(program):
            raise UnavailableError(f"no {program}: apt-get install {package}")


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time downloads, or emulates."""
    with open(cache_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch() -> Software:
    """Xen and Linux of this machine's suite, downloaded if the cache has none or old ones.

    :raises UnavailableError: no apt, another architecture, or the download failed
    """
    return _held("packages.json", Software, _download)


def fetch_toolstack() -> Toolstack:
    """The library with all that it needs, likewise.

    :raises UnavailableError: as fetch()
    """
    return _held("toolstack.json", Toolstack, _download_toolstack)


def privcmd_module(software: Software) -> bytes:
    """Linux's module through which programs make hypercalls, unpacked.

    :raises UnavailableError: it is not there, or not packed as Debian packs it
    """
    tree = Path(software.linux).parent.parent
    found = sorted(tree.glob("**/xen-privcmd.ko*"))
    if not found or found[0].suffix not in (".ko", ".xz"):
        raise UnavailableError(f"no xen-privcmd.ko in {tree}: packed in another way than Debian's")
    content = found[0].read_bytes()
    return lzma.decompress(content) if found[0].suffix == ".xz" else content


def _held(name: str, kind: type[_Kept], download: Callable[[], _Kept]) -> _Kept:
    """What is on record in the cache as `name`, or now downloaded."""
    with locked():
        record = cache_folder() / name
        held = kind(**json.loads(record.read_text("utf-8"))) if record.exists() else None
        if held and time.time() - record.stat().st_mtime < _FRESH_SECONDS:
            return held
        try:
            found = download()
        except UnavailableError:
            if held is None:
                raise
            return held  # offline: what was good last week will do
        record.write_text(json.dumps(asdict(found), indent=1), "utf-8")
        return found


def _download() -> Software:
    _read_lists()
    hypervisors = _apt("apt-cache", "search", "--names-only", _HYPERVISOR).split("\n")
    names = [line.split()[0] for line in hypervisors if line]
    if not names:
        raise UnavailableError("the machine's suite has no xen-hypervisor package")
    xen = max(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    trees = {name: _unpack(name) for name in (xen, f"{xen}-dbg", _kernel_package())}
    boot, debug, linux = trees.values()
    (packed,) = boot.glob("boot/xen-*[0-9]-amd64.gz")
    (syms,) = debug.glob("usr/lib/debug/**/xen-syms-*-amd64")
    (image,) = linux.glob("boot/vmlinuz-*")
    unpacked = packed.with_suffix("")
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    versions = dict(tree.name.split("_", 1) for tree in trees.values())
    return Software(str(unpacked), str(syms), str(image), versions)


def _download_toolstack() -> Toolstack:
    _read_lists()
    folder, partial = cache_folder() / "toolstack", cache_folder() / "partial"
    without = (f"--no-{kind}" for kind in _WEAKER)
    lines = _apt("apt-cache", "depends", "--recurse", *without, _TOOLSTACK).splitlines()
    names = [line for line in lines if re.match(r"[a-z0-9]", line)]
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _apt("apt-get", "-qq", "download", *names, cwd=partial)
    versions = {}
    for deb in sorted(partial.glob("*.deb")):
        run("dpkg-deb", "--extract", str(deb), str(partial))
        name, version = (_field(deb, field) for field in ("Package", "Version"))
        versions[name] = version
        deb.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Toolstack(str(folder), versions)


def _read_lists() -> None:
    require(("apt-get", "apt"), ("dpkg-deb", "dpkg"))
    if run("dpkg", "--print-architecture").strip() != "amd64":
        raise UnavailableError("Xen and Linux are looked for as amd64 packages of this machine")
    _apt("apt-get", "-qq", "update")


def _kernel_package() -> str:
    for name in _KERNELS:
        found = re.search(
            r"Depends: (linux-image-[0-9]\S*)", _apt("apt-cache", "depends", name, check=False)
        )
        if found:
            return found[1]
    raise UnavailableError(f"the machine's suite has no package {' or '.join(_KERNELS)}")


def _unpack(package: str) -> Path:
    """The package's files of _BOOT_FILES; older versions are dropped."""
    folder = cache_folder()
    _apt("apt-get", "-qq", "download", package, cwd=folder)
    deb = max(folder.glob(f"{package}_*.deb"), key=os.path.getmtime)
    tree = folder / f"{package}_{_field(deb, 'Version')}"
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _extract(deb, partial)
    shutil.rmtree(tree, ignore_errors=True)
    partial.rename(tree)
    for other in set(folder.glob(f"{package}_*")) - {tree}:
        if other.is_dir():
            shutil.rmtree(other)
        else:
            other.unlink()
    return tree


def _extract(deb: Path, folder: Path) -> None:
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["tar", "-x", "-C", str(folder), "--wildcards", *_BOOT_FILES],
            stdin=archive.stdout,
            stderr=subprocess.DEVNULL,  # complains of a pattern that a package does not have
            check=False,
        )


def _field(deb: Path, name: str) -> str:
    return run("dpkg-deb", "--field", str(deb), name).strip()


def _apt(program: str, *args: str, check: bool = True, cwd: Path | None = None) -> str:
    lists, archives = cache_folder() / "apt/lists", cache_folder() / "apt/cache"
    for folder in (lists, archives):
        (folder / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": lists,
        "Dir::Cache": archives,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the cache need not be readable for others
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    return run(program, *options, *args, check=check, cwd=cwd)


def run(*command: str, check: bool = True, cwd: Path | None = None) -> str:
    """:raises UnavailableError: the command fails, with the last line that it said"""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if check and done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise UnavailableError(f"{command[0]} {command[-1]}: {said[-1]}")
    return done.stdout
