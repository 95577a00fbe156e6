# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest takes of a host besides its memory: a table of docs/model.md, measured.

    python tools/guest_own.py pv/512 pvh/2048/4

Each guest is TYPE/MIB[/VCPUS]. Stock Xen and Linux boot in QEMU, as for `make oracle`; in dom0, the
suite's xl creates each guest and leaves it paused. Free pages of the host (XEN_SYSCTL_physinfo)
before, less those while it is there, less its memory, is the figure. Needs apt, gcc and QEMU.
"""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
packages, serial = import_module("oracle.packages"), import_module("oracle.serial")
guestboot = import_module("oracle.guestboot")

SECONDS = 1500  # that all of it may take
#: What xl, its daemons and the program below are linked with; {} is the version of Xen.
DEBS = (
    "busybox-static libc6 libgcc-s1 libxen-dev libxencall1 libxendevicemodel1 libxenevtchn1 "
    "libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoollog1 libxentoolcore1 "
    "libxenmisc{0} xen-utils-{0} liblzma5 libuuid1 libyajl2 libzstd1 zlib1g libbz2-1.0 liblzo2-2 "
    "libncurses6 libtinfo6 libext2fs2 libcom-err2 libnl-3-200 libnl-route-3-200"
)
MODULES = ("xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc")
PROGRAMS = ("xl", "xenstored", "xen-init-dom0", "xenconsoled")
FREE_C = """
#include <stdio.h>
#include <xenctrl.h>
int main(void)
{
    xc_physinfo_t info;
    xc_interface *xch = xc_interface_open(NULL, NULL, 0);
    if (!xch || xc_physinfo(xch, &info))
        return 1;
    printf("free=%lu\\n", (unsigned long)(info.free_pages + info.scrub_pages));
    return 0;
}
"""
INIT = """#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib/x
mkdir -p /proc /sys /dev /run /var/lib/xen /var/lib/xenstored /var/log/xen /var/lock /tmp /etc/xen
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs run /run; mkdir -p /run/xen /run/xenstored; ln -s /run /var/run
for module in {modules}; do insmod /mod/$module.ko; done
mount -t xenfs xenfs /proc/xen; mkdir -p /usr/lib; ln -s / /usr/lib/xen-{xen}
echo 1 > /proc/sys/kernel/printk; echo 'autoballoon="off"' > /etc/xen/xl.conf
xenstored --pid-file=/run/xenstored.pid; sleep 2; xen-init-dom0
mkdir -p /dev/pts /var/log/xen/console; mount -t devpts devpts /dev/pts
xenconsoled --pid-file=/run/xenconsoled.pid; sleep 1
for guest in {guests}; do
  echo "@@ $guest before"; xenfree; xl create -p -e /k/$guest.cfg 2>&1
  echo "@@ $guest there"; xenfree; xl destroy $guest; sleep 2
done
echo "@@ done"; poweroff -f
"""


def unpack(names: list[str], folder: Path) -> Path:
    """The packages' files, downloaded and not installed."""
    options = ["-qq", "-o", "APT::Sandbox::User=root"]  # the folder is not readable for others
    subprocess.run(["apt-get", *options, "download", *names], cwd=folder, check=True)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "root")], check=True)
    return folder / "root"


def initrd(root: Path, xen: str, guests: list[str], folder: Path) -> bytes:
    """Dom0's whole system."""
    lib, usr = root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"
    source, free = folder / "free.c", folder / "xenfree"
    source.write_text(FREE_C)
    subprocess.run(
        ["cc", "-O1", f"-I{root}/usr/include", "-o", free, source, f"-L{usr}", "-lxenctrl",
         "-Wl,--unresolved-symbols=ignore-in-shared-libs", f"-Wl,-rpath-link,{usr}:{lib}"],
        check=True,
    )  # fmt: skip
    programs = [free, *(root / f"usr/lib/xen-{xen}/bin" / name for name in PROGRAMS)]
    loader = lib / "ld-linux-x86-64.so.2"
    needed = {"libgcc_s.so.1"}
    for program in programs:
        command = [str(loader), "--library-path", f"{lib}:{usr}", "--list", str(program)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        needed |= {Path(path).name for path in re.findall(r"=> (\S+)", said)}
    (kernel,) = root.glob("boot/vmlinuz-*")
    busybox = next(path for path in root.rglob("bin/busybox"))
    script = INIT.format(modules=" ".join(MODULES), xen=xen, guests=" ".join(map(key, guests)))
    files = {"init": script.encode(), "bin/busybox": busybox.read_bytes()}
    files |= {"bin/sh": busybox.read_bytes(), "lib64/ld-linux-x86-64.so.2": loader.read_bytes()}
    files |= {f"bin/{program.name}": program.read_bytes() for program in programs}
    for name in needed:
        files[f"lib/x/{name}"] = next(
            p for p in (lib / name, usr / name) if p.exists()
        ).read_bytes()
    for name in MODULES:
        files[f"mod/{name}.ko"] = next(root.rglob(f"{name}.ko")).read_bytes()
    files["k/vmlinuz"] = kernel.read_bytes()
    for guest in guests:
        kind, mib, vcpus = parts(guest)
        config = f'name="{key(guest)}"\ntype="{kind}"\nkernel="/k/vmlinuz"\nmemory={mib}\n'
        files[f"k/{key(guest)}.cfg"] = f"{config}vcpus={vcpus}\n".encode()
    return bytes(guestboot.archive(files))


def parts(guest: str) -> tuple[str, int, int]:
    """Type, MiB and vCPUs."""
    kind, mib, vcpus = [*guest.split("/"), "1"][:3]
    return kind, int(mib), int(vcpus)


def key(guest: str) -> str:
    """The guest's name for xl."""
    return guest.replace("/", "-")


def main() -> int:
    """Measure each guest of the command line."""
    guests = sys.argv[1:]
    software = packages.fetch()
    (xen,) = re.findall(r"xen-hypervisor-([0-9.]+)-amd64'", str(list(software.versions)))
    linux = next(name for name in software.versions if name.startswith("linux-image"))
    with TemporaryDirectory() as name:
        folder = Path(name)
        root = unpack([*DEBS.format(xen).split(), linux], folder)
        system = folder / "initrd"
        system.write_bytes(initrd(root, xen, guests, folder))
        log = serial.serial_log(
            software.xen,
            f"{software.linux} console=hvc0 rdinit=/init,{system}",
            "dom0_mem=1G,max:1G",
            memory="8G",
            until="@@ done",
            seconds=SECONDS,
        )
    for guest in guests:
        free = [
            re.search(rf"@@ {key(guest)} {when}\n(?:.*\n)*?free=(\d+)", log)
            for when in ("before", "there")
        ]
        if None in free:
            print(f"{guest}: not measured: {log[-300:]!r}")
            return 1
        before, there = (int(found[1]) for found in free if found)
        kind, mib, vcpus = parts(guest)
        own = before - there - mib * 256
        print(f"{kind} guest of {mib} MiB, {vcpus} vCPUs: {own} pages besides its memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
