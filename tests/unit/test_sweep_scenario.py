# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenario files and axes as users write them."""

import json
from pathlib import Path

import pytest

import xenpt
from xenpt.errors import InputError, UsageError
from xenpt.scenario import parse_sizes, read_scenario

GIB = 1 << 18  # pages
FLEET = Path(__file__).resolve().parents[2] / "examples" / "fleet.toml"


@pytest.fixture
def scenario(tmp_path):
    """Read a scenario of this text."""

    def read(text):
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return read_scenario(path)

    return read


@pytest.mark.parametrize(
    "text, gib",
    [
        ("4G", [4]),
        ("1G..8G", [1, 2, 4, 8]),
        ("1G..7G", [1, 2, 4]),
        ("600G,1T..2TiB", [600, 1024, 2048]),
        (" 1G .. 2G , 3G", [1, 2, 3]),
    ],
)
def test_sizes(text, gib):
    assert parse_sizes(text) == [GIB * size for size in gib]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("2G..1G", "memory '2G..1G': ends before it starts"),
        ("1..4G", "did you mean 1G"),
        ("1G,", "expected something like"),
        ("1G..2G..4G", "expected something like"),
        ("", "expected something like"),
    ],
)
def test_no_sizes(text, reason):
    with pytest.raises(UsageError, match=reason):
        parse_sizes(text)


def test_group_is_every_combination_and_common_keys_hold_for_all(scenario):
    cases = scenario("""
        linux = "seed"
        [[guests]]
        memory = ["1G..2G", "5G"]
        p2m_leaf = ["4k", "2m"]
        [[guests]]
        name = "second"
        memory = "1G"
        linux = "v6.1"
        initrd = [0, "1M"]
    """)
    assert [
        (case.group, case.rules.name, case.host.superpages, case.guest.nr_pages // GIB)
        for case in cases
    ] == [
        ("", "seed", "4k", 1), ("", "seed", "4k", 2), ("", "seed", "4k", 5),
        ("", "seed", "2m", 1), ("", "seed", "2m", 2), ("", "seed", "2m", 5),
        ("second", "v6.1", "1g", 1), ("second", "v6.1", "1g", 1),
    ]  # fmt: skip
    assert [case.guest.initrd_bytes for case in cases[-2:]] == [0, 1 << 20]


def test_file_without_groups_is_one_group(scenario):
    (case,) = scenario('host = "64G"\ndom0_mem = "8G"\ninit_p2m = false')
    assert (case.host.memory, case.guest.dom0_mem) == (64 * GIB, "8G")
    assert case.kernel.init_p2m is None


def test_files_are_named_relative_to_the_scenario(scenario, tmp_path, monkeypatch):
    (tmp_path / "k.json").write_text(json.dumps(xenpt.default_kernel().as_dict()))
    (tmp_path / "host.log").write_text(
        "(XEN) [    0.1]  [0000000000000000, 000000ffffffffff] (usable)\n"
    )
    text = 'kernel = ["default", "k.json"]\ne820 = "host.log"\ndom0_mem = "8G"'
    monkeypatch.chdir("/")
    cases = scenario(text)
    assert [case.kernel_name for case in cases] == ["default", "k.json"]
    assert cases[1].kernel == xenpt.default_kernel()
    assert cases[1].e820_name == "host.log"
    assert cases[1].host.map[0].end == 1 << 40


def test_hash_is_of_the_facts_and_of_the_names(scenario, tmp_path):
    def hashes(*texts):
        return {scenario(text)[0].input_hash for text in texts}

    assert len(hashes('memory = "1G"', 'memory = ["1024M", "1G"]')) == 1
    variants = ('memory = "2G"', 'linux = "seed"', 'xen = "4.14"', "initrd = 0", 'name = "a"')
    assert len(hashes('memory = "1G"', *(f'memory = "1G"\n{v}' for v in variants[1:]))) == 5
    facts = xenpt.default_kernel().as_dict()
    texts = []
    for number in (0, 1 << 30):
        (tmp_path / "k.json").write_text(json.dumps(facts | {"init_p2m": (1 << 39) + number}))
        texts += hashes('memory = "1G"\nkernel = "k.json"')
    assert len(set(texts)) == 2


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a = 1\nmemory = 1 G", r"not TOML: .*line 2"),
        ('memry = "1G"', r"\[\[guests\]\] 1: unknown key 'memry': expected name, memory"),
        ('memory = "600"', "memory: size '600': unit missing, did you mean 600G?"),
        ("memory = 600", "memory: 600: expected a text in quotes"),
        ("memory = []", "axis nr_pages: no value"),
        ('memory = "1G"\ninit_p2m = "no"', "init_p2m: 'no': expected true or false"),
        ('memory = "1G"\ninitrd = -1', "initrd: -1: expected a text in quotes"),
        ('memory = "1G"\ninitrd = true', "initrd: True: expected a text in quotes"),
        ('memory = "1G"\nname = 7', "7: expected a text in quotes"),
        ('memory = "1G"\nlinux = "v2.6"', "Linux profile 'v2.6'"),
        ('memory = "1G"\nkernel = "none.json"', "none.json: No such file"),
        ('memory = "1G"\ne820 = "none.log"', "none.log: No such file"),
        ('memory = "1G"\nguests = 3', r"guests: expected tables, \[\[guests\]\]"),
        ('[[guests]]\nmemory = "1G"\n[[guests]]\ndom0_mem = "8G"', r"\[\[guests\]\] 2: the size"),
        ("", "empty file"),
        ('xen = "4.17"', "the size of dom0 depends on the host"),
    ],
)
def test_fault_is_named_with_file_and_place(scenario, text, reason):
    with pytest.raises(InputError, match=reason) as caught:
        scenario(text)
    assert "scenario.toml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_scenario(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not TOML"):
        read_scenario(tmp_path / "binary.toml")


def test_shipped_fleet():
    """2 x 2 x 9 sizes, 5 without the note, 5 hosts x 2 rules, 3 of the toolstack."""
    cases = read_scenario(FLEET)
    assert len(cases) == 36 + 5 + 10 + 3
    table = xenpt.sweep(cases[36:41])
    # Real Xen 4.17 builds 473 GiB without the note, and refuses 474.
    verdicts = [(row["nr_pages"] // GIB, row["verdict"]) for row in table.rows]
    assert verdicts[2:4] == [(473, "boots"), (474, "panics")]
