# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs made by hand from real lines: what is taken as an input, what is compared, why it died."""

import pytest

from xenpt.errors import UsageError
from xenpt.explain import explain
from xenpt.inputs.bootlog import parse_boots

#: Of golden case m1g: Xen 4.17.7, dom0_mem=1G, Debian's 6.1.
HEAD = """\
(XEN) Xen version 4.17.7 (Debian 4.17.7-1) (someone) debug=n
(XEN) Command line: console=com1 dom0_mem=1G,max:1G
(XEN)  [0000000000000000, 000000000009fbff] (usable)
(XEN)  [000000000009fc00, 000000000009ffff] (reserved)
(XEN)  [0000000000100000, 00000000bffdffff] (usable)
(XEN)  [0000000100000000, 000000013fffffff] (usable)
(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> 0x4a00000
"""
BLOCK = """\
(XEN) PHYSICAL MEMORY ARRANGEMENT:
(XEN)  Dom0 alloc.:   0000000130000000->0000000138000000 (229376 pages to be allocated)
(XEN) VIRTUAL MEMORY ARRANGEMENT:
(XEN)  Loaded kernel: ffffffff81000000->ffffffff84a00000
(XEN)  Phys-Mach map: 0000008000000000->0000008000200000
(XEN)  Start info:    ffffffff84a00000->ffffffff84a004b8
(XEN)  Page tables:   ffffffff84a01000->ffffffff84a2a000
(XEN)  Boot stack:    ffffffff84a2a000->ffffffff84a2b000
(XEN)  TOTAL:         ffffffff80000000->ffffffff84c00000
(XEN)  ENTRY ADDRESS: ffffffff830791c0
"""
LINUX = """\
[    0.000000] Linux version 6.1.0-56-amd64 (gcc)
[    0.000000] Command line: console=hvc0
[    0.000000] Released 0 page(s)
[    0.000000] Xen: [mem 0x0000000000000000-0x000000000009efff] usable
[    0.000000] Xen: [mem 0x000000000009fc00-0x00000000000fffff] reserved
[    0.000000] Xen: [mem 0x0000000000100000-0x0000000040060fff] usable
[    0.062144] last_pfn = 0x40061 max_arch_pfn = 0x400000000
[    1.814948] Remapped 97 page(s)
[    2.399217] Memory: 207956K/1048572K available (14343K kernel code)
"""
WHOLE = HEAD + BLOCK + LINUX
TOO_SMALL = "Domain 0 allocation is too small for kernel image"


def explained(text):
    [found] = explain(parse_boots(text))
    return found


def panicked(text, *, head=HEAD, block=""):
    return explained(f"{head}{block}(XEN) ****\n(XEN) Panic on CPU 0:\n(XEN) {text}\n(XEN) ****\n")


def differing(text):
    return [check.what for check in explained(text).differences]


def test_a_whole_boot_agrees_and_says_what_was_taken_from_where():
    found = explained(WHOLE)
    assert found.agrees
    assert found.title == "Xen 4.17.7, Linux 6.1.0-56-amd64, dom0 of 1 GiB"
    assert found.inputs["dom0's size"] == ("262144 pages = 1 GiB", (2, 9, 12))
    assert found.inputs["INIT_P2M"] == ("0x8000000000", (12,))
    assert {check.what for check in found.checks if check.given} == {"ENTRY ADDRESS"}
    assert len(found.checks) == 16  # 10 of Xen, 6 of Linux


def test_a_number_that_stands_alone_is_an_input_not_a_check():
    """Without dom0_mem and the pages to be allocated, only the list says how large dom0 is."""
    lines = WHOLE.splitlines(keepends=True)
    text = "".join(x for x in lines if "Command line: console=com1" not in x and "alloc" not in x)
    found = {check.what: check.given for check in explained(text).checks}
    assert found["Phys-Mach map"]
    assert not found["Page tables"]


@pytest.mark.parametrize(
    "number, other, what",
    [
        ("0000008000200000", "0000008000300000", "Phys-Mach map"),
        ("229376 pages", "229375 pages", "Dom0 alloc."),
        ("0000000138000000", "0000000134000000", "Dom0 alloc."),
        ("0x4a00000\n", "0x4b00000\n", "Dom0 kernel"),
        ("ffffffff84a2b000", "ffffffff84a2c000", "Boot stack"),
        ("0x40061", "0x40062", "last_pfn"),
        ("Remapped 97", "Remapped 98", "Remapped"),
        ("1048572K", "1048576K", "Memory"),
    ],
)
def test_a_changed_number_is_found_in_its_own_line(number, other, what):
    assert differing(WHOLE.replace(number, other, 1)) == [what]


