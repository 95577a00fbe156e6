# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenpt capacity`: options -> the budget of one host, or of the hosts that guests would need."""

from argparse import Namespace
from typing import Any

from xenpt.capacity import Capacity, GuestGroup, capacity, parse_guests
from xenpt.capacitytexts import capacity_report, fleet_report
from xenpt.errors import UsageError
from xenpt.fleet import Dom0, Option, fleet, read_fleet
from xenpt.inputs.config import Host, read_e820
from xenpt.inputs.kernel import Kernel
from xenpt.largest import largest_dom0
from xenpt.linux import LinuxRules
from xenpt.report import Report
from xenpt.scenario import parse_sizes
from xenpt.vendors import DOM0_RULES

ALL_RULES = "all"
_BY_FILE = ("host", "e820", "guests", "type", "vcpus", "dom0_mem", "dom0_rule", "xen", "bigmem")
Found = tuple[dict[str, Any], Report, bool, list[Capacity]]


def run(options: Namespace, kernel: Kernel, rules: LinuxRules) -> Found:
    """The answer as data and as a report, whether it is a yes, and the budgets that it shows.

    :raises UsageError: options without meaning
    """
    if options.fleet is not None:
        return _fleet(_options_of_file(options, kernel, rules))
    hosts = _hosts(options)
    guests = _guests(options)
    if len(hosts) == 1 and len(_kinds(options)) == 1:
        return _budget(options, hosts[0], guests, kernel, rules)
    if len(guests) != len(_kinds(options)):
        raise UsageError("several hosts or types: give one group of guests, --guests 40x512G")
    found = fleet(hosts, guests, _dom0s(options), kernel=kernel, rules=rules)
    return _fleet(found)


def _budget(
    options: Namespace, host: Host, guests: list[GuestGroup], kernel: Kernel, rules: LinuxRules
) -> Found:
    chosen, *others = (
        capacity(host, kernel=kernel, dom0_mem=dom0_mem, dom0_rule=rule, rules=rules, guests=guests)
        for dom0_mem, rule in _dom0s(options)
    )
    # Xen may ignore some of the host's RAM; dom0's plan knows what is left.
    largest = largest_dom0(kernel, chosen.dom0.host, rules)
    by_rule = [chosen, *others] if others else []
    data = {
        **chosen.as_dict(),
        "largest_dom0": [each.as_dict() for each in largest],
        "dom0_rules": [
            {
                **(each.dom0_rule.as_dict() if each.dom0_rule else {}),
                "dom0_mem": each.dom0.guest.dom0_mem,
                "nr_pages": each.dom0.nr_pages,
                "left": each.left,
            }
            for each in by_rule
        ],
    }
    return data, capacity_report(chosen, largest, by_rule), chosen.fits, by_rule or [chosen]


def _fleet(found: list[Option]) -> Found:
    data = {"options": [option.as_dict() for option in found]}
    fits = all(option.per_host for option in found)
    return data, fleet_report(found), fits, [option.full for option in found]


def _options_of_file(options: Namespace, kernel: Kernel, rules: LinuxRules) -> list[Option]:
    if not options.fleet.endswith(".toml"):
        raise UsageError(f"{options.fleet!r} is no .toml file; give the host by --host")
    given = [name for name in _BY_FILE if getattr(options, name) not in (None, [], False)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{options.fleet} says what to look at: leave out {names}")
    return read_fleet(options.fleet, kernel=kernel, rules=rules)


def _hosts(options: Namespace) -> list[Host]:
    if options.host is not None and options.e820 is not None:
        raise UsageError("--host and --e820 both say what memory the host has: give one")
    common: dict[str, Any] = {"bigmem": options.bigmem}
    if options.xen is not None:
        common["xen"] = options.xen
    if options.e820 is not None:
        return [Host(e820=read_e820(options.e820), **common)]
    if options.host is None:
        raise UsageError("give the host's memory: --host 12T or --e820 FILE")
    return [Host(memory=nr_pages, **common) for nr_pages in parse_sizes(options.host)]


def _kinds(options: Namespace) -> list[str]:
    return ["pvh"] if options.type is None else options.type.split(",")


def _guests(options: Namespace) -> list[GuestGroup]:
    texts = [text for given in options.guests for text in given.split(",")]
    if not texts and (options.type is not None or options.vcpus is not None):
        raise UsageError("--type and --vcpus say what guests are like: give --guests, too")
    vcpus = 1 if options.vcpus is None else options.vcpus
    return [parse_guests(text, kind, vcpus) for kind in _kinds(options) for text in texts]


def _dom0s(options: Namespace) -> list[Dom0]:
    """What sizes dom0; of all rules, the default one first."""
    if options.dom0_mem is not None and options.dom0_rule is not None:
        raise UsageError("--dom0-mem and --dom0-rule both size dom0: give one")
    if options.dom0_rule == ALL_RULES:
        return [(None, name) for name in DOM0_RULES]
    return [(options.dom0_mem, options.dom0_rule)]
