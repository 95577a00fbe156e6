# SPDX-License-Identifier: GPL-2.0-or-later
"""The budget of a host, and of a fleet, as reports."""

from collections.abc import Iterable, Sequence

from xenpt.budget import Row
from xenpt.capacity import Capacity, GuestGroup, KindCost
from xenpt.dom0size import MAX_PAGES
from xenpt.fleet import Option
from xenpt.largest import LargestDom0
from xenpt.report import BAD, GOOD, NOTE, TITLE, Line, Prose, Report, Table
from xenpt.texts import beyond_report
from xenpt.units import GIB_PAGES, MIB_PAGES, format_pages
from xenpt.vendors import GUEST_RULES

ABSENT = "-"
IN_WORDS = {"pv": "PV", "pvh": "PVH", "hvm": "HVM"}


def capacity_report(
    found: Capacity, largest: Sequence[LargestDom0], by_rule: Sequence[Capacity]
) -> Report:
    """One host: where its pages go, what is left, what limits it.

    :param by_rule: the same host with dom0 by each vendor's rule, or nothing
    """
    report: Report = [
        Prose(_title(found), TITLE, indent="  "),
        _budget_table(found.rows, found.nr_pages),
        Line(),
        *_verdict(found),
        Prose(_dom0_in_words(found)),
        Prose(_next_tib(found)),
    ]
    if by_rule:
        report += [Line(), *_rules_table(by_rule)]
    report += _inside(found)
    for group in _alike(found):
        report += [Line(), *_kinds(group, found.kinds(group))]
    report += [Line(), *_largest(largest), *_limits(found)]
    return report


def _title(found: Capacity) -> str:
    build = " with BIGMEM" if found.host.bigmem else ""
    guests = [_group(group) for group in found.guests]
    return f"Host of {format_pages(found.nr_pages)}, Xen {found.host.xen}{build}" + (
        f": {', '.join(guests)}" if guests else ""
    )


def _group(group: GuestGroup) -> str:
    vcpus = f" with {group.vcpus} vCPUs" if group.vcpus > 1 else ""
    size = format_pages(group.nr_pages)
    return f"{group.number:,} x {size} {IN_WORDS[group.kind]}{vcpus}"


def _budget_table(rows: Sequence[Row], nr_pages: int) -> Table:
    cells = [(row.text, row.origin, *_amount(row.pages, nr_pages)) for row in rows]
    cells.append(("all", "", *_amount(nr_pages, nr_pages)))
    styles = [BAD if row.pages < 0 else "" for row in rows] + [TITLE]
    return Table(("", "from", "pages", "GiB", "%"), cells, nr_left=2, styles=styles)


def _amount(pages: int, whole: int) -> tuple[str, str, str]:
    return f"{pages:,}", _gib(pages), f"{100 * pages / whole:.2f}"


def _gib(pages: int) -> str:
    return f"{pages / GIB_PAGES:,.2f}"


def _verdict(found: Capacity) -> Report:
    if found.dom0.panic:
        return [Line(f"Dom0 panics: {found.dom0.panic}", BAD)]
    if found.inside is None:
        return [Line("Dom0 panics in Linux: see xenpt boot", BAD)]
    if found.left < 0:
        return [Line(f"The guests do not fit: {format_pages(-found.left)} too much.", BAD)]
    if not found.guests:
        return []
    report: Report = []
    for group in _alike(found):
        largest = format_pages(found.largest_guest(found.left, group))
        text = f"room for {found.room(group):,} more like them, or for one of {largest}"
        report.append(Prose(f"{_group(group)} fit, with {text}.", GOOD))
    return report


def _alike(found: Capacity) -> list[GuestGroup]:
    """The groups of guests, each kind and size once."""
    return list({(g.nr_pages, g.kind, g.vcpus): g for g in found.guests}.values())


