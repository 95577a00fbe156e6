# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of a sweep against SPEC F7's worked examples; columns, growth, files, other libraries."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import xenpt
from xenpt import cli
from xenpt.errors import MissingExtraError, UsageError
from xenpt.linux import SEED, Stage, free_initial_p2m
from xenpt.sweeprow import COLUMNS, INPUTS, RESULTS
from xenpt.sweeptable import QUANTITIES, Sweep
from xenpt.timing import time_model

GIB = 1 << 18  # pages


@pytest.fixture(scope="module")
def table():
    """1, 2, 4 and 8 GiB in two leaf sizes."""
    return xenpt.sweep(nr_pages=xenpt.sizes("1G", "8G"), p2m_leaf=["4k", "1g"], linux="seed")


def made_up(*rows, **columns):
    """A Sweep of rows that have these values; what is not named is absent."""
    empty = dict.fromkeys(COLUMNS)
    return Sweep(tuple({**empty, "memory_pages": 1, **columns, **row} for row in rows))


# --- Rows ----------------------------------------------------------------------------------------


def test_worked_examples():
    """SPEC F7: 4 GiB of the mail's kernel; B9: 2 MiB leaves, tables T3, T2, T1 = 1, 1, 0."""
    (row,) = xenpt.sweep(nr_pages=4 * GIB, linux="seed").rows
    assert row["cleanup_hypercalls"] == 2051
    assert row["cleanup_update_va_mapping"] == row["cleanup_pages_freed"] == 2050
    assert (row["cleanup_entries_read_l3"], row["cleanup_entries_read_l2"]) == (1023, 512)
    assert (row["p2m_leaves_1g"], row["p2m_leaves_2m"], row["p2m_leaves_4k"]) == (0, 4, 0)
    assert (row["list_bytes"], row["nr_p2m_frames"]) == (8 << 20, 2050)
    assert (row["verdict"], row["panic"], row["beyond"]) == ("boots", None, "")
    assert (row["p2m_leaf"], row["builder"], row["memory_pages"]) == ("1g", "dom0", 4 * GIB)
    (row,) = xenpt.sweep(nr_pages=1024 * GIB, p2m_leaf="4k", linux="v6.1").rows
    assert row["cleanup_hypercalls"] == 526342


def test_stages_sum_up_to_the_boot(table):
    stages = [f"{stage.value}_hypercalls" for stage in Stage]
    types = ["mmu_update", "update_va_mapping", "mmuext_op", "memory_op", "multicall"]
    for row in table.rows:
        assert sum(row[name] for name in stages) == row["boot_hypercalls"]
        assert sum(row[f"boot_{kind}"] for kind in types) == row["boot_hypercalls"]


def test_row_speaks_for_itself(table):
    for row in table.rows:
        assert list(row) == list(COLUMNS)
        assert (row["schema"], row["xenpt"]) == (2, xenpt.__version__)
        assert row["cpu"]
        assert int(row["input_hash"], 16) >= 0
        assert len(row["input_hash"]) == 16
        assert (row["model_cpi"], row["model_ghz"]) == (1, 3)
        assert int(row["model_constants"], 16) > 0
    assert len({row["input_hash"] for row in table.rows}) == 8


def test_cleanup_columns_are_all_of_the_cleanup_object():
    plan = xenpt.plan_dom0(xenpt.default_kernel(), nr_pages=GIB)
    names = set()
    for name, value in free_initial_p2m(xenpt.build(plan), rules=SEED).as_dict().items():
        names |= {f"{name}_{key}" for key in value} if isinstance(value, dict) else {name}
    found = {name.removeprefix("cleanup_") for name in RESULTS if name.startswith("cleanup_")}
    assert found == names - {"profile"}


def test_panic_is_a_row_without_counts_of_a_boot():
    """Real Xen 4.17: this kernel without the note boots with 473 GiB, not with 474."""
    table = xenpt.sweep(nr_pages=[473 * GIB, 474 * GIB], init_p2m=False)
    boots, panics = table.rows
    assert (boots["verdict"], boots["init_p2m"]) == ("boots", False)
    assert panics["verdict"] == "panics"
    assert panics["panic"] == "Not enough RAM for domain 0 allocation"
    assert (panics["boot_hypercalls"], panics["cleanup_hypercalls"]) == (None, None)
    assert boots["cleanup_seconds_modelled"] is None  # the constant is of a list outside
    assert table["cleanup_hypercalls"].mask.tolist() == [False, True]
    assert table["panic"].tolist() == [None, panics["panic"]]


