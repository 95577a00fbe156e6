# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of a boot as Chrome's trace events, which Perfetto and chrome://tracing open."""

from typing import Any, Final

from xenpt.boottime import stage_times
from xenpt.errors import UsageError
from xenpt.linux import Boot
from xenpt.provenance import commit, version
from xenpt.timing import TimeModel

_BOOT: Final = 1  # the process id of all events
_TRACKS: Final = {1: "stages", 2: "in Linux", 3: "in Xen"}


def chrome_trace(boot: Boot, model: TimeModel) -> dict[str, Any]:
    """A JSON object in Chrome's trace event format; times in microseconds, modelled.

    Each stage is an event with its counts as arguments, and has its part in Linux and its part in
    Xen below it, one behind the other, though in truth they alternate with every hypercall. A
    stage whose time was never measured takes none, and says so.

    :raises UsageError: no stage was run
    """
    times = stage_times(boot, model)
    if not times:
        raise UsageError(f"no stage of a boot to trace: {boot.panic or 'none was run'}")
    plan = boot.domain.plan
    name = f"Linux {boot.rules.name} on Xen {plan.host.xen}, {plan.nr_pages} pages"
    events = [_named("process_name", 0, name)]
    events += [_named("thread_name", track, text) for track, text in _TRACKS.items()]
    at, calls = 0.0, 0
    for time in times:
        linux, xen = (time.linux or 0.0) * 1e6, (time.xen or 0.0) * 1e6
        counts = time.cost.as_dict() | {"timed": time.seconds is not None}
        events.append(_event(time.name, 1, at, linux + xen, counts))
        events.append(_event(time.name, 2, at, linux))
        events.append(_event(time.name, 3, at + linux, xen, time.cost.by_type))
        at += linux + xen
        calls += time.cost.hypercalls
        count = {"ph": "C", "pid": _BOOT, "ts": at, "name": "hypercalls", "args": {"all": calls}}
        events.append(count)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"xenpt": version(), "commit": commit(), "times": model.in_words()},
    }


def _named(kind: str, track: int, text: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _BOOT, "tid": track, "name": kind, "args": {"name": text}}


def _event(
    name: str, track: int, at: float, duration: float, counts: dict[str, Any] | None = None
) -> dict[str, Any]:
    event = {"ph": "X", "pid": _BOOT, "tid": track, "name": name, "cat": "modelled"}
    return event | {"ts": at, "dur": duration, "args": counts or {}}
