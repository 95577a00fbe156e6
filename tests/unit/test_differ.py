# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two answers, key by key."""

import json

import pytest

from xenpt.differ import changes, compare, read_answer, show, show_delta
from xenpt.errors import InputError, UsageError

PLAN = {
    "nr_pages": 1000,
    "nr_pt_frames": 41,
    "mfn_list": 0x8000000000,
    "p2m": [0x8000000000, 0x8000001F40],
    "initrd": None,
    "panic": None,
    "p2m_leaves": {"4k": 2, "2m": 0},
}


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def keyed(before, after):
    return {c.key: (c.before, c.after, c.delta) for c in changes(before, after)}


def test_numbers_have_a_delta_and_ranges_are_compared_by_their_ends():
    after = PLAN | {"nr_pages": 1512, "p2m": [0x8000000000, 0x8000002F40]}
    assert keyed(PLAN, after) == {
        "nr_pages": (1000, 1512, 512),
        "p2m.end": (0x8000001F40, 0x8000002F40, 0x1000),
    }


def test_addresses_are_hexadecimal_and_counts_are_not():
    after = PLAN | {"nr_pages": 1512, "p2m": [0x8000000000, 0x8000000F40]}
    number, address = changes(PLAN, after)
    assert (show(number, number.after, present=True), show_delta(number)) == ("1,512", "+512")
    assert show(address, address.after, present=True) == "0x8000000f40"
    assert show_delta(address) == "-0x1000"


def test_texts_nulls_and_ranges_that_appear_have_no_delta():
    after = PLAN | {"panic": "Not enough RAM", "initrd": [1, 2]}
    assert keyed(PLAN, after) == {
        "initrd": (None, {"start": 1, "end": 2}, None),
        "panic": (None, "Not enough RAM", None),
    }


def test_a_key_that_one_lacks_is_told_apart_from_null():
    [change] = changes({"a": None}, {})
    assert change.as_dict() == {"key": "a", "a": None, "b": None, "delta": None, "only_in": "a"}
    assert show(change, change.after, present=False) == "-"


def test_true_is_not_one():
    assert keyed({"mod_start_pfn": True}, {"mod_start_pfn": 1}) == {
        "mod_start_pfn": (True, 1, None)
    }


def test_stages_are_compared_by_name_whatever_their_order():
    one, two = {"name": "one", "hypercalls": 14}, {"name": "two", "hypercalls": 5}
    before = {"stages": [one, two]}
    after = {"stages": [two, one | {"hypercalls": 12}]}
    assert keyed(before, after) == {"stages.one.hypercalls": (14, 12, -2)}


def test_regions_are_compared_as_sets():
    before = {"memblock": {"setup": {"reserved": [[0, 4096], [8192, 12288]]}}}
    after = {"memblock": {"setup": {"reserved": [[8192, 12288], [16384, 20480]]}}}
    assert [(change.key, change.only_in) for change in changes(before, after)] == [
        ("memblock.setup.reserved.[0x0, 0x1000)", "a"),
        ("memblock.setup.reserved.[0x4000, 0x5000)", "b"),
    ]


def test_the_order_of_keys_does_not_matter(tmp_path):
    a = file(tmp_path, "a.json", PLAN)
    b = file(tmp_path, "b.json", dict(reversed(PLAN.items())))
    assert compare(a, b) == ("plan", [])


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "7", '{"a": 1}', "\x00" * 10, "[" * 100000])
def test_what_is_no_answer_is_refused_by_name(tmp_path, content):
    with pytest.raises(InputError, match=r"bad\.json"):
        read_answer(file(tmp_path, "bad.json", content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^\S*none\.json: No such file or directory$"):
        read_answer(tmp_path / "none.json")


def test_only_like_is_compared_with_like(tmp_path):
    cleanup = {"profile": "seed", "update_va_mapping": 1, "tables_freed": {}}
    a, b = file(tmp_path, "a.json", PLAN), file(tmp_path, "b.json", cleanup)
    with pytest.raises(UsageError, match=r"a\.json is a plan, .*b\.json is a cleanup"):
        compare(a, b)