def test_a_dom0_mem_that_the_other_lines_do_not_bear_out_differs():
    assert differing((HEAD + BLOCK).replace("1G,max:1G", "2G")) == ["dom0_mem"]
    assert differing((HEAD + BLOCK).replace("1G,max:1G", "2G,max:1G")) == []  # max wins


def test_a_limit_that_is_gone_changes_what_linux_may_use():
    """Without max:1G, Linux may balloon up to the host's end: 0x140000 pages."""
    text = WHOLE.replace(",max:1G", "")
    assert set(differing(text)) == {"RAM of Linux's map", "last_pfn", "Memory"}


def test_mem_of_linux_ends_memory_there():
    text = WHOLE.replace("console=hvc0", "console=hvc0 mem=512M")
    text = text.replace("0x40061", "0x20000").replace("1048572K", "523896K")
    assert explained(text).agrees  # 0x20000000 - 0x61 pages - page 0, in KiB


def test_two_lines_that_contradict_each_other_are_a_difference():
    """Nothing else says how large dom0 is: one of the two is named."""
    text = (HEAD + BLOCK).replace(" dom0_mem=1G,max:1G", "").replace("229376 pages", "229370 pages")
    assert len(differing(text)) == 1
    assert differing(text)[0] in {"Phys-Mach map", "Dom0 alloc."}


def test_lines_of_linux_alone_are_held_against_its_own_map():
    found = explained(LINUX)
    assert found.agrees
    assert {check.what for check in found.checks if not check.given} == {"last_pfn", "Memory"}
    assert "not in the log" in found.notes[-1]
    assert not explained(LINUX.replace("0x40061", "0x40060")).agrees


def test_a_cut_off_line_is_noted_and_the_rest_compared():
    found = explained(WHOLE.replace("ffffffff84a2a000\n", "ffffffff84\n", 1))
    assert found.agrees
    assert "line 14 is cut off" in found.notes[0]


def test_an_option_that_xen_refuses_is_as_none():
    assert differing(WHOLE.replace("dom0_mem=1G,max:1G", "dom0_mem=150%")) != []
    assert explained(HEAD.replace("dom0_mem=1G,max:1G", "dom0_mem=150%") + BLOCK).agrees


# --- Panics of Xen (SPEC B2) -------------------------------------------------------------------


def test_too_small_for_the_kernel():
    """2^15 pages = 128 MiB for the initial mapping of 76 MiB; 127 MiB are 32512 pages."""
    head = HEAD.replace("1G,max:1G", "127M")
    [end] = panicked("Domain 0 allocation is too small for kernel image", head=head).ends
    assert end.predicted is True
    assert "2^15 = 32,768 pages" in end.why[0]
    assert 32768 < end.nr_pages < 40960  # 160 MiB boot: golden case m160m
    assert "least that fits" in end.fix


@pytest.mark.parametrize("size, predicted", [("474G", True), ("600G", True), ("473G", False)])
def test_without_the_note_473_gib_fit(size, predicted):
    """Seen on real Xen: 473G builds, 474G panics; 124188160 pages are the most."""
    head = HEAD.replace("1G,max:1G", size).replace("000000013fffffff", "000000a13fffffff")
    [end] = panicked("Not enough RAM for domain 0 allocation", head=head).ends
    assert end.predicted is predicted
    if predicted:
        assert end.nr_pages == 124188160
        assert "dom0_mem=473G" in end.fix
        assert "INIT_P2M" in end.fix


def test_the_list_overlaps():
    block = BLOCK.replace(
        "0000008000000000->0000008000200000", "ffffffff80000000->ffffffff80200000"
    )
    [end] = panicked("DOM0 P->M table overlaps initial mapping", block=block).ends
    assert end.predicted is True
    assert end.nr_pages is None  # no size helps
    [end] = panicked("DOM0 P->M table overlaps initial mapping", block=BLOCK).ends
    assert end.predicted is False


