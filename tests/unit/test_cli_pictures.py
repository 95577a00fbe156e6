# SPDX-License-Identifier: GPL-2.0-or-later
"""--plot, --trace and `xenpt report` as a user meets them."""

import json
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from xenpt import cli, reportcommand

VOID = {"meta", "link", "input", "br"}


@pytest.fixture
def xenpt(capsys):
    """Run one command in this process: (status, standard output, standard error)."""

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


# --- --plot --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "1G"),
        ("boot", "256M"),
        ("sweep", "--memory", "1G..2G"),
        ("capacity", "--host", "64G"),
        ("capacity", "--host", "1T,2T", "--guests", "4x64G"),
    ],
)
def test_a_plot_comes_beside_the_answer(xenpt, tmp_path, arguments):
    alone = xenpt(*arguments)
    assert xenpt(*arguments, "--plot", tmp_path / "a.svg") == alone
    assert alone[0] == 0
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_plan_that_panics_has_a_plot_too(xenpt, tmp_path):
    status, out, err = xenpt("plan", "600G", "--no-init-p2m", "--plot", tmp_path / "a.png")
    assert (status, err) == (1, "")
    assert "Not enough RAM for domain 0 allocation" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_boot_that_never_begins_has_neither_plot_nor_trace(xenpt, tmp_path):
    files = ("--plot", tmp_path / "a.svg", "--trace", tmp_path / "a.json")
    status, out, err = xenpt("boot", "600G", "--no-init-p2m", *files)
    assert status == 1
    assert out.startswith("panics: dom0 of 600 GiB")
    why = "not written: the guest does not boot: Not enough RAM for domain 0 allocation"
    assert err == f"xenpt: {tmp_path}/a.svg: {why}\nxenpt: {tmp_path}/a.json: {why}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_without_any_boot_says_that_there_is_no_plot(xenpt, tmp_path):
    status, _, err = xenpt("sweep", "--memory", "1T", "--no-init-p2m", "--plot", tmp_path / "a.svg")
    assert status == 1
    why = "no guest of the sweep boots: there is no cost to plot"
    assert err == f"xenpt: {tmp_path}/a.svg: not written: {why}\n"


def test_a_wrong_name_is_said_before_any_work(xenpt, monkeypatch):
    monkeypatch.setattr("xenpt.sweepcommand.run", lambda _: pytest.fail("work was done"))
    status, out, err = xenpt("sweep", "--plot", "a.pdf")
    assert (status, out) == (2, "")
    assert err == "xenpt: plot 'a.pdf': the name must end in .svg or .png\n"


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.parametrize(
    "arguments", [("plan", "1G", "--plot", "a.svg"), ("report", "1G", "-o", "a.html")]
)
def test_without_matplotlib_one_line_names_the_extra(xenpt, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = xenpt(*arguments)
    assert (status, out) == (2, "")
    assert err == "xenpt: matplotlib is not installed: pip install 'xenpt[report]'\n"
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_cannot_be_written_leaves_nothing(xenpt, tmp_path):
    status, out, err = xenpt("plan", "1G", "--plot", tmp_path / "none" / "a.svg")
    assert (status, out) == (2, "")
    assert err == f"xenpt: {tmp_path}/none/a.svg: No such file or directory\n"


# --- --trace -------------------------------------------------------------------------------------


def test_the_trace_is_what_perfetto_reads(xenpt, tmp_path):
    """Chrome's trace event format: complete events X, counters C, names M; microseconds."""
    status, _, err = xenpt("boot", "1G", "--trace", tmp_path / "a.json")
    assert (status, err) == (0, "")
    trace = json.loads((tmp_path / "a.json").read_text())
    assert trace["displayTimeUnit"] == "ms"
    assert "GHz" in trace["otherData"]["times"]
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert all({"ph", "pid", "name", "args"} <= event.keys() for event in events)
    stages = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    assert [stage["name"] for stage in stages] == [
        "Xen's build",
        "setup_kernel_pagetable",
        "memory_setup",
        "init_mem_mapping",
        "paging_init",
        "vmalloc_p2m_tree",
        "p2m_free",
        "remap_memory",
    ]
    for before, after in pairwise(stages):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    parts = [event for event in events if event["ph"] == "X" and event["tid"] in (2, 3)]
    assert sum(part["dur"] for part in parts) == pytest.approx(sum(s["dur"] for s in stages))
    # 512 frames of list and 2 tables of it, freed one by one: the counts of the stage itself.
    free = next(stage for stage in stages if stage["name"] == "p2m_free")
    assert free["args"]["by_type"]["update_va_mapping"] == 514


# --- xenpt report --------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page is made of; every element is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def few(monkeypatch):
    """Fewer sizes beside the guest's own, for speed."""
    monkeypatch.setattr(reportcommand, "SWEEP", ("1G", "2G"))
    monkeypatch.setattr(reportcommand, "LAYOUTS", ("64G",))
    monkeypatch.setattr(reportcommand, "HOSTS", ("1T",))


@pytest.mark.usefixtures("few")
def test_the_page_is_one_file_with_five_pictures(xenpt, tmp_path):
    path = tmp_path / "report.html"
    assert xenpt("report", "1G", "-o", path) == (0, "", "")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert page.tags.count("section") == 5
    assert len(page.ids) == len(set(page.ids))
    own = {f"#{one}" for one in page.ids}
    assert {link for link in page.links if link not in own} == {"data:,"}  # no icon is asked for
    for word in ("http://", "https://"):
        assert word not in text.replace("http://www.w3.org/", "")
    assert len(text) < 1_500_000


@pytest.mark.usefixtures("few", "without_matplotlib")
def test_the_same_as_data(xenpt):
    status, out, err = xenpt("report", "1G", "--json")
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert data["memory_pages"] == 1 << 18
    names = {picture["section"] for picture in data["pictures"]}
    assert names == {"cleanup", "layout", "capacity", "tables", "boot"}
    chosen = {tuple(p["chosen"]) for p in data["pictures"] if p["section"] == "capacity"}
    assert chosen == {
        (guests, xen) for guests in ("PVH", "PV") for xen in ("as usual", "with BIGMEM")
    }


@pytest.mark.usefixtures("few", "without_matplotlib")
def test_a_guest_that_panics_has_a_page_without_its_boot(xenpt):
    status, out, _ = xenpt("report", "600G", "--no-init-p2m", "--json")
    assert status == 0
    names = {picture["section"] for picture in json.loads(out)["pictures"]}
    assert names == {"cleanup", "layout", "capacity"}


@pytest.mark.usefixtures("few", "without_matplotlib")
@pytest.mark.parametrize(
    "options",
    [
        ("--builder", "toolstack"),
        ("--linux", "seed", "--xen", "4.4"),  # no BIGMEM yet; Linux's tables are not known
        ("--host", "8G", "--initrd", "1000000"),
        ("--p2m-leaf", "4k", "--guests", "2G"),
    ],
)
def test_every_kind_of_guest_has_a_page(xenpt, options):
    status, out, err = xenpt("report", "1G", *options, "--json")
    assert (status, err) == (0, "")
    names = {picture["section"] for picture in json.loads(out)["pictures"]}
    assert names == {"cleanup", "layout", "capacity", "tables", "boot"}


def test_a_page_is_not_thrown_at_a_terminal(xenpt):
    status, out, err = xenpt("report")
    assert (status, out) == (2, "")
    assert err == "xenpt: the page needs a file: -o report.html, or -o - for a pipe\n"