def _dom0_in_words(found: Capacity) -> str:
    option = found.dom0.guest.dom0_mem
    way = f"by dom0_mem={option}" if option is not None else "without dom0_mem"
    rule = found.dom0_rule
    why = f", the rule of {rule.name}: {rule.text} ({rule.source})" if rule else ""
    return f"Dom0 has {format_pages(found.dom0.nr_pages)} {way}{why}."


def _next_tib(found: Capacity) -> str:
    texts = {row.name: row.text.split(",")[0] for row in found.rows}
    texts.setdefault("ignored", "that Xen does not use")
    gone = [
        f"{format_pages(pages)} {texts[name]}"
        for name, pages in found.next_tib.items()
        if pages and name != "left"
    ]
    left = found.next_tib["left"]
    text = f"One more TiB of RAM: {', '.join(gone)}; {format_pages(left)} left"
    for group in _alike(found)[:1] if left else []:
        largest = format_pages(found.largest_guest(left, group))
        text += f", enough for one {IN_WORDS[group.kind]} guest of {largest}"
    return text + "."


def _rules_table(by_rule: Iterable[Capacity]) -> Report:
    cells, sources = [], []
    for each in by_rule:
        rule = each.dom0_rule
        if rule is not None:
            size = "panics" if each.dom0.panic else _gib(each.dom0.nr_pages)
            option = each.dom0.guest.dom0_mem or ABSENT
            cells.append((rule.name, option, size, _gib(each.left)))
            sources.append(
                Prose(f"  {rule.name}: {rule.text} ({rule.source})", NOTE, indent="    ")
            )
    header = ("rule for dom0", "dom0_mem", "dom0, GiB", "left, GiB")
    return [Table(header, cells, nr_left=2), *sources]


def _inside(found: Capacity) -> Report:
    inside = found.inside
    if inside is None:
        return []
    cells = [(row.text, *_amount(row.pages, inside.nr_pages)) for row in inside.rows]
    title = f"Inside dom0, Linux {found.rules.name}, counted"
    report: Report = [Line(), Table((title, "pages", "GiB", "%"), cells)]
    if inside.boot_pages:
        text = f"Until it is copied: {format_pages(inside.boot_pages)} for the initial P->M list."
        report.append(Prose(text, NOTE, indent="  "))
    return report


def _kinds(group: GuestGroup, costs: Sequence[KindCost]) -> Report:
    """What one guest costs as PV, PVH or HVM, and what others reckon for it."""
    cells = []
    for cost in costs:
        inside = cost.inside
        own = [ABSENT] * 3
        if inside is not None:
            own = [
                format_pages(inside.pv_pages),
                format_pages(inside.boot_pages),
                f"{inside.hypercalls:,}",
            ]
        need = cost.need
        cells.append(
            (
                IN_WORDS[cost.kind],
                *map(format_pages, (need.pool, need.slack, need.asked - group.nr_pages)),
                *own,
            )
        )
    header = (
        f"a guest of {format_pages(group.nr_pages)}", "pool", "slack", "xl wants free",
        "tables, list", "in boot only", "hypercalls",
    )  # fmt: skip
    limited: Report = []
    for limit in next((cost.inside.beyond for cost in costs if cost.inside), ()):
        text = f"beyond, as PV: {limit['limit']} {limit['value']:,} ({limit['source']})"
        limited.append(Prose(text, BAD, indent="  "))
    mib = group.nr_pages // MIB_PAGES
    others = "; ".join(
        f"{rule.name} {rule.overhead_mib(mib, group.vcpus, group.kind):,} MiB ({rule.source})"
        for rule in GUEST_RULES
    )
    return [
        Table(header, cells),
        *limited,
        Prose(
            "Besides its memory, the host gives it pool and slack, and xl wants so much to be free "
            "(libxl). Tables, P->M list and hypercalls of its boot are its own, counted; those of "
            "PVH and HVM guests are not modelled.",
            NOTE,
            indent="  ",
        ),
        Prose(f"Others reckon for it as {IN_WORDS[group.kind]}: {others}.", NOTE, indent="  "),
    ]


