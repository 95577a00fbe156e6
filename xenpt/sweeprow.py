# SPDX-License-Identifier: GPL-2.0-or-later
"""One row of a sweep: where it is from, what was asked, what was counted, what was modelled.

The columns are flat, so that a row is the same in JSON Lines, CSV and Parquet; their names are
those of the `plan`, `boot` and `cleanup` JSON objects. Absent is None: nothing is counted of a
guest that does not boot but its plan.
"""

from typing import Any, Final

from xenpt.boottime import BootTime, BootWork
from xenpt.cost import HYPERCALL_TYPES
from xenpt.linux import Boot, Stage
from xenpt.plan import Plan
from xenpt.provenance import commit, cpu_model, version
from xenpt.scenario import Case
from xenpt.timing import TimeModel
from xenpt.xen import build

SCHEMA: Final = 2  # of these columns; raised when one changes its meaning
Row = dict[str, Any]

_IDENTITY: Final = {"schema": int, "xenpt": str, "commit": str, "cpu": str, "input_hash": str}
INPUTS: Final = {
    "group": str, "kernel": str, "init_p2m": bool, "xen": str, "linux": str, "builder": str,
    "p2m_leaf": str, "host_pages": int, "e820": str, "dom0_mem": str, "initrd_bytes": int,
    "memory_pages": int,
}  # fmt: skip
_VERDICT: Final = {"verdict": str, "panic": str, "beyond": str, "nr_pages": int}
_PLAN: Final = (
    "list_bytes", "nr_pt_frames", "nr_p2m_frames", "p2m_tables_l1", "p2m_tables_l2",
    "p2m_tables_l3", "p2m_leaves_4k", "p2m_leaves_2m", "p2m_leaves_1g",
)  # fmt: skip
_CLEANUP: Final = (
    "hypercalls", "update_va_mapping", "set_l2", "set_l3", "set_l4", "unpin",
    "memblock_free_calls", "pages_freed", "pages_leaked", "tables_freed_l1", "tables_freed_l2",
    "tables_freed_l3", "entries_read_l1", "entries_read_l2", "entries_read_l3", "lookup_reads",
)  # fmt: skip
_COUNTS: Final = (
    *_PLAN,
    "boot_hypercalls",
    *(f"boot_{kind}" for kind in HYPERCALL_TYPES),
    *(f"{stage.value}_hypercalls" for stage in Stage),
    *(f"cleanup_{name}" for name in _CLEANUP),
)
RESULTS: Final = _VERDICT | dict.fromkeys(_COUNTS, int)
_MODELLED: Final = {
    "build_seconds_modelled": float,
    "boot_seconds_modelled": float,
    "cleanup_seconds_modelled": float,
}
#: What the modelled seconds are made of: the same in all rows of a sweep.
MODEL: Final = {
    "model_cpi": float, "model_ghz": float, "model_source": str, "model_constants": str,
}  # fmt: skip
#: Of what `measure` found, the work of a boot in operations of the time model.
WORK: Final = "work"
#: Every column in its order, and the type of its values.
COLUMNS: Final[dict[str, type]] = _IDENTITY | INPUTS | RESULTS | _MODELLED | MODEL


def identity() -> Row:
    """What rows have in common that one state of the code computes on one machine."""
    return {"schema": SCHEMA, "xenpt": version(), "commit": commit()}


def list_outside(row: Row) -> bool:
    """Whether the P->M list of this row lies outside of the initial mapping."""
    return bool(row["init_p2m"]) and row["nr_p2m_frames"] != 0


def model_columns(model: TimeModel) -> Row:
    """The columns that say what a time model assumes."""
    return {
        "model_cpi": model.cpi,
        "model_ghz": model.ghz,
        "model_source": model.source,
        "model_constants": model.fingerprint,
    }


def row_of(case: Case, results: Row, model: TimeModel) -> Row:
    """The whole row of a case from what `measure` found, wherever that ran."""
    time = BootTime.of(results[WORK], model)
    return {
        **identity(),
        "cpu": cpu_model(),
        "input_hash": case.input_hash,
        **case.inputs,
        **{name: results[name] for name in RESULTS},
        "build_seconds_modelled": time.build,
        "boot_seconds_modelled": time.linux,
        "cleanup_seconds_modelled": time.stages.get(Stage.P2M_FREE.value),
        **model_columns(model),
    }


def measure(case: Case) -> Row:
    """Build and boot one guest on extents, and count: the columns of RESULTS, and its WORK.

    :raises UsageError: as plan_dom0
    """
    plan = case.plan()
    found: Row = dict.fromkeys(RESULTS)
    found |= {"verdict": "panics", "panic": plan.panic, "nr_pages": plan.nr_pages}
    found |= _plan_counts(plan)
    beyond, work = plan.beyond, BootWork(None, {})
    if not plan.panic:
        boot = Boot(build(plan), rules=case.rules, e820=plan.host.map, check=False).run()
        beyond = tuple(boot.beyond)
        found |= {"verdict": boot.verdict, "panic": boot.panic}
        if boot.verdict == "boots":  # of others, the counts are not those of a boot
            found |= _boot_counts(boot)
            work = BootWork.of(boot)
    found["beyond"] = "; ".join(str(limit["limit"]) for limit in beyond)
    return {name: _plain(found[name], kind) for name, kind in RESULTS.items()} | {WORK: work}


def _plan_counts(plan: Plan) -> Row:
    facts = plan.as_dict()
    counts = {"list_bytes": facts["p2m"] and plan.p2m[1] - plan.p2m[0]}
    for name in ("nr_pt_frames", "nr_p2m_frames", "p2m_tables", "p2m_leaves"):
        if facts[name] is not None:
            counts |= _flat(name, facts[name])
    return counts


def _boot_counts(boot: Boot) -> Row:
    counts = {"boot_hypercalls": boot.cost.hypercalls} | _flat("boot", boot.cost.by_type)
    for result in boot.results:
        counts[f"{result.name}_hypercalls"] = result.cost.hypercalls
    if boot.cleanup is not None:
        counts |= _flat("cleanup", boot.cleanup.as_dict())
        del counts["cleanup_profile"]
    return counts


def _flat(name: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return {name: value}
    return {key: v for k, item in value.items() for key, v in _flat(f"{name}_{k}", item).items()}


def _plain(value: Any, kind: type) -> Any:
    return None if value is None else kind(value)