def test_toolstack_maps_the_list_by_4_kib():
    """SPEC C: 128 GiB are 65536 pages of list, 128 L1, 1 L2 and 1 L3 table."""
    (row,) = xenpt.sweep(nr_pages=128 * GIB, builder="toolstack").rows
    assert (row["builder"], row["p2m_leaf"], row["verdict"]) == ("toolstack", "4k", "boots")
    assert row["cleanup_update_va_mapping"] == 65536 + 128 + 1 + 1
    assert [row[f"cleanup_tables_freed_{level}"] for level in ("l1", "l2", "l3")] == [128, 1, 1]


def test_limit_that_is_passed_is_named():
    """The mail's kernel uses at most 500 GiB: MAX_DOMAIN_PAGES."""
    table = xenpt.sweep(nr_pages=[500 * GIB, 501 * GIB], linux="seed")
    assert [bool(row["beyond"]) for row in table.rows] == [False, True]


def test_profile_with_a_change():
    """Its name says what was changed, and is a value of the axis."""
    names = ["v6.1", "v6.1+unpin_relocated=no"]
    table = xenpt.sweep(nr_pages=GIB, linux=names)
    assert [row["linux"] for row in table.rows] == names
    assert len(table.series) == 2


# --- What to sweep -------------------------------------------------------------------------------


def test_sweep_of_a_plan_takes_the_rest_from_it():
    host = xenpt.Host(memory="2 TiB", superpages="2m", xen="4.14")
    plan = xenpt.plan_dom0(xenpt.default_kernel(), host, nr_pages=64 * GIB, initrd_bytes=5000)
    table = xenpt.sweep(plan, nr_pages=xenpt.sizes("64 GiB", "256 GiB"))
    assert [row["nr_pages"] for row in table.rows] == [64 * GIB, 128 * GIB, 256 * GIB]
    for row in table.rows:
        assert (row["xen"], row["p2m_leaf"], row["initrd_bytes"]) == ("4.14", "2m", 5000)
        assert (row["host_pages"], row["kernel"]) == (2 << 28, "default")
    (same,) = xenpt.sweep(plan).rows
    assert same == table.rows[0]


def test_memory_is_innermost_and_equal_cases_are_one():
    table = xenpt.sweep(nr_pages=[GIB, 2 * GIB, GIB], p2m_leaf=["1g", "auto", "4k"])
    assert [(row["p2m_leaf"], row["nr_pages"]) for row in table.rows] == [
        ("1g", GIB), ("1g", 2 * GIB), ("4k", GIB), ("4k", 2 * GIB),
    ]  # fmt: skip


def test_kernels_are_told_apart_by_their_facts():
    default = xenpt.default_kernel()
    other = replace(default, init_p2m=default.init_p2m + (1 << 39))
    table = xenpt.sweep(nr_pages=GIB, kernel=[default, other, ("mine", other)])
    names = [row["kernel"] for row in table.rows]
    assert (names[0], names[2]) == ("default", "mine")
    assert names[1].startswith("kernel ")
    assert len({row["input_hash"] for row in table.rows}) == 3


@pytest.mark.parametrize(
    "axes, reason",
    [
        ({}, "the size of dom0 depends on the host"),
        ({"nr_pages": []}, "axis nr_pages: no value"),
        ({"nr_pages": GIB, "cpus": 3}, "unknown axis 'cpus'"),
        ({"nr_pages": GIB, "linux": "v2.6"}, "Linux profile 'v2.6': expected one of"),
        ({"nr_pages": GIB, "p2m_leaf": "64k"}, "leaf size '64k'"),
        ({"nr_pages": GIB, "builder": "qemu"}, "builder 'qemu': expected dom0 or toolstack"),
        ({"nr_pages": GIB, "xen": "2.0"}, "2.0"),
        ({"nr_pages": 0}, "a dom0 of 0 pages"),
        ({"builder": "toolstack"}, "a guest of no pages"),
        ({"nr_pages": GIB, "builder": "toolstack", "p2m_leaf": "1g"}, "by 4k only"),
        ({"dom0_mem": "8G", "host_pages": GIB, "builder": "toolstack"}, "no host, dom0_mem"),
        ({"dom0_mem": "8X", "host_pages": GIB}, "dom0_mem '8X'"),
    ],
)
def test_values_without_meaning(axes, reason):
    with pytest.raises(UsageError, match=reason):
        xenpt.sweep(**axes)


