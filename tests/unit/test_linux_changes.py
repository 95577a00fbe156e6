# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles with flags changed: every flag can be, and a bad name or value is one line."""

import json

import pytest

from xenpt.cli import main
from xenpt.errors import UsageError
from xenpt.linux import SEED, V4_3, V6_1, rule_names, with_rules


def test_a_changed_flag_is_in_the_rules_and_in_the_name():
    rules = with_rules(V6_1, ["nx_ident_map=no", "skip_empty_entries = no".replace(" ", "")])
    assert rules.nx_ident_map is False
    assert rules.cleanup.skip_empty_entries is False
    assert rules.name == "v6.1+nx_ident_map=no+skip_empty_entries=no"
    assert with_rules(V6_1, []) is V6_1


@pytest.mark.parametrize(
    "change, name, value",
    [
        ("page_limit=512G", "page_limit", 1 << 27),
        ("page_limit=0x1000", "page_limit", 4096),
        ("hotplug_limit_gib=0", "hotplug_limit_gib", 0),
        ("page_offset=0xffff888000000000", "page_offset", 0xFFFF888000000000),
        ("flush_each_mapping=OFF", "flush_each_mapping", False),
        ("ro_tables=init_top_pgt,level1_fixmap_pgt:2", "ro_tables",
         (("init_top_pgt", 1), ("level1_fixmap_pgt", 2))),
    ],
)  # fmt: skip
def test_values(change, name, value):
    assert getattr(with_rules(SEED, [change]), name) == value


def test_every_flag_can_be_given_the_value_that_it_has():
    for profile in (SEED, V4_3, V6_1):
        for name in rule_names():
            owner = profile.cleanup if hasattr(profile.cleanup, name) else profile
            value = getattr(owner, name)
            if isinstance(value, tuple):
                value = ",".join(f"{symbol}:{nr}" for symbol, nr in value)
            changed = with_rules(profile, [f"{name}={value}"])
            for field in rule_names():
                left = changed.cleanup if hasattr(changed.cleanup, field) else changed
                right = profile.cleanup if hasattr(profile.cleanup, field) else profile
                assert getattr(left, field) == getattr(right, field)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("nonsense=1", "expected NAME=VALUE with NAME one of page_offset, "),
        ("skip_empty_entries", "expected NAME=VALUE"),
        ("name=v9", "expected NAME=VALUE"),
        ("nx_ident_map=maybe", "nx_ident_map=maybe: expected yes or no"),
        ("page_limit=-1", "size '-1': expected something like 600G"),
        ("page_limit=0", "expected 0x100 to 0x400000000"),
        ("pgt_buf_pages=many", "expected a number, decimal or 0x.."),
        ("page_offset=0xffff888000001000", "a multiple of 0x8000000000"),
        ("ro_tables=init:top", "expected SYMBOL[:PAGES]"),
    ],
)
def test_bad_changes_are_told_in_one_line(change, complaint):
    with pytest.raises(UsageError) as caught:
        with_rules(V6_1, [change])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_changes_rules(capsys):
    """v4.3 with the walk of v4.12 no longer leaks what a list off the 2 MiB border leaves."""
    arguments = ["cleanup", "4G", "--linux", "v4.3", "--json"]
    assert main([*arguments, "--rule", "skip_empty_entries=yes"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "v4.3+skip_empty_entries=yes"
    assert main([*arguments, "--rule", "skip_empty_entries"]) == 2
    assert "--rule 'skip_empty_entries'" in capsys.readouterr().err


def test_the_cleanup_of_v4_1_panics_of_a_list_outside(capsys):
    assert main(["cleanup", "4G", "--linux", "v4.1", "--json"]) == 1
    assert "BUG in xen_pagetable_p2m_free" in json.loads(capsys.readouterr().out)["panic"]
    assert main(["cleanup", "4G", "--linux", "v4.1", "--no-init-p2m"]) == 0
    capsys.readouterr()
