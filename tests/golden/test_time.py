# SPDX-License-Identifier: GPL-2.0-or-later
"""The time model against instructions that real Xen and Linux executed under QEMU -icount."""

import json
import re
import sys

import goldendata
import pytest
from calibration import FITTED, PREDICTED, errors, instructions, read_published, read_records, works

from xenpt.inputs.kernel import default_kernel, kernel_from_bytes
from xenpt.timing import TimeModel, time_model

sys.path.append(str(goldendata.GOLDEN.parents[1] / "tools"))
import calibrate

FOLDER = goldendata.GOLDEN / "instructions"
RECORDS = read_records(FOLDER)
PUBLISHED = read_published(FOLDER)
SOFTWARE = json.loads((FOLDER / "software.json").read_text("utf-8"))
KERNEL = kernel_from_bytes(json.dumps(SOFTWARE["kernel"]).encode(), "software.json")
LIMIT_PERCENT = 2.0
_TYPES = "mmu_update", "update_va_mapping", "mmuext_op", "memory_op", "multicall"


@pytest.fixture(scope="module")
def work():
    return {name: works(record, KERNEL, "4.17.7") for name, record in RECORDS.items()}


@pytest.mark.parametrize("case", [*FITTED, *PREDICTED])
def test_shipped_constants_predict_every_stage_within_2_percent(work, case):
    """Those of PREDICTED had no part in the fit: another size, other leaves, another initrd."""
    found = list(errors(time_model(), RECORDS[case], work[case]))
    assert [stage for stage, *_ in found] == [*RECORDS[case]["stages"], "all"]
    assert {stage: off for stage, _, off in found if abs(off) > LIMIT_PERCENT} == {}


def test_shipped_constants_are_those_that_the_counts_give():
    fitted = calibrate.fitted(RECORDS, KERNEL, SOFTWARE)
    for name, shipped in time_model().operations.items():
        assert fitted[name] == pytest.approx(shipped, rel=1e-6, abs=0.011), name


def test_tables_of_the_document_are_those_that_the_constants_give():
    text = calibrate.MODEL.read_text("utf-8")
    table = text.split(calibrate.BEGIN)[1].split(calibrate.END)[0].strip()
    found = calibrate.errors(time_model(), RECORDS, KERNEL, SOFTWARE)
    page = calibrate.page(dict(time_model().operations), found)
    assert table.replace("-0.00", "+0.00") == page.replace("-0.00", "+0.00")


@pytest.mark.parametrize("case", [*FITTED, *PREDICTED])
def test_real_hypercalls_of_each_stage_are_those_of_the_model(case):
    """Entries by type; a call that Xen pre-empted enters once more (the drops, PIN_L4, a few)."""
    record = RECORDS[case]
    for result in calibrate.calibration.boot_of(record, KERNEL, "4.17.7").results:
        entries = record["stages"][result.name]["entries"]
        for kind in _TYPES:
            restarts = entries[kind] - result.cost.by_type[kind]
            assert 0 <= restarts <= 3, (result.name, kind)


def test_a_constant_that_is_off_is_seen(work):
    shipped = time_model()
    wrong = {
        **shipped.operations,
        "pinned_entry": shipped.operations["pinned_entry"]._replace(xen=400),
    }
    found = errors(TimeModel(wrong, 1, 3, ""), RECORDS["4g"], work["4g"])
    assert {stage for stage, _, off in found if abs(off) > LIMIT_PERCENT} >= {"init_mem_mapping"}


def test_another_way_of_counting_agrees():
    """golden/icount: the clock of printk between two frees of 2 MiB leaves, 512 frames each.

    A line printed for each leaf is in that, the drop of the leaf's entries is not; both are some
    30,000 instructions.
    """
    frees = re.findall(
        r"\[ *([\d.]+)\] memblock_phys_free: \[0x([0-9a-f]+)-0x([0-9a-f]+)\]",
        (goldendata.GOLDEN / "icount" / "dom0-8g.txt").read_text(),
    )
    times = [float(at) for at, first, last in frees if int(last, 16) - int(first, 16) > 4096]
    nanoseconds = 1e9 * (times[-1] - times[0]) / (len(times) - 1)
    modelled = time_model().instructions({"freed_frame": 512, "freed_block": 1})
    assert modelled == pytest.approx(nanoseconds, rel=0.02)


@pytest.mark.parametrize("record", PUBLISHED, ids=[record["record"] for record in PUBLISHED])
def test_published_boots_are_those_of_the_model(record):
    """What their logs printed: "Remapped N page(s)", and where the list ends."""
    boot = calibrate.calibration.published_boot(record, default_kernel())
    assert boot.panic is None
    assert sum(remap.nr for remap in boot.state.moved) == record["remapped"]
    for one in calibrate.calibration.published(time_model(), record, default_kernel()):
        assert one.seconds > 0.01
        assert 0.1 < one.cpi < 10  # no machine is slower or faster by an order of magnitude


def test_every_stage_has_a_count():
    for record in RECORDS.values():
        assert all(instructions(record, stage) > 10_000 for stage in record["stages"])
