# SPDX-License-Identifier: GPL-2.0-or-later
"""How each kind of result is shown: what `Shown` looks up here."""

from functools import singledispatch

from xenpt.arrangement import Plan
from xenpt.boottexts import boot_report
from xenpt.boottime import BootTime, BootWork
from xenpt.capacity import Capacity
from xenpt.capacitytexts import capacity_report
from xenpt.cost import Cost
from xenpt.htmltext import as_html as report_as_html
from xenpt.largest import largest_dom0
from xenpt.linux import Boot
from xenpt.pictures.budgets import budget_picture
from xenpt.pictures.costs import cost_counts, cost_picture
from xenpt.pictures.growth import growth_picture, model_of
from xenpt.pictures.layouts import layout_picture
from xenpt.pictures.picture import Picture
from xenpt.pictures.timeline import timeline_picture
from xenpt.report import Report, Table
from xenpt.sweeptable import Sweep
from xenpt.sweeptexts import sweep_report
from xenpt.texts import plan_report
from xenpt.timing import time_model

_STYLE = """\
.xenpt th, .xenpt td { text-align: left } .xenpt .number { text-align: right }
.xenpt .title { font-weight: bold } .xenpt .bad { color: #c0321f } .xenpt .note { opacity: .7 }"""


def as_html(result: object) -> str:
    """A result as HTML: what the command line prints of it."""
    html = report_as_html(as_report(result))
    return f'<div class="xenpt"><style>{_STYLE}</style>\n{html}\n</div>'


@singledispatch
def as_report(result: object) -> Report:
    """What the command line prints of a result."""
    raise TypeError(f"no report of {type(result).__name__}")


@singledispatch
def as_picture(result: object) -> Picture:
    """The picture of a result."""
    raise TypeError(f"no picture of {type(result).__name__}")


def _boot_report(boot: Boot) -> Report:
    model = time_model()
    return boot_report(boot, boot.beyond, BootTime.of(BootWork.of(boot), model), model)


as_report.register(Plan, plan_report)
as_report.register(Sweep, lambda sweep: sweep_report(sweep, model_of(sweep)))
as_report.register(Boot, _boot_report)
as_report.register(
    Capacity,
    lambda found: capacity_report(
        found, largest_dom0(found.dom0.image, found.dom0.host, found.rules), ()
    ),
)
as_report.register(
    Cost, lambda cost: [Table(("count", "number"), [(n, f"{nr:,}") for n, nr in cost_counts(cost)])]
)
as_picture.register(Plan, layout_picture)
as_picture.register(Sweep, growth_picture)
as_picture.register(Boot, lambda boot: timeline_picture(boot, time_model()))
as_picture.register(Capacity, lambda found: budget_picture([found]))
as_picture.register(Cost, cost_picture)
