# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the engine beside its peers and the machine's limits; write docs/performance.md.

    python benchmarks/run.py [--output docs/performance.md] [--check] [--part NAME]

Every ratio is of figures of the same rounds. --check ends with status 1 if a floor does not hold.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from guests import FIRST_MFN, FLAGS, direct_map, spread
from measure import Step, Variant, rounds
from peers import Loop, NumPy, NumPyInPlace, Peer, PlainPython, Words, limit, numba_peer
from report import COMMANDS, render
from vol3 import volatility_rate

from xenpt import _core
from xenpt.abi import PTE_RW
from xenpt.engine import mark_read_only
from xenpt.extents import Mapping
from xenpt.image import Pages, PageTableImage, materialise, new_arena
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import Boot
from xenpt.p2m import P2M
from xenpt.plan import plan_dom0
from xenpt.stream import StreamResult, stream
from xenpt.xen.dom0 import build

MEMORY_PTES = 1 << 26  # 512 MiB of leaf tables: beyond any cache but the largest
CHUNK_WORDS = 8 * 512  # as the engine's window
NUMPY_WORDS = 1 << 16  # NumPy's best chunk: its calls cost more than a window
LIMITS = ("read", "write", "rmw")
SIZES_TIB = (1 / 256, 1 / 16, 1, 12, 64)  # four decades and more
NATIVE = Path("build/native")
Rates = dict[str, float]


def in_memory() -> Rates:
    """Gpte/s of each step over 512 MiB of tables in one arena that was touched before."""
    mapping, p2m = direct_map(MEMORY_PTES)
    image = materialise(mapping, p2m, arena=new_arena(mapping.nr_tables()))
    tables = image.tables(1)
    leaf_words = image.pages[tables[0] : tables[-1] + 1].reshape(-1)
    pieces = np.zeros((len(tables), 6), np.uint64)
    pieces[:, 0], pieces[:, 2], pieces[:, 4], pieces[:, 5] = tables, 512, 1, FLAGS
    pieces[:, 3] = FIRST_MFN + np.arange(len(tables)) * 512
    ranges = {k: (spread(MEMORY_PTES, k) + FIRST_MFN).view(np.uint64) for k in (1, 1024)}
    build = partial(_core.fill, image.pages, pieces)
    one = partial(Variant, entries=MEMORY_PTES)
    variants = [
        *(one(f"limit {step}", run=partial(limit, step, leaf_words)) for step in LIMITS),
        one("engine build", run=build),
        one("engine walk", run=partial(_walk, image), prepare=build),
    ]
    for k, r in ranges.items():
        run = partial(_core.mark, image.pages, tables, 1, r, PTE_RW, 0)
        variants.append(one(f"engine mark {k}", run=run, prepare=build))
    done = rounds(variants, 7)
    assert done["engine walk"].result == 1
    assert done["engine mark 1"].result == spread(MEMORY_PTES, 1)[0, 1]
    for peer in [Loop(), NumPy(), *filter(None, [numba_peer()])]:
        done |= rounds(_steps(peer, leaf_words, ranges, build), 2)
    small = leaf_words[: 1 << 17]
    done |= rounds(_steps(PlainPython(), small, {1: ranges[1]}, build), 2)
    return {name: variant.rate for name, variant in done.items()}


def _walk(image: PageTableImage) -> int:
    return len(image.walk().leaves)


def _steps(peer: Peer, leaves: Words, ranges: dict[int, Words], build: Step) -> list[Variant]:
    """A peer's steps over the same words, after one call of each that compiles it."""
    warm = np.ones(512, np.uint64)
    peer.fused(warm, 1, FIRST_MFN, FLAGS, ranges[1])
    one = partial(Variant, entries=leaves.size)
    steps = [one(f"{peer.name} build", run=partial(peer.build, leaves, FIRST_MFN, FLAGS))]
    for k, r in ranges.items():
        steps.append(one(f"{peer.name} mark {k}", run=partial(peer.mark, leaves, r), prepare=build))
    return [*steps, one(f"{peer.name} walk", run=partial(peer.walk, leaves), prepare=build)]


