# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures: their numbers, their files, and what is said of their parts."""

import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import xenpt
from xenpt.capacity import GuestGroup, capacity
from xenpt.cost import Cost
from xenpt.errors import UsageError
from xenpt.inputs.config import Host
from xenpt.linux import Boot
from xenpt.occupancy import occupancy
from xenpt.pictures.budgets import budget_picture
from xenpt.pictures.costs import cost_picture
from xenpt.pictures.growth import growth_picture
from xenpt.pictures.heatmap import heatmap_picture, table_start
from xenpt.pictures.inline import inline_svg
from xenpt.pictures.layouts import layout_picture
from xenpt.pictures.picture import drawn, plot_format
from xenpt.pictures.timeline import timeline_picture
from xenpt.timing import time_model
from xenpt.units import pages
from xenpt.xen import build

KERNEL = xenpt.default_kernel()
MODEL = time_model()
PNG = b"\x89PNG\r\n\x1a\n"


def dom0(size, *, kernel=KERNEL, **host):
    return xenpt.plan_dom0(kernel, Host(**host), nr_pages=pages(size))


def booted(size="1G"):
    return Boot(build(dom0(size)), check=False).run()


@pytest.fixture(scope="module")
def pictures():
    """One of each kind."""
    boot = booted()
    sweep = xenpt.sweep(nr_pages=xenpt.sizes("64G", "1T"), p2m_leaf=["4k", "1g"])
    hosts = [capacity(Host(memory=pages(size))) for size in ("1T", "16T")]
    return {
        picture.name: picture
        for picture in (
            growth_picture(sweep),
            layout_picture(dom0("600G")),
            budget_picture(hosts),
            heatmap_picture(occupancy(boot)),
            timeline_picture(boot, MODEL),
            cost_picture(boot.cost),
        )
    }


def rows(picture, **wanted):
    """Rows of a picture's table, as dicts, that have these cells."""
    found = [dict(zip(picture.table.header, row, strict=True)) for row in picture.table.rows]
    return [row for row in found if wanted.items() <= row.items()]


def tips(picture):
    with drawn(picture) as sheet:
        return list(sheet.tips.values())


# --- All of them ---------------------------------------------------------------------------------


def test_there_is_one_of_each_kind(pictures):
    assert set(pictures) == {"cleanup", "layout", "capacity", "tables", "boot", "cost"}


@pytest.mark.parametrize("name", ["cleanup", "layout", "capacity", "tables", "boot", "cost"])
def test_a_picture_says_what_it_shows_and_what_its_numbers_are(pictures, name):
    picture = pictures[name]
    assert set(picture.kinds) <= {"counted", "measured", "modelled"}
    assert "counted" in picture.kinds
    assert picture.caption.endswith(".")
    assert picture.table.rows
    assert {len(row) for row in picture.table.rows} == {len(picture.table.header)}
    if "modelled" in picture.kinds:
        assert "GHz" in picture.caption  # with a modelled second stands what it is made of