def test_no_room_for_the_list():
    """32768 pages of chunk, 64 of list and 3 tables: with 3 to spare, 32830 pages are too few."""
    head = HEAD.replace("1G,max:1G", "131320K")
    block = BLOCK.replace("0000008000200000", "00000080000401f0").replace("229376", "62")
    [end] = panicked(
        "Dom0 allocation too small for initial P->M table", head=head, block=block
    ).ends
    assert end.predicted is True
    assert "32,830 of dom0" in end.why[0]
    assert 32830 < end.nr_pages < 32850


@pytest.mark.parametrize(
    "complaint",
    [
        "Kernel does not support Dom0 operation",
        "Mismatch between Xen and DOM0 kernel",
    ],
)
def test_a_refused_kernel(complaint):
    head = HEAD.replace("64-bit", "32-bit") if "Mismatch" in complaint else HEAD
    if "Mismatch" in complaint:  # since 4.16 a 32-bit kernel gets a text of its own
        head = head.replace("4.17.7", "4.15.0")
    found = panicked("Could not construct domain 0", head=f"{head}(XEN) {complaint}\n")
    assert [end.predicted for end in found.ends] == [True]
    assert complaint in found.ends[0].why[0]


def test_what_depends_on_the_host_is_left_open():
    found = panicked("Not enough RAM for DOM0 reservation", block=BLOCK)
    assert found.ends[0].predicted is None
    assert found.agrees


def test_a_panic_of_another_kind_is_left_open():
    found = panicked("FATAL TRAP: vector = 14", block=BLOCK)
    assert found.ends[0].predicted is None


def test_a_boot_that_should_have_panicked_differs():
    """127 MiB, and still Xen prints an arrangement."""
    text = (HEAD + BLOCK).replace("1G,max:1G", "127M")
    found = explained(HEAD.replace("1G,max:1G", "127M") + LINUX)
    assert not found.agrees
    assert found.ends[0].predicted is False
    assert not explained(text).agrees


# --- Ends of Linux -----------------------------------------------------------------------------

CONFLICT = "[    0.000000] Xen hypervisor allocated kernel memory conflicts with E820 map\n"


def test_a_conflict_of_the_kernel_with_the_map():
    """RAM up to 0x2000000 only: the kernel at [0x1000000, 0x4a00000) lies in the hole behind."""
    text = WHOLE.replace("00000000bffdffff] (usable)", "0000000001ffffff] (usable)")
    head, _, _ = text.partition("[    0.000000] Released")
    found = explained(head + CONFLICT)
    assert [end.predicted for end in found.ends] == [True]
    assert not explained(HEAD + BLOCK + CONFLICT).agrees
    assert not explained(text).agrees  # it goes on, where it should not


def test_acpi_nvs_memory_in_the_kernel_is_the_end_of_6_1_and_not_of_6_12():
    """RAM from 4 GiB on can take its place since 6.12 (be35d91c8880), and in 6.6.y."""
    text = WHOLE.replace(
        "(XEN)  [0000000000100000, 00000000bffdffff] (usable)\n",
        "(XEN)  [0000000000100000, 0000000003ffffff] (usable)\n"
        "(XEN)  [0000000004000000, 000000000400ffff] (ACPI NVS)\n"
        "(XEN)  [0000000004010000, 00000000bffdffff] (usable)\n",
    )
    [end] = explained(text).ends
    assert end.text.startswith("Linux goes on, where the model has it give up")
    for version in ("6.6.100", "6.12.1"):
        found = explained(text.replace("6.1.0-56-amd64", version))
        assert found.ends == ()
        assert "RAM of Linux's map" in {check.what for check in found.checks}


def test_a_list_in_two_slots_is_the_end_and_a_list_in_one_is_not():
    block = BLOCK.replace(
        "0000008000000000->0000008000200000", "000000ffffe00000->0000010000000000"
    )
    halted = "(XEN) Hardware Dom0 halted: halting machine\n"
    across = block.replace(
        "000000ffffe00000->0000010000000000", "000000fffff00000->0000010000100000"
    )
    [end] = explained(HEAD + across + halted).ends
    assert end.predicted is True
    assert "crosses from L4 slot 1 to 2" in end.why[0]
    [end] = explained(HEAD + block + halted).ends
    assert end.predicted is None
    assert not explained(HEAD + across + LINUX).agrees


