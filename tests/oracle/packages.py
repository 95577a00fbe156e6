# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen and Linux as packaged for this very machine, unpacked into a cache, not installed.

The package lists are private to the cache, so nothing of the machine's own apt state is read as
root or changed; a week later they are read again, and newer packages replace the old ones.
"""

import fcntl
import gzip
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_FRESH_SECONDS = 7 * 24 * 3600
_KERNELS = "linux-image-amd64", "linux-image-generic"  # as Debian and as Ubuntu name the newest
_HYPERVISOR = r"^xen-hypervisor-([0-9.]+)-amd64$"


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
    with locked():
        return _fetch()


def _fetch() -> Software:
    record = cache_folder() / "software.json"
    held = Software(**json.loads(record.read_text("utf-8"))) if record.exists() else None
    if held and time.time() - record.stat().st_mtime < _FRESH_SECONDS:
        return held
    try:
        found = _download()
    except UnavailableError:
        if held is None:
            raise
        return held  # offline: what was good last week will do
    record.write_text(json.dumps(asdict(found), indent=1), "utf-8")
    return found


def _download() -> Software:
    require(("apt-get", "apt"), ("dpkg-deb", "dpkg"))
    if _run("dpkg", "--print-architecture").strip() != "amd64":
        raise UnavailableError("Xen and Linux are looked for as amd64 packages of this machine")
    _apt("apt-get", "-qq", "update")
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


def _kernel_package() -> str:
    for name in _KERNELS:
        found = re.search(
            r"Depends: (linux-image-[0-9]\S*)", _apt("apt-cache", "depends", name, check=False)
        )
        if found:
            return found[1]
    raise UnavailableError(f"the machine's suite has no package {' or '.join(_KERNELS)}")


def _unpack(package: str) -> Path:
    """The package's files of /boot and its debugging symbols; older versions are dropped."""
    folder = cache_folder()
    _apt("apt-get", "-qq", "download", package, cwd=folder)
    deb = max(folder.glob(f"{package}_*.deb"), key=os.path.getmtime)
    tree = folder / f"{package}_{_run('dpkg-deb', '--field', str(deb), 'Version').strip()}"
    if not tree.is_dir():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _extract(deb, partial)
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
            ["tar", "-x", "-C", str(folder), "--wildcards", "./boot/*", "./usr/lib/debug/*"],
            stdin=archive.stdout,
            stderr=subprocess.DEVNULL,  # complains of a pattern that a package does not have
            check=False,
        )


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
    return _run(program, *options, *args, check=check, cwd=cwd)


def _run(*command: str, check: bool = True, cwd: Path | None = None) -> str:
    """:raises UnavailableError: the command fails, with the last line that it said"""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if check and done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise UnavailableError(f"{command[0]} {command[-1]}: {said[-1]}")
    return done.stdout