@pytest.mark.parametrize("name", ["layout", "cost"])
def test_a_file_is_the_same_each_time(pictures, name, tmp_path):
    picture = pictures[name]
    picture.save(tmp_path / "one.svg")
    picture.save(tmp_path / "two.png")
    svg = (tmp_path / "one.svg").read_bytes()
    assert svg == picture.as_bytes("svg")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in svg
    assert (tmp_path / "two.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["cleanup", "layout", "capacity", "tables", "boot"])
def test_in_a_page_all_ids_are_the_picture_s_own_and_all_colours_the_page_s(pictures, name):
    text = inline_svg(pictures[name], narrow=name == "layout", prefix="here")
    tree = ElementTree.fromstring(text)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(one.startswith("here-") for one in ids)
    referred = {part.split(")")[0] for part in text.split("url(#")[1:]}
    assert referred <= set(ids)
    assert "var(--ink)" in text
    assert "#1b1b1c" not in text
    said = [element.get("data-tip") for element in tree.iter() if element.get("data-tip")]
    assert sorted(said) == sorted(tips(pictures[name]))
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_numbers_in_words_are_not_shortened(pictures):
    """Coordinates have two decimals at most; what is to be read stays as it is."""
    text = inline_svg(pictures["layout"], narrow=False, prefix="here")
    assert ">0.25<" in text
    assert ">2.00<" in text


@pytest.mark.parametrize("name", ["a.pdf", "svg", "a.svg.gz"])
def test_only_svg_and_png_are_written(pictures, name, tmp_path):
    with pytest.raises(UsageError, match=r"the name must end in \.svg or \.png"):
        pictures["cost"].save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert plot_format("A.PNG") == "png"


def test_no_setting_of_matplotlib_is_left_changed(pictures):
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures["cost"].as_bytes("svg")
    assert dict(matplotlib.rcParams) == before


def test_no_window_is_opened():
    """pyplot would choose a back end, and keep each figure."""
    code = (
        "import sys; from xenpt.cost import Cost; Cost(pages_freed=1).plot().as_bytes('svg');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- Growth --------------------------------------------------------------------------------------


def test_growth_shows_the_walk_apart_from_the_whole(pictures):
    """1 TiB: 1024 L1 tables, 2 L2, 1 L3 with 4 KiB leaves; two leaves of 1 GiB in one L3 table."""
    small, large = rows(pictures["cleanup"], memory="1 TiB")
    assert small["entries read"] == f"{1027 * 512:,}"
    assert large["entries read"] == "512"
    with drawn(pictures["cleanup"]) as sheet:
        walk, whole = sheet.figure.axes
    assert (walk.get_title(loc="left"), whole.get_title(loc="left")) == (
        "The walk alone",
        "The whole cleanup",
    )
    assert {walk.get_xscale(), walk.get_yscale(), whole.get_yscale()} == {"log"}
    assert [t.get_text() for t in walk.get_legend().get_texts()] == [
        "4 KiB leaves: 1.00",
        "1 GiB leaves: 0.00",
    ]
    marks = [text.get_text() for text in walk.texts]
    assert marks == ["512 GiB"]  # 12 TiB is outside


def test_series_are_named_by_what_differs():
    sweep = xenpt.sweep(nr_pages=xenpt.sizes("1G", "2G"), linux=["seed", "v6.1"])
    assert [row[0] for row in growth_picture(sweep).table.rows[::2]] == ["Linux seed", "Linux v6.1"]


def test_a_list_in_the_initial_mapping_is_said_to_be_freed_in_one_piece():
    """4 GiB: four L2 entries of the list's 8 MiB, and one of the tables behind it."""
    inside = growth_picture(xenpt.sweep(nr_pages=xenpt.sizes("2G", "4G"), init_p2m=False))
    assert inside.caption.startswith("A list in the initial mapping is freed in one piece")
    assert "leaves" not in inside.caption
    assert rows(inside, memory="4 GiB")[0] == {
        "series": "list in the initial mapping", "memory": "4 GiB", "entries read": "6",
        "hypercalls": "5",
    }  # fmt: skip
    both = growth_picture(xenpt.sweep(nr_pages=xenpt.sizes("2G", "4G"), init_p2m=[True, False]))
    assert "Large leaves make the walk cheap" in both.caption
    assert "freed in one piece" in both.caption


def test_a_sweep_where_nothing_boots_has_no_growth():
    with pytest.raises(UsageError, match="no guest of the sweep boots"):
        growth_picture(xenpt.sweep(nr_pages=pages("600G"), init_p2m=False))


# --- Layout --------------------------------------------------------------------------------------


def test_the_layout_is_that_of_real_xen(pictures):
    """Addresses of the dom0 of 600 GiB that Xen 4.17 printed (tests/golden, k-600g)."""
    [with_note] = rows(pictures["layout"], **{"": "with INIT_P2M", "what": "P->M list"})
    assert with_note["start"] == "0000008000000000"
    assert with_note["end"] == "000000804b000000"
    [kernel] = rows(pictures["layout"], **{"": "with INIT_P2M", "what": "kernel"})
    assert (kernel["start"], kernel["end"]) == ("ffffffff81000000", "ffffffff84a00000")
    [result] = rows(pictures["layout"], **{"": "without INIT_P2M", "what": "result"})
    assert result["size"] == "Not enough RAM for domain 0 allocation"


def test_the_layout_marks_both_limits(pictures):
    with drawn(pictures["layout"]) as sheet:
        [axes] = sheet.figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert "1 GiB: Xen's largest piece" in texts
    assert "2 GiB: end of the address space" in texts
    assert "taken in one piece: 2 GiB" in tips(pictures["layout"])  # of the 1.25 GiB that it needs


def test_a_plan_without_the_note_stands_alone():
    picture = layout_picture(dom0("1G", kernel=replace(KERNEL, init_p2m=None)))
    assert {row[0] for row in picture.table.rows} == {"without INIT_P2M"}


def test_a_guest_of_the_toolstack_needs_no_large_piece():
    plan = xenpt.plan_domu(KERNEL, Host(superpages="4k"), nr_pages=pages("600G"))
    with drawn(layout_picture(plan)) as sheet:
        texts = [text.get_text() for text in sheet.figure.axes[0].texts]
    assert not [text for text in texts if "largest piece" in text]


# --- Budget --------------------------------------------------------------------------------------


def test_the_budget_of_a_host_adds_up(pictures):
    found = rows(pictures["capacity"], host="16 TiB")
    assert sum(int(row["pages"].replace(",", "")) for row in found) == 1 << 32
    [table] = [row for row in found if "frame table" in row["what"]]
    assert (table["GiB"], table["%"]) == ("128.00", "0.78")  # 2**32 x 32 bytes


def test_the_limit_of_support_stands_between_the_hosts(pictures):
    with drawn(pictures["capacity"]) as sheet:
        texts = [text.get_text() for axes in sheet.figure.axes for text in axes.texts]
    assert "no security support beyond 12 TiB" in texts


def test_guests_that_do_not_fit_are_seen():
    found = capacity(Host(memory=pages("1T")), guests=[GuestGroup(2, pages("512G"))])
    with drawn(budget_picture([found])) as sheet:
        texts = [text.get_text() for text in sheet.figure.axes[0].texts]
    assert len([text for text in texts if text.endswith("too much")]) == 1


# --- Page tables, stages, costs ------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, vaddr",
    [((), 0), ((1,), 0x8000000000), ((273,), 0xFFFF888000000000), ((511, 510), 0xFFFFFFFF80000000)],
)
def test_where_a_table_begins(path, vaddr):
    assert table_start(path) == vaddr


def test_the_heat_map_counts_entries(pictures):
    """1 GiB: the list of 2 MiB is one page in one L2 table."""
    before, after = (rows(pictures["tables"], **{"": when})[-1] for when in ("before", "after"))
    assert (before["page, writable"], before["page, freed"]) == ("1", "0")
    assert (after["page, writable"], after["page, freed"]) == ("0", "1")


def test_the_time_line_has_every_stage(pictures):
    boot = booted()
    build, *stages = rows(pictures["boot"])
    assert (build["stage"], build["hypercalls"]) == ("Xen's build", "0")
    assert [row["stage"] for row in stages] == [result.name for result in boot.results]
    calls = [int(row["hypercalls"].replace(",", "")) for row in stages]
    assert calls == [result.cost.hypercalls for result in boot.results]


def test_a_stage_that_was_never_measured_has_no_time():
    """A list inside of the initial mapping: its free is another one than that of the constants."""
    boot = Boot(build(dom0("256M", kernel=replace(KERNEL, init_p2m=None)))).run()
    [free] = rows(timeline_picture(boot, MODEL), stage="p2m_free")
    assert (free["time"], free["in Xen"]) == ("never measured", "never measured")
    assert any(
        "p2m_free, in Xen: never measured" in tip for tip in tips(timeline_picture(boot, MODEL))
    )


def test_nothing_that_ran_is_nothing_to_plot():
    with pytest.raises(UsageError, match="no stage of a boot to plot"):
        timeline_picture(Boot(build(dom0("1G"))), MODEL)
    with pytest.raises(UsageError, match="nothing was counted"):
        cost_picture(Cost())
