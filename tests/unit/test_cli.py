# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a user meets it: options, errors, exit statuses, output."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xenpt import cli

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def xenpt(capsys):
    """Run one command in this process: (status, standard output, standard error)."""

    def run(*arguments):
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    return run


def process(*arguments, **options):
    """Run one command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "xenpt", *arguments],
        **{"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 30, **options},
    )


def complaint(result):
    """The one line of a failed command, without the program's name."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("xenpt: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("xenpt: ").rstrip()


# --- Help ----------------------------------------------------------------------------------------


def test_help_groups_the_commands_by_question(xenpt):
    status, out, err = xenpt("--help")
    assert (status, err) == (0, "")
    where = [
        out.index(text)
        for text in (
            "Will it boot?",
            "xenpt plan",
            "xenpt boot",
            "What does it cost?",
            "xenpt cleanup",
            "What is in this file?",
            "xenpt kernel",
        )
    ]
    assert where == sorted(where)


@pytest.mark.parametrize("command", ["plan", "boot", "cleanup", "kernel"])
def test_every_command_has_help(xenpt, command):
    status, out, err = xenpt(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: xenpt {command} [")


def test_help_names_every_linux_profile(xenpt):
    from xenpt.linux import PROFILES

    _, out, _ = xenpt("plan", "--help")
    line = next(line for line in out.splitlines() if "--linux" in line)
    assert all(name in line for name in PROFILES)


def test_help_imports_nothing_heavy():
    code = "import sys; from xenpt import cli; cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "xenpt.cli" in modules
    assert not modules & {"numpy", "rich", "xenpt.abi", "xenpt.plan"}


def test_version(xenpt):
    from xenpt import __version__

    assert xenpt("--version") == (0, f"xenpt {__version__}\n", "")


# --- Bad usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["plan", "600"], "size '600': unit missing, did you mean 600G?"),
        (["plan", "600X"], "size '600X': expected something like 600G, 2TiB or 0x40000000"),
        (["plan", ""], "size '': expected something like 600G, 2TiB or 0x40000000"),
        (["plan", "1K"], "size '1K': less than one page of 4 KiB"),
        (["plan"], "give MEMORY, such as 600G, or the host's memory: --host SIZE or --e820 FILE"),
        (
            ["plan", "--host", "4G", "--e820", "log"],
            "--host and --e820 FILE both say what memory the host has: give one",
        ),
        (
            ["plan", "--dom0-mem", "4G"],
            "--dom0-mem needs the host's memory: --host SIZE or --e820 FILE",
        ),
        (
            ["plan", "4G", "--host", "8G", "--dom0-mem", "4G"],
            "give the size of dom0 or dom0_mem, not both",
        ),
        (["plan", "4G", "--xen", "new"], "Xen version 'new': expected something like 4.17"),
        (["plan", "4G", "--system-map", "x"], "--system-map needs the kernel that it belongs to"),
        (["plan", "4G", "--initrd", "no-such"], "no-such: No such file or directory"),
        (["plan", "4G", "--initrd", "40X"], "size '40X': expected something like 600G, 2TiB or"),
        (["plan", "4G", "--initrd", "/"], "/: not a regular file"),
        (["plan", "4G", "--initrd", "a\0b"], "a\\x00b: embedded null byte"),
        (["plan", "4G", "--kernel", "no-such"], "no-such: No such file or directory"),
        (["plan", "4G", "--e820", "no-such"], "no-such: No such file or directory"),
        (["plan", "4G", "--p2m-leaf", "3k"], "argument --p2m-leaf: invalid choice: '3k'"),
        (["plan", "4G", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["plan", "4G", "8G"], "unrecognized arguments: 8G"),
        (["frobnicate"], "argument COMMAND: invalid choice: 'frobnicate'"),
        (["600G"], "argument COMMAND: invalid choice: '600G'"),
        (["kernel", "no-such"], "no-such: No such file or directory"),
        (["kernel", "/"], "/: a directory, not a file"),
        (["plan", "4G", "-o", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["plan", "4G", "-o", "/"], "/: Is a directory"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(xenpt, arguments, message):
    assert complaint(xenpt(*arguments)).startswith(message)


def test_bad_usage_leads_to_the_help(xenpt):
    assert complaint(xenpt("plan", "4G", "8G")).endswith("(see xenpt --help)")
    assert complaint(xenpt("plan", "4G", "--xen")).endswith("(see xenpt plan --help)")


def test_empty_and_truncated_kernels_are_one_line(xenpt, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert complaint(xenpt("kernel", str(tmp_path / "empty"))).startswith(f"{tmp_path}/empty: ")
    (tmp_path / "cut").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(20))
    assert complaint(xenpt("kernel", str(tmp_path / "cut"))).startswith(f"{tmp_path}/cut: ")
    (tmp_path / "list.json").write_text('{"bits": 16}')
    message = complaint(xenpt("plan", "4G", "--kernel", str(tmp_path / "list.json")))
    assert message.startswith(f"{tmp_path}/list.json: bits: ")


def test_too_little_memory_is_one_line(xenpt, monkeypatch):
    from xenpt import answers

    def too_big(_):
        raise MemoryError

    monkeypatch.setattr(answers, "plan", too_big)
    assert complaint(xenpt("plan", "4G")) == "not enough memory for this"


# --- Output --------------------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(xenpt):
    status, out, err = xenpt("plan", "4G", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["nr_pages"] == 1048576


@pytest.mark.parametrize("arguments", [["--json", "plan", "4G"], ["plan", "4G", "--json"]])
def test_output_options_stand_before_or_behind_the_command(xenpt, arguments):
    _, out, _ = xenpt(*arguments)
    assert out.startswith("{")


def test_decimal_size_is_taken_as_binary_with_one_line(xenpt):
    status, out, err = xenpt("plan", "600GB", "--json")
    assert (status, json.loads(out)["nr_pages"]) == (0, 157286400)
    assert err == "xenpt: warning: size '600GB' is taken as 600GiB\n"


def test_quiet_leaves_the_warnings_out(xenpt):
    status, out, err = xenpt("plan", "600GB", "--quiet")
    assert (status, err) == (0, "")
    assert out


def test_output_goes_to_a_file(xenpt, tmp_path):
    path = tmp_path / "plan.json"
    assert xenpt("plan", "4G", "--json", "-o", str(path)) == (0, "", "")
    assert json.loads(path.read_text())["nr_pages"] == 1048576
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_dash_is_standard_output(xenpt):
    assert xenpt("plan", "4G", "-o", "-") == xenpt("plan", "4G")


def test_failed_command_leaves_the_old_file(xenpt, tmp_path):
    (tmp_path / "old").write_text("old")
    complaint(xenpt("plan", "600", "-o", str(tmp_path / "old")))
    assert (tmp_path / "old").read_text() == "old"


def test_text_is_plain_ascii_of_at_most_96_columns(xenpt):
    for arguments in (["plan", "64P"], ["plan", "474G", "--no-init-p2m"], ["kernel"], ["--help"]):
        _, out, _ = xenpt(*arguments)
        assert out.isascii()
        assert out.replace("\n", "").isprintable()
        assert max(map(len, out.splitlines())) <= 96


def test_hostile_kernel_names_do_nothing_to_the_terminal(xenpt, tmp_path):
    facts = {"virt_kstart": 4096, "virt_kend": 8192, "notes": [["GUEST_OS", 5, "\x1b[2J\n"]]}
    path = tmp_path / "k\x1b[2J.json"
    path.write_text(json.dumps(facts))
    status, out, _ = xenpt("kernel", str(path))
    assert status == 0
    assert "\x1b" not in out
    assert '"\\x1b[2J\\n"' in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_early_gets_no_traceback(tmp_path, unbuffered):
    """More text than a pipe holds, read by head -1."""
    facts = {"virt_kstart": 0, "virt_kend": 1, "notes": [["GUEST_OS", 6, "linux" * 9]] * 9999}
    (tmp_path / "kernel.json").write_text(json.dumps(facts))
    command = f"'{sys.executable}' -m xenpt kernel '{tmp_path}/kernel.json' | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    first, status = done.stdout.splitlines()
    assert first == f"{tmp_path}/kernel.json: 64-bit kernel"
    assert status == "2"
    assert done.stderr == "xenpt: standard output: its reader has gone\n"


def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = process("plan", "4G", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (
        2,
        "xenpt: standard output: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_standard_output_is_no_traceback(closed):
    command = f"'{sys.executable}' -m xenpt plan 4G {closed}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("" if "2>" in closed else "xenpt: standard output: it is closed\n")


HELD_UP = """
import sys, time
from xenpt import answers, cli
def plan(options):
    print("ready", flush=True)
    time.sleep(60)
answers.plan = plan
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_command_is_one_line_and_leaves_the_old_file(tmp_path, number):
    (tmp_path / "old").write_text("old")
    waiting = subprocess.Popen(
        [sys.executable, "-c", HELD_UP, "plan", "4G", "-o", str(tmp_path / "old")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdout.readline() == "ready\n"
    waiting.send_signal(number)
    out, err = waiting.communicate(timeout=10)
    assert (out, err) == ("", f"xenpt: stopped by {number.name}\n")
    assert waiting.returncode == -number
    assert (tmp_path / "old").read_text() == "old"


def test_stopped_command_in_this_process_returns_its_status(xenpt, monkeypatch):
    from xenpt import answers

    monkeypatch.setattr(answers, "plan", lambda _: signal.raise_signal(signal.SIGINT))
    assert xenpt("plan", "4G") == (130, "", "xenpt: stopped by SIGINT\n")


# --- kernel, plan --------------------------------------------------------------------------------


def test_kernel_json_can_be_given_back(xenpt, tmp_path):
    path = str(tmp_path / "kernel.json")
    assert xenpt("kernel", "--json", "-o", path)[0] == 0
    assert json.loads(Path(path).read_text())["init_p2m"] == 0x8000000000
    assert xenpt("kernel", path, "--json")[1] == Path(path).read_text()
    assert xenpt("plan", "600G", "--kernel", path) == xenpt("plan", "600G")


def test_plan_of_600_gib_is_what_xen_4_17_built(xenpt):
    """Numbers of the log of a real boot (logs-large, 600 GiB)."""
    status, out, _ = xenpt("plan", "600G", "--json")
    plan = json.loads(out)
    assert status == 0
    assert plan["p2m"] == [0x8000000000, 0x804B000000]
    assert plan["nr_pt_frames"] == 41
    assert plan["total"] == [0xFFFFFFFF80000000, 0xFFFFFFFF84C00000]
    assert plan["panic"] is None


def test_plan_prints_xens_own_block(xenpt):
    status, out, _ = xenpt("plan", "600G")
    assert status == 0
    assert " Phys-Mach map: 0000008000000000->000000804b000000\n" in out
    assert " Page tables:   ffffffff84a01000->ffffffff84a2a000\n" in out


@pytest.mark.parametrize("size, status", [("473G", 0), ("474G", 1)])
def test_largest_dom0_without_the_note_is_that_of_real_xen(xenpt, size, status):
    """Real Xen 4.17 builds 473 GiB and refuses 474 (logs-large)."""
    panic = "Not enough RAM for domain 0 allocation" if status else None
    found, out, err = xenpt("plan", size, "--no-init-p2m", "--json")
    assert (found, json.loads(out)["panic"], err) == (status, panic, "")
    found, out, err = xenpt("plan", size, "--no-init-p2m")
    assert (found, err) == (status, "")
    assert ("Not enough RAM for domain 0 allocation\n" in out) == bool(status)


def test_dom0_mem_may_be_negative(xenpt):
    """A host's memory less 256 MiB is less than the host's memory, by the cost of Xen, too."""
    _, out, _ = xenpt("plan", "--host", "8G", "--dom0-mem", "-256M", "--json")
    assert 0 < json.loads(out)["nr_pages"] < (8 << 18) - (256 << 8)
    assert xenpt("plan", "--host", "8G", "--dom0-mem=-256M", "--json")[1] == out


@pytest.mark.parametrize("initrd", ["12345678", "file", "12060K"])
def test_initrd_is_bytes_a_file_or_a_size(xenpt, tmp_path, initrd):
    """Case i12345678 of golden/oracle has first_p2m_pfn 35783; 12060 KiB are as many pages."""
    if initrd == "file":
        initrd = str(tmp_path / "initrd")
        with open(initrd, "wb") as file:
            file.truncate(12345678)
    _, out, _ = xenpt("plan", "1G", "--initrd", initrd, "--json")
    assert json.loads(out)["first_p2m_pfn"] == 35783
