# SPDX-License-Identifier: GPL-2.0-or-later
"""Modelled time: constants, what replaces them, and what is no constant."""

import json
import math

import pytest

from xenpt import cli
from xenpt.errors import InputError, UsageError
from xenpt.timing import OPERATIONS, time_model


@pytest.fixture
def constants(tmp_path):
    """A file of constants with this text."""

    def write(text):
        path = tmp_path / "constants.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_every_operation_has_a_shipped_constant_and_a_meaning():
    model = time_model()
    assert list(model.operations) == list(OPERATIONS)
    for name, one in model.operations.items():
        assert min(one) >= 0, name
        assert sum(one) > 0, name
    assert (model.cpi, model.ghz) == (1.0, 3.0)
    assert model.source == "measured on Xen 4.17.7, Linux 6.1.192"


def test_a_second_is_instructions_by_cpi_by_clock(constants):
    path = constants("[operations]\nfreed_frame = { linux = 500, xen = 900 }\n")
    model = time_model(path, cpi=1.5, ghz=2)
    # 10 frames of 1400 instructions are 14000; 21000 cycles; at 2 GHz 10.5 us
    assert model.seconds({"freed_frame": 10}) == pytest.approx(10.5e-6, rel=1e-12)
    assert model.seconds({}) == 0


def test_work_that_was_never_measured_has_no_time():
    assert time_model().seconds(None) is None


def test_a_file_replaces_what_it_names_and_options_replace_the_file(constants):
    shipped = time_model()
    path = constants("cpi = 2\nghz = 4\nsource = 'mine'\n[operations.build]\nlinux=0\nxen=1\n")
    model = time_model(path, ghz=5)
    assert (model.cpi, model.ghz, model.source) == (2.0, 5.0, "mine")
    assert model.operations["build"] == (0, 1)
    assert model.operations["build_page"] == shipped.operations["build_page"]
    assert list(model.operations) == list(OPERATIONS)
    assert model.fingerprint != shipped.fingerprint


def test_a_file_that_names_no_source_is_the_source(constants):
    path = constants("cpi = 2\n")
    assert time_model(path).source == f"as {path} says, else {time_model().source}"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("cpi = ", "not TOML"),
        ("\udcff", "not TOML"),
        ("cpi = 0", "cpi"),
        ("ghz = -3", "ghz"),
        ("ghz = nan", "ghz"),
        ("ghz = 1e-308", "ghz"),
        (f"cpi = {'9' * 400}", "cpi"),
        ("cpi = true", "cpi"),
        ("source = 3", "source"),
        ("speed = 3", "speed"),
        ("operations = 3", "operations: expected a table"),
        ("[operations]\nbuilt = { linux = 0, xen = 1 }", "operations.built: no such operation"),
        ("[operations]\nbuild = 3", "operations.build: expected {linux"),
        ("[operations]\nbuild = { xen = 3 }", "operations.build: expected {linux"),
        (
            "[operations]\nbuild = { linux = 0, xen = -1 }",
            "operations.build.xen: expected 0, or",
        ),
        ("[operations]\nbuild = { linux = 'a', xen = 1 }", "operations.build.linux"),
        ("[operations]\nbuild = { linux = inf, xen = 1 }", "operations.build.linux"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_field(tmp_path, capsys, text, reason):
    path = tmp_path / "constants.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as found:
        time_model(path)
    assert str(found.value).startswith(f"{path}: ")
    assert reason in str(found.value)
    assert cli.main(["boot", "1G", "--constants", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_a_missing_or_an_endless_file_is_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path, "/dev/zero"):
        with pytest.raises(InputError):
            time_model(path)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["cpi", "ghz"])
def test_options_that_are_no_positive_number_are_refused(name, value):
    with pytest.raises(UsageError, match=f"--{name}"):
        time_model(**{name: value})


@pytest.mark.parametrize("command", [(), ("boot", "2G"), ("cleanup", "2G"), ("sweep",)])
def test_options_change_every_modelled_second_and_are_printed_with_it(capsys, command):
    memory = ("--memory", "2G") if command == ("sweep",) else ()
    assert cli.main([*command, *memory, "--cpi", "1.5", "--ghz", "2.5"]) == 0
    assert "CPI 1.5 / 2.5 GHz" in " ".join(capsys.readouterr().out.split())
    seconds = []
    for options in ((), ("--cpi", "3", "--ghz", "1.5")):
        assert cli.main([*command, *memory, "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        seconds.append(list(_modelled(found)))
        assert found["modelled"]["instructions"].keys() == OPERATIONS.keys()
    usual, slower = seconds
    assert len(usual) > 0
    assert slower == pytest.approx([6 * one for one in usual], rel=1e-12)


def test_options_before_a_command_are_kept(capsys):
    assert cli.main(["--cpi", "2", "boot", "2G", "--ghz", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["modelled"]
    assert (found["cpi"], found["ghz"]) == (2, 4)


@pytest.mark.parametrize("option", [("--cpi", "2"), ("--ghz", "2"), ("--constants", "none.toml")])
def test_commands_without_times_refuse_them(capsys, option):
    assert cli.main([*option, "plan", "2G"]) == 2
    assert capsys.readouterr().err == f"xenpt: {option[0]}: xenpt plan models no time\n"
    assert cli.main(["plan", "2G", *option]) == 2


def _modelled(found):
    """All numbers of keys that end in seconds_modelled."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key.endswith("seconds_modelled") and value is not None:
                yield value
            else:
                yield from _modelled(value)
    elif isinstance(found, list):
        for item in found:
            yield from _modelled(item)


def test_stages_and_build_add_up(capsys):
    assert cli.main(["boot", "2G", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = [stage["seconds_modelled"] for stage in found["stages"]]
    assert found["boot_seconds_modelled"] == pytest.approx(sum(stages), rel=1e-12)
    build = time_model().operations["build"].xen + time_model().operations["build_page"].xen * 2**19
    assert found["build_seconds_modelled"] == pytest.approx(build / 3e9, rel=1e-12)


@pytest.mark.parametrize(
    "options, known, unknown",
    [
        (("--no-init-p2m",), ["init_mem_mapping"], ["p2m_free"]),
        (("--linux", "seed"), ["init_mem_mapping", "p2m_free"], ["paging_init"]),
    ],
)
def test_what_was_never_measured_is_null_and_said(capsys, options, known, unknown):
    assert cli.main(["boot", "2G", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = {stage["name"]: stage["seconds_modelled"] for stage in found["stages"]}
    assert all(stages[name] > 0 for name in known)
    assert all(stages[name] is None for name in unknown)
    assert found["boot_seconds_modelled"] is None
    assert cli.main(["boot", "2G", *options]) == 0
    assert f"{unknown[0]} never measured" in " ".join(capsys.readouterr().out.split())


def test_the_toolstacks_build_has_no_time(capsys):
    assert cli.main(["boot", "2G", "--builder", "toolstack", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["build_seconds_modelled"] is None
    assert found["boot_seconds_modelled"] > 0


def test_a_panic_has_no_time_but_says_what_times_are_made_of(capsys):
    assert cli.main(["boot", "600G", "--no-init-p2m", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["boot_seconds_modelled"] is None
    assert found["modelled"]["ghz"] == 3
