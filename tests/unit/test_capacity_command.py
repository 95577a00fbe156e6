# SPDX-License-Identifier: GPL-2.0-or-later
import json

import pytest

from xenpt import cli


@pytest.fixture
def xenpt(capsys):
    """Run `xenpt capacity` in this process: (status, standard output, standard error)."""

    def run(*arguments):
        status = cli.main(("capacity", *arguments))
        return status, *capsys.readouterr()

    return run


def test_budget_balances_in_text_and_json(xenpt):
    status, text, _ = xenpt("--host", "12T", "--guests", "5x2T")
    assert status == 0
    lines = text.splitlines()
    assert max(map(len, lines)) <= 96
    assert text.isascii()
    table = lines[2:11]
    amounts = [int(line.split()[-3].replace(",", "")) for line in table]
    assert sum(amounts[:-1]) == amounts[-1] == 3221225472
    data = json.loads(xenpt("--host", "12T", "--guests", "5x2T", "--json")[1])
    assert sum(row["pages"] for row in data["rows"]) == data["nr_pages"] == 3221225472
    assert [each["nr_pages"] for each in data["largest_dom0"]][1] == 124188160


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "123T", "--bigmem", "--dom0-rule", "all"),
        ("--host", "64T", "--dom0-rule", "xen", "--guests", "3x512G", "--type", "pv"),
        ("--host", "6T", "--xen", "3.4", "--guests", "2x64G,1x1T"),
        ("--host", "1T..12T", "--guests", "40x512G", "--type", "pv,pvh,hvm", "--vcpus", "64"),
        ("examples/hosts.toml",),
    ],
)
def test_text_is_at_most_96_columns(xenpt, arguments, pytestconfig, monkeypatch):
    monkeypatch.chdir(pytestconfig.rootpath)
    status, text, err = xenpt(*arguments)
    assert err == ""
    assert status in (0, 1)
    assert max(map(len, text.splitlines())) <= 96


def test_guests_that_do_not_fit_are_a_no(xenpt):
    status, text, _ = xenpt("--host", "12T", "--guests", "6x2T")
    assert status == 1
    assert "The guests do not fit: 176.02 GiB too much." in text


def test_dom0_that_panics_is_a_no(xenpt):
    status, text, _ = xenpt("--host", "1T", "--no-init-p2m", "--dom0-mem", "474G")
    assert status == 1
    assert "Dom0 panics: Not enough RAM for domain 0 allocation" in text
    status, text, _ = xenpt("--host", "1T", "--linux", "v4.1")
    assert status == 1
    assert "Dom0 panics in Linux" in text


def test_fleet_is_a_no_if_some_host_is_too_small(xenpt):
    assert xenpt("--host", "1T,2T", "--guests", "40x512G")[0] == 0
    status, text, _ = xenpt("--host", "256G,2T", "--guests", "40x512G")
    assert status == 1
    assert "256 GiB" in text


def test_pv_guests_of_2_tib_pass_a_limit_of_linux(xenpt):
    status, text, _ = xenpt("--host", "12T", "--guests", "5x2T", "--type", "pv")
    assert status == 0
    assert "beyond: pages of a PV guest that Linux uses 134,217,728" in " ".join(text.split())


def test_rules_side_by_side(xenpt):
    data = json.loads(xenpt("--host", "2T", "--dom0-rule", "all", "--json")[1])
    sizes = {rule["name"]: rule["nr_pages"] for rule in data["dom0_rules"]}
    assert sizes["oracle-vm"] == (502 + 42991) * 256  # int(2097152 * 0.0205) MiB
    assert sizes["xenserver"] == sizes["xcp-ng"] == 2097152
    assert all(rule["source"] for rule in data["dom0_rules"])


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((), "give the host's memory"),
        (("--host", "12"), "unit missing"),
        (("--host", "1T", "--e820", "x"), "give one"),
        (("--e820", "/nowhere"), "/nowhere: No such file"),
        (("--host", "1T", "--dom0-mem", "1G", "--dom0-rule", "xen"), "give one"),
        (("--host", "1T", "--dom0-mem", "1X"), "dom0_mem '1X'"),
        (("--host", "1T", "--dom0-rule", "vmware"), "rule 'vmware'"),
        (("--host", "1T", "--guests", "x"), "guests 'x'"),
        (("--host", "1T", "--guests", "1x1G", "--type", "kvm"), "guest type 'kvm'"),
        (("--host", "1T", "--guests", "1x1G", "--vcpus", "0"), "one vCPU"),
        (("--host", "1T", "--type", "pv"), "give --guests, too"),
        (("--host", "1T", "--guests", "1x1G", "--type", ""), "guest type ''"),
        (("--host", "1T,2T"), "one group of guests"),
        (("--host", "1T,2T", "--guests", "1x1G,2x2G"), "one group of guests"),
        (("--host", "1T", "--bigmem", "--xen", "4.2"), "no CONFIG_BIGMEM"),
        (("fleet",), "no .toml file"),
        (("fleet.toml", "--host", "1T"), "leave out --host"),
        (("nowhere.toml",), "nowhere.toml: No such file"),
    ],
)
def test_bad_usage(xenpt, arguments, reason):
    status, out, err = xenpt(*([arguments] if isinstance(arguments, str) else arguments))
    assert (status, out) == (2, "")
    assert reason in err
    assert len(err.splitlines()) == 1