def test_cases_take_no_axes(tmp_path):
    (tmp_path / "a.toml").write_text('memory = "1G"')
    cases = xenpt.read_scenario(tmp_path / "a.toml")
    assert len(xenpt.sweep(cases)) == 1
    with pytest.raises(UsageError, match="leave out nr_pages"):
        xenpt.sweep(cases, nr_pages=GIB)


# --- Columns and growth --------------------------------------------------------------------------


def test_columns_are_numpy_arrays_of_one_type_each(table):
    assert list(table.columns) == list(COLUMNS)
    for name, kind in COLUMNS.items():
        column = table.columns[name]
        assert isinstance(column, np.ndarray)
        assert column.dtype.kind == {int: "i", float: "f", bool: "b", str: "U"}[kind]
        assert column.tolist() == [row[name] for row in table.rows]
    assert table["nr_pages"].dtype == np.int64
    assert len(table) == 8


def test_growth_of_powers_is_their_exponent():
    sizes = [GIB << i for i in range(5)]
    table = made_up(
        *({"nr_pages": n, "memory_pages": n, "cleanup_hypercalls": n**2} for n in sizes),
        boot_hypercalls=7,
    )
    found = table.exponents()
    assert found["cleanup_hypercalls"] == pytest.approx(2)
    assert found["boot_hypercalls"] == pytest.approx(0)
    assert found["entries_walked"] is None
    assert found.keys() == QUANTITIES.keys()


def test_growth_is_the_least_squares_slope():
    """log2: x = 0, 1, 2, y = 0, 1, 4; slope = sum((x - 1)(y - 5/3)) / sum((x - 1)^2) = 4 / 2."""
    rows = [{"nr_pages": 1 << x, "boot_hypercalls": 1 << y} for x, y in ((2, 4), (0, 0), (1, 1))]
    assert made_up(*rows).exponents()["boot_hypercalls"] == pytest.approx(2)
    assert made_up(*rows).exponents(nr_largest=2)["boot_hypercalls"] == pytest.approx(3)


def test_growth_leaves_out_what_does_not_boot():
    rows = [{"nr_pages": n, "boot_hypercalls": m} for n, m in ((1, 1), (2, 2), (4, None))]
    assert made_up(*rows).exponents()["boot_hypercalls"] == pytest.approx(1)
    assert made_up(*rows).exponents(nr_largest=2)["boot_hypercalls"] == pytest.approx(1)
    assert made_up(*rows[1:]).exponents()["boot_hypercalls"] is None
    assert made_up(rows[0], rows[0]).exponents()["boot_hypercalls"] is None


def test_series_and_growth_of_a_real_sweep(table):
    """SPEC F7: one hypercall for each of N/512 pages of list: linear; the walk of it, too."""
    assert [{row["p2m_leaf"] for row in one.rows} for one in table.series] == [{"4k"}, {"1g"}]
    assert [one["nr_pages"].tolist() for one in table.series] == [[GIB << i for i in range(4)]] * 2
    small, large = table.growth()
    assert (small["p2m_leaf"], small["nr_rows"]) == ("4k", 4)
    assert small["exponents"]["cleanup_hypercalls"] == pytest.approx(1, abs=0.01)
    # Counted: 512 + 511 T2 + 512 T2 + N/512 entries, T2 = 1; the first terms do not grow.
    walked = [512 + 511 + 512 + 512 * (1 << i) for i in range(4)]
    assert table.series[0].quantity("entries_walked").tolist() == walked
    assert large["exponents"]["entries_walked"] == pytest.approx(0)


def test_size_of_the_host_is_the_size_of_a_series_where_no_other_is_given():
    table = xenpt.sweep(host_pages=[64 * GIB, 128 * GIB], dom0_mem=["10%", "20%"])
    assert [len(one) for one in table.series] == [2, 2]


# --- Files and other libraries -------------------------------------------------------------------