def _largest(largest: Iterable[LargestDom0]) -> Report:
    report: Report = [Line("Largest dom0 that boots, by search:", TITLE)]
    for each in largest:
        note = "with" if each.init_p2m else "without"
        size = f"{each.nr_pages:,} pages = {format_pages(each.nr_pages)}"
        default = f"{each.default_pages:,} = {format_pages(each.default_pages)}"
        if each.clipped:
            default += " (clipped)"
        ends = f"panics: {each.default_panic}" if each.default_panic else "boots"
        if each.default_pages > MAX_PAGES:
            ends = "would be too large for one domain"
        text = f"{note} INIT_P2M: {size}; without dom0_mem it gets {default} and {ends}"
        report.append(Prose(f"  {text}", indent="    "))
    return report


def _limits(found: Capacity) -> Report:
    """What is passed, and how far it is to the others."""
    ahead = [
        f"{limit.limit}: {format_pages(limit.value)} ({limit.source})"
        for limit in found.limits
        if not limit.passed
    ]
    report = beyond_report(found.beyond)
    if ahead:
        report.append(Line("Limits that hold:", TITLE))
        report += [Prose(f"  {text}", indent="    ") for text in ahead]
    return report


# --- Fleets --------------------------------------------------------------------------------------


def fleet_report(options: Sequence[Option]) -> Report:
    """One row for each way to house the guests."""
    report: Report = []
    for (name, guests), members in _grouped(options).items():
        title = f"{name}: {guests}" if name else guests
        report += [Line(title, TITLE), _fleet_table(members), Line()]
    seen: dict[tuple[str, int, str], list[str]] = {}
    for option in options:
        for limit in option.full.beyond:
            key = (limit["limit"], limit["value"], limit["source"])
            seen.setdefault(key, []).append(format_pages(option.full.nr_pages))
    for (limit_name, value, source), hosts in seen.items():
        where = ", ".join(dict.fromkeys(hosts))
        text = f"beyond, on hosts of {where}: {limit_name} {value:,} ({source})"
        report.append(Prose(text, BAD, indent="  "))
    return [*report, Prose(_FLEET_NOTE, NOTE)]


_FLEET_NOTE = (
    "A host takes so many guests, all of them so many hosts, with so much RAM. Of a full host: "
    "what is neither guests' memory nor left, its share, and what is left. Frame table and M2P are "
    "counted; dom0 and paging pools are by rule."
)


def _grouped(options: Iterable[Option]) -> dict[tuple[str, str], list[Option]]:
    groups: dict[tuple[str, str], list[Option]] = {}
    for option in options:
        size = format_pages(option.guests.nr_pages)
        key = option.name, f"{option.guests.number:,} guests of {size}"
        groups.setdefault(key, []).append(option)
    return groups


def _fleet_table(options: Iterable[Option]) -> Table:
    header = (
        "host", "dom0 by", "as", "dom0", "a host", "hosts", "in all", "overhead", "%", "left",
    )  # fmt: skip
    cells, styles = [], []
    for option in options:
        full, nr_hosts = option.full, option.nr_hosts
        whole = ABSENT if nr_hosts is None else format_pages(nr_hosts * full.nr_pages)
        cells.append(
            (
                format_pages(full.nr_pages) + (", BIGMEM" if full.host.bigmem else ""),
                full.dom0_rule.name if full.dom0_rule else str(full.dom0.guest.dom0_mem),
                IN_WORDS[option.guests.kind],
                "panics" if full.dom0.panic else format_pages(full.dom0.nr_pages),
                f"{option.per_host:,}",
                ABSENT if nr_hosts is None else f"{nr_hosts:,}",
                whole,
                format_pages(full.overhead),
                f"{100 * full.overhead / full.nr_pages:.2f}",
                format_pages(full.left),
            )
        )
        styles.append("" if option.per_host else BAD)
    return Table(header, cells, nr_left=3, styles=styles)
