# SPDX-License-Identifier: GPL-2.0-or-later
"""What a notebook shows of results."""

from html.parser import HTMLParser

import pytest

import xenpt
from xenpt.capacity import capacity
from xenpt.htmltext import as_html
from xenpt.inputs.config import Host
from xenpt.linux import Boot
from xenpt.notebook import as_picture, as_report
from xenpt.report import BAD, TITLE, Line, Prose, Table
from xenpt.xen import build

PLAN = xenpt.plan_dom0(xenpt.default_kernel(), nr_pages=xenpt.pages("1G"))


def results():
    boot = Boot(build(PLAN)).run()
    return {
        "plan": PLAN,
        "boot": boot,
        "cost": boot.cost,
        "sweep": xenpt.sweep(PLAN, nr_pages=xenpt.sizes("1G", "4G")),
        "capacity": capacity(Host(memory=xenpt.pages("64G"))),
    }


RESULTS = results()
#: What is to be read in each, as the command line says it.
SAID = {
    "plan": "Phys-Mach map: 0000008000000000-&gt;0000008000200000",
    "boot": "vmalloc_p2m_tree",
    "cost": "update_va_mapping hypercalls",
    "sweep": "4 GiB",
    "capacity": "frame table, 32 B a page",
}


class Nesting(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        del attrs
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_shows_itself_as_html(name):
    html = RESULTS[name]._repr_html_()
    assert SAID[name] in html
    nesting = Nesting()
    nesting.feed(html)
    assert nesting.open == []


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_has_a_picture(name):
    picture = RESULTS[name].plot()
    assert picture._repr_svg_().startswith("<?xml")


def test_a_guest_of_the_toolstack_is_a_plan_too():
    plan = xenpt.plan_domu(
        xenpt.default_kernel(), Host(superpages="4k"), nr_pages=xenpt.pages("1G")
    )
    assert "The guest has 262,144 pages" in plan._repr_html_()
    assert plan.plot().title == "Memory layout of a guest of 1 GiB"


def test_other_objects_are_not_shown():
    with pytest.raises(TypeError, match="no report of int"):
        as_report(1)
    with pytest.raises(TypeError, match="no picture of int"):
        as_picture(1)


def test_blocks_as_html():
    report = [
        Line("a < b", TITLE),
        Line("c"),
        Line(),
        Prose("d & e", BAD),
        Table(("name", "number"), [("x", "1"), ("<y>", "2")], styles=["", BAD]),
    ]
    assert as_html(report).splitlines() == [
        '<pre><span class="title">a &lt; b</span>',
        "c</pre>",
        '<p><span class="bad">d &amp; e</span></p>',
        "<table>",
        '<thead><tr><th>name</th><th class="number">number</th></tr></thead>',
        "<tbody>",
        '<tr><td>x</td><td class="number">1</td></tr>',
        '<tr class="bad"><td>&lt;y&gt;</td><td class="number">2</td></tr>',
        "</tbody>",
        "</table>",
    ]