def test_json_lines_and_csv_hold_every_row(table):
    lines = table.as_json_lines().splitlines()
    assert [json.loads(line) for line in lines] == list(table.rows)
    cells = list(csv.reader(io.StringIO(table.as_csv())))
    assert cells[0] == list(COLUMNS)
    assert len(cells) == 9
    first = dict(zip(*cells[:2], strict=True))
    assert (first["nr_pages"], first["init_p2m"], first["panic"]) == (str(GIB), "true", "")
    assert float(first["cleanup_seconds_modelled"]) == table.rows[0]["cleanup_seconds_modelled"]


def test_files_are_written_whole(table, tmp_path):
    table.to_csv(tmp_path / "a.csv")
    table.to_json_lines(tmp_path / "a.jsonl")
    assert (tmp_path / "a.csv").read_text() == table.as_csv()
    assert (tmp_path / "a.jsonl").read_text() == table.as_json_lines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.jsonl"]


def needs(module):
    return pytest.importorskip(module, reason=f"needs {module}: pip install 'xenpt[data]'")


def test_parquet_and_arrow(tmp_path):
    parquet = needs("pyarrow.parquet")
    table = xenpt.sweep(nr_pages=[GIB, 474 * GIB], init_p2m=False)
    table.to_parquet(tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == list(table.rows)


def test_pandas():
    needs("pandas")
    table = xenpt.sweep(nr_pages=[GIB, 474 * GIB], init_p2m=False)
    frame = table.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["nr_pages"].sum() == 475 * GIB
    assert frame["boot_hypercalls"].isna().tolist() == [False, True]


def test_xarray_has_a_dimension_for_what_varies(table):
    needs("xarray")
    cube = table.to_xarray()
    assert dict(cube.sizes) == {"p2m_leaf": 2, "memory_pages": 4}
    cell = cube["cleanup_hypercalls"].sel(p2m_leaf="1g", memory_pages=4 * GIB)
    assert (int(cell), cell.dtype) == (2051, np.int64)  # SPEC F7
    assert cube.attrs["linux"] == "seed"


def test_xarray_of_holes_and_of_one_row():
    needs("xarray")
    holes = xenpt.sweep(nr_pages=[GIB, 474 * GIB], init_p2m=[True, False]).to_xarray()
    found = holes["boot_hypercalls"].sel(init_p2m=False)
    assert np.isnan(found.values).tolist() == [False, True]
    assert xenpt.sweep(nr_pages=GIB).to_xarray()["nr_pages"].item() == GIB
    row = xenpt.sweep(nr_pages=GIB).rows[0]
    with pytest.raises(UsageError, match="the same inputs by name"):
        Sweep((row, row)).to_xarray()


def test_extra_that_is_missing_is_named(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed.*xenpt\[data\]"):
        table.to_arrow()
    assert set(INPUTS) < set(COLUMNS)


def test_sweep_is_a_function_whatever_was_imported_before():
    code = "import xenpt.sweeps, xenpt.sweeptable, xenpt; xenpt.sweep(nr_pages=1); xenpt.sweep"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Modelled time -------------------------------------------------------------------------------


def test_seconds_of_a_row_are_those_of_the_boot_command(capsys):
    (row,) = xenpt.sweep(nr_pages=4 * GIB).rows
    assert cli.main(["boot", "4G", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    times = {stage["name"]: stage["seconds_modelled"] for stage in found["stages"]}
    assert row["build_seconds_modelled"] == found["build_seconds_modelled"]
    assert row["boot_seconds_modelled"] == found["boot_seconds_modelled"]
    assert row["cleanup_seconds_modelled"] == times["p2m_free"]


def test_a_model_of_ones_own_is_in_every_row():
    model = replace(time_model(), cpi=2.0, source="mine")
    (usual,), (own,) = (xenpt.sweep(nr_pages=GIB, model=m).rows for m in (None, model))
    assert own["boot_seconds_modelled"] == pytest.approx(2 * usual["boot_seconds_modelled"])
    assert (own["model_cpi"], own["model_source"]) == (2.0, "mine")
    assert own["model_constants"] == usual["model_constants"]


def test_rows_with_other_constants_are_not_gone_on_with(tmp_path):
    journal = tmp_path / "rows"
    xenpt.sweep(nr_pages=GIB, journal=journal)
    model = time_model(cpi=2)
    with pytest.raises(UsageError, match=r"model_cpi 1\.0, not 2"):
        xenpt.sweep(nr_pages=[GIB, 2 * GIB], journal=journal, resume=True, model=model)