def in_cache() -> Rates:
    """Gpte/s of all steps together over one chunk again and again; the limits of memory beside."""
    memory = new_arena(MEMORY_PTES // 512).reshape(-1)
    memory[:] = 1
    buffer = new_arena(NUMPY_WORDS // 512).reshape(-1)
    window = buffer[:CHUNK_WORDS]
    guest, smaller = direct_map(MEMORY_PTES), direct_map(MEMORY_PTES // 4)
    arena = new_arena(smaller[0].nr_tables())
    rates: Rates = {}
    for k in (1, 1024):
        ranges = spread(MEMORY_PTES, k)
        mfns = (ranges + FIRST_MFN).view(np.uint64)
        variants = [
            Variant(f"limit {step}", MEMORY_PTES, partial(limit, step, memory)) for step in LIMITS
        ]
        for nr in (1, 2):
            run = partial(stream, *guest, pfn_ranges=ranges, threads=nr)
            variants.append(Variant(f"stream {k} threads {nr}", MEMORY_PTES, run))
        if k == 1:
            run = partial(_materialised, *smaller, arena)
            variants.append(Variant("materialised", MEMORY_PTES // 4, run))
        for peer in [Loop(), NumPyInPlace(), *filter(None, [numba_peer()])]:
            chunk = buffer if isinstance(peer, NumPy) else window
            words = MEMORY_PTES // (8 if k == 1 else 32)
            peer.fused(chunk, 1, FIRST_MFN, FLAGS, mfns)
            run = partial(peer.fused, chunk, words // chunk.size, FIRST_MFN, FLAGS, mfns)
            variants.append(Variant(f"{peer.name} {k}", words, run))
        done = rounds(variants, 9 if k == 1 else 3)
        found = done[f"stream {k} threads 1"].result
        assert isinstance(found, StreamResult)
        assert found.changed == int((ranges[:, 1] - ranges[:, 0]).sum())
        rates = {name: variant.rate for name, variant in done.items()} | rates
    return rates


def threads() -> Rates:
    """Gpte/s of a stream of 4 TiB by one thread and by two, in turn: long enough to start them."""
    nr_pages = 1 << 30
    mapping, p2m = direct_map(nr_pages, chunk=1 << 18)
    ranges = spread(nr_pages, 1)
    variants = [
        Variant(str(nr), nr_pages, partial(stream, mapping, p2m, pfn_ranges=ranges, threads=nr))
        for nr in (1, 2)
    ]
    return {name: variant.rate for name, variant in rounds(variants, 25).items()}


def _materialised(mapping: Mapping, p2m: P2M, arena: Pages) -> None:
    image = materialise(mapping, p2m, arena=arena)
    image.mark_read_only(spread(mapping.nr_pages, 1), p2m)
    image.walk()


def scattered() -> Rates:
    """Figures of host memory in pieces: 16M pages in random order of chunks."""
    rates: Rates = {}
    for chunk in (512, 1):
        nr = 1 << 24
        order = np.random.default_rng(1).permutation(nr // chunk)
        mfn = (order[:, None] * chunk + np.arange(chunk)).ravel().astype(np.uint64)
        p2m = P2M.from_list(mfn)
        m2p = p2m.m2p()
        pages = new_arena(nr // 512)
        tables = np.arange(len(pages))
        again = partial(_fill_from_list, pages, mfn)
        again()
        pfns = spread(nr, 16)
        mfns = p2m.mfn_ranges(pfns).view(np.uint64)
        rows = np.zeros((len(p2m.runs), 4), np.uint64)
        gather = (pages, tables, m2p, pfns.view(np.uint64), PTE_RW, 0)
        mark = (pages, tables, 1, mfns, PTE_RW, 0)
        done = rounds(
            [
                Variant(f"gather {chunk}", nr, partial(_core.mark_gather, *gather), again),
                Variant(f"mark {chunk}", nr, partial(_core.mark, *mark), again),
                Variant(f"list to runs {chunk}", nr, partial(_core.list_runs, mfn, rows)),
            ],
            3,
        )
        assert done[f"list to runs {chunk}"].result == len(p2m.runs)
        hits = int((pfns[:, 1] - pfns[:, 0]).sum())
        assert done[f"gather {chunk}"].result == done[f"mark {chunk}"].result == hits
        rates |= {name: variant.rate for name, variant in done.items()}
    return rates


def _fill_from_list(pages: Pages, mfn: Words) -> None:
    np.left_shift(mfn, 12, out=pages.reshape(-1))
    pages |= np.uint64(FLAGS)


def whole_guest(tib: float, engine: str, threads: int) -> Rates:
    """Seconds and peak MiB of one guest in host memory of 1 GiB chunks, in a process of its own."""
    nr_pages = int(tib * (1 << 28)) // 512 * 512
    mapping, p2m = direct_map(nr_pages, chunk=1 << 18)
    ranges = spread(nr_pages, 1)
    leaves, mfns = p2m.to_mfn(mapping.leaves), p2m.mfn_ranges(ranges)
    best = float("inf")
    for _ in range(1 if engine == "stream" else 10):
        start = time.perf_counter()
        if engine == "stream":
            stream(mapping, p2m, pfn_ranges=ranges, threads=threads)
        else:
            mark_read_only(leaves, mfns)
        best = min(best, time.perf_counter() - start)
    return {"seconds": best, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def stages() -> Rates:
    """Milliseconds of all stages of a 64 TiB boot on extents: the engine's time, the best of 20."""
    domain = build(plan_dom0(default_kernel(), nr_pages=1 << 34))
    best = float("inf")
    for _ in range(20):
        boot = Boot(domain)
        start = time.perf_counter()
        boot.run()
        best = min(best, time.perf_counter() - start)
    assert boot.cleanup is not None
    assert boot.cleanup.cost.pages_freed == (1 << 25) + 1  # the list in 1 GiB leaves, and its L3
    return {"ms": best * 1000}


def command(*arguments: str) -> Rates:
    """Seconds and peak MiB of a whole `xenpt` command, from its start to its end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "xenpt", *arguments], stdout=subprocess.DEVNULL, check=True
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def build_native() -> None:
    """The package once more, compiled for this very processor."""
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--force", "--build-base", str(NATIVE),
         "--build-lib", str(NATIVE / "lib")],
        env=os.environ | {"CFLAGS": "-march=native"}, capture_output=True, check=True,
    )  # fmt: skip


def child(part: str, *arguments: str, simd: str = "", native: bool = False) -> Any:
    """Run one part in a process of its own, perhaps with a forced instruction set."""
    command = [sys.executable, __file__, "--part", part, *arguments]
    environ = os.environ | ({"XENPT_SIMD": simd} if simd else {})
    environ |= {"PYTHONPATH": str((NATIVE / "lib").absolute())} if native else {}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{part} {simd}: {done.stderr.strip().splitlines()[-1]}\n")
        return None
    return json.loads(done.stdout)


PARTS: dict[str, Callable[..., Any]] = {
    "memory": in_memory,
    "cache": in_cache,
    "threads": threads,
    "scattered": scattered,
    "volatility": volatility_rate,
    "stages": stages,
    "command": command,
    "guest": lambda tib, engine, threads: whole_guest(float(tib), engine, int(threads)),
    "simd": _core.simd,
}


def measure() -> dict[str, Any]:
    """All parts, each in a process of its own; missing peers are null."""
    found: dict[str, Any] = {"machine": machine()}
    for part in ("memory", "cache", "threads", "stages", "scattered", "volatility"):
        sys.stderr.write(f"{part} ...\n")
        found[part] = child(part)
    for simd in ("v3", "baseline"):
        sys.stderr.write(f"cache, {simd} ...\n")
        found[f"cache {simd}"] = child("cache", simd=simd)
    sys.stderr.write("cache, -march=native ...\n")
    build_native()
    found["cache native"] = child("cache", native=True)
    found["commands"] = {}
    for line in COMMANDS:
        sys.stderr.write(f"xenpt {line} ...\n")
        found["commands"][line] = child("command", *line.split())
    guests = [(tib, engine, 1) for engine in ("stream", "extents") for tib in SIZES_TIB]
    guests += [(64, "stream", 2)]
    found["guests"] = []
    for tib, engine, threads in guests:
        sys.stderr.write(f"{tib} TiB, {engine}, {threads} ...\n")
        figures = child("guest", str(tib), engine, str(threads))
        found["guests"].append({"tib": tib, "engine": engine, "threads": threads} | figures)
    return found


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    compiler = os.environ.get("CC", "cc")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return {
        "processor": f"{model}, {os.cpu_count()} CPUs",
        "instruction set": _core.simd(),
        "load before": " ".join(f"{n:.1f}" for n in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": version.stdout.splitlines()[0],
        "Python": f"{platform.python_version()}, NumPy {np.__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main() -> int:
    """Run all parts, or one of them and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write the page there, too")
    parser.add_argument("--check", action="store_true", help="status 1 if a floor does not hold")
    parser.add_argument("--part", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        sys.stdout.write(json.dumps(PARTS[options.part[0]](*options.part[1:])))
        return 0
    found = measure()
    page, missed = render(found)
    sys.stdout.write(page)
    if options.output:
        options.output.write_text(page, encoding="utf-8")
    return int(options.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