def test_several_boots_are_explained_one_by_one():
    found = explain(parse_boots(WHOLE + WHOLE.replace("229376 pages", "229375 pages")))
    assert [boot.agrees for boot in found] == [True, False]
    assert found[1].differences[0].line == len(WHOLE.splitlines()) + 9


def test_without_its_version_xen_is_told_by_what_it_prints():
    """Xen 4.10 prints 4 bytes less of VGA information than 4.13 and later: 4b4."""
    text = (HEAD + BLOCK).split("\n", 1)[1]
    assert explained(text).agrees
    assert explained(text).notes == (
        "Xen's version is not in the log: compared with what 4.20 does.",
    )
    older = explained(text.replace("ffffffff84a004b8", "ffffffff84a004b4"))
    assert older.agrees
    assert "what 4.11 does" in older.notes[0]


# --- Logs that begin in the middle -------------------------------------------------------------


def test_without_xens_command_line_nobody_knows_how_far_dom0_may_grow():
    """The ring has lost it: with max:, RAM of Linux's map ends where the log cannot tell."""
    text = WHOLE.replace("Command line: console=com1 dom0_mem=1G,max:1G", "(lost)")
    found = explained(text)
    assert found.agrees
    assert "Xen's command line not in the log" in found.notes[-1]
    assert not explained(text.replace("0x40061 max", "0x40062 max")).agrees  # its own map tells


def test_an_e820_map_without_its_first_lines_is_none():
    """Neither banner nor header of the map: what is left of it is not the machine's memory."""
    tail = WHOLE[WHOLE.index("(XEN)  [0000000000100000") :]
    found = explained(tail)
    assert found.agrees
    assert "Xen's e820 map and Xen's command line not in the log" in found.notes[-1]


def test_an_e820_map_with_ram_past_all_of_x86_is_none():
    """RAM to 2^52 is the most there can be; one page more is a garbled line."""
    start = "(XEN)  [0000000000100000, "
    assert start in WHOLE
    before, _, behind = WHOLE.partition(start)
    others = behind[behind.index("\n") :]
    for end, is_lost in {1 << 52: False, (1 << 52) + 4096: True}.items():
        found = explained(f"{before}{start}{end - 1:016x}] (usable){others}")
        assert any("Xen's e820 map not in the log" in note for note in found.notes) is is_lost


def test_the_image_is_known_from_what_lies_behind_it():
    """The lines of the kernel are lost: start_info begins where the image ends."""
    tail = BLOCK[BLOCK.index("(XEN)  Phys-Mach map") :]
    found = {check.what: check for check in explained(tail).checks}
    assert found["Start info"].given
    assert not found["Page tables"].given
    assert explained(tail.replace("84a", "84b")).agrees  # another kernel, 1 MiB longer
    assert differing(tail.replace("84a2b000", "84a2c000")) == ["Boot stack"]


def test_the_end_of_linux_is_not_predicted_without_xens_part():
    lost = LINUX.partition("[    0.000000] Released")[0]
    [end] = explained(BLOCK + lost + CONFLICT).ends
    assert end.predicted is None
    assert end.why[0].startswith("No prediction: Xen's e820 map or its command line")
    [end] = explain(parse_boots(f"(XEN) Panic on CPU 0:\n(XEN) {TOO_SMALL}\n"))[0].ends
    assert (end.predicted, end.why) == (None, ("No line says how large dom0 is.",))


def test_a_log_that_ends_before_the_initrds_line_leaves_its_pages_open():
    """8 MiB of initrd are 2048 of the pages that are not to be allocated any more."""
    text = HEAD + BLOCK.partition("(XEN) VIRTUAL")[0].replace("229376", "227328")
    assert explained(text).agrees
    assert differing(text + "(XEN) VIRTUAL MEMORY ARRANGEMENT:\n") == ["Dom0 alloc."]


def test_an_initrd_that_ends_before_it_begins_is_refused_by_its_line():
    line = "(XEN)  Init. ramdisk: 000000013ffff000->0000000130000000\n"
    text = WHOLE.replace("(XEN) VIRTUAL", f"{line}(XEN) VIRTUAL")
    number = text[: text.index(line)].count("\n") + 1
    with pytest.raises(UsageError, match=f"^line {number}: an initrd from 0x13ffff000 to 0x13"):
        explained(text)
