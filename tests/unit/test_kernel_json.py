# SPDX-License-Identifier: GPL-2.0-or-later
"""The `kernel` JSON object given back: defaults of absent keys, refusals of wrong ones."""

import json

import pytest
from elfbuilder import KA

from xenpt.errors import InputError
from xenpt.inputs.kernel import Kernel, default_kernel, kernel_from_bytes


def test_segments_alone_make_a_kernel_at_paddr():
    kernel = Kernel.from_dict({"segments": [[0x20_0000, 0, 0x1000], [0x10_0000, 1, 2]]})
    assert kernel == Kernel(
        bits=64,
        pae="no",
        virt_base=0,
        virt_kstart=0x10_0000,
        virt_kend=0x20_1000,
        entry=0x10_0000,
        paddr=(0x10_0000, 0x20_1000),
        segments=((0x20_0000, 0, 0x1000), (0x10_0000, 1, 2)),
    )


def test_a_virtual_range_alone_makes_one_segment():
    facts = {"virt_base": KA, "virt_kstart": KA + 0x100_0000, "virt_kend": KA + 0x2E0_0000}
    kernel = Kernel.from_dict(facts)
    assert kernel.paddr == (0x100_0000, 0x2E0_0000)
    assert kernel.segments == ((0x100_0000, 0x1E0_0000, 0x1E0_0000),)


def test_paddr_and_virt_base_give_the_virtual_range():
    kernel = Kernel.from_dict({"virt_base": KA, "paddr": [0x100_0000, 0x4A0_0000]})
    assert (kernel.virt_kstart, kernel.virt_kend) == (KA + 0x100_0000, KA + 0x4A0_0000)


def test_null_is_absent_and_source_is_a_remark():
    facts = {"segments": [[0, 0, 1]], "init_p2m": None, "pae": None, "source": "a mail"}
    assert Kernel.from_dict(facts).pae == "no"


def test_a_32_bit_kernel_is_for_a_32_bit_machine():
    assert Kernel.from_dict({"bits": 32, "segments": [[0, 0, 1]]}).machine == 3


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("init_p2n", 1, "unknown key 'init_p2n' of a kernel"),
        ("bits", 16, "bits: 16 is not one of 32, 64"),
        ("bits", True, "bits: True is not one of 32, 64"),
        ("pae", "maybe", "pae: 'maybe' is not one of no, yes, extcr3, bimodal"),
        ("entry", "0x1000", "entry: '0x1000' is not an integer"),
        ("entry", 1.5, "entry: 1.5 is not an integer"),
        ("virt_base", -1, "virt_base: -1 is outside [0, 2**64)"),
        ("init_p2m", 1 << 64, f"init_p2m: {1 << 64} is outside [0, 2**64)"),
        ("mod_start_pfn", 1, "mod_start_pfn: 1 is not true or false"),
        ("features", 7, "features: 7 is not a string"),
        ("features", "\ud800", "features: 'utf-8' codec can't encode"),
        ("segments", [], "segments: not a list of [paddr, filesz, memsz]"),
        ("segments", [[1, 2]], "segments: [1, 2] is not a list of 3 integers"),
        ("segments", [[0, 2, 1]], "segments: [0, 2, 1] is not a segment"),
        ("paddr", [1, 2, 3], "paddr: [1, 2, 3] is not a list of 2 integers"),
        ("paddr", [2, 1], "paddr [2, 1]: start is above end"),
        ("paddr", [0, 2], "paddr [0, 2] is not the range of the segments"),
        ("symbols", ["_text"], "symbols: not an object of addresses"),
        ("symbols", {"_text": "a"}, "symbols: 'a' is not an integer"),
        ("notes", {"ENTRY": 1}, "notes: not a list of [name, size, value]"),
        ("notes", [["ENTRY", 8]], "notes: ['ENTRY', 8] is not [name, size, value]"),
        ("notes", [["ENTRY", 8, None]], "notes: None is not an integer"),
        ("entry", 5, "ELF start or entries are out of bounds"),
        ("init_p2m", 0, "P->M table base is out of bounds"),
    ],
)
def test_refusals_name_the_file_and_the_key(key, value, text):
    with pytest.raises(InputError) as caught:
        Kernel.from_dict({"segments": [[0, 0, 4]], key: value}, source="k.json")
    assert str(caught.value).startswith(f"k.json: {text}")
    assert "\n" not in str(caught.value)


def test_not_an_object():
    with pytest.raises(InputError, match="not a JSON object of a kernel"):
        Kernel.from_dict([], source="k.json")


def test_json_that_is_too_deep_or_too_large():
    with pytest.raises(InputError, match="not JSON"):
        kernel_from_bytes(b'{"a":' * 100_000, "k.json")
    with pytest.raises(InputError, match="JSON of more than 4 MiB"):
        kernel_from_bytes(b"{" + b" " * (16 << 20), "k.json")


def test_bytes_that_are_no_text():
    with pytest.raises(InputError, match="not JSON"):
        kernel_from_bytes(b'{"\xff": 1}', "k.json")


def test_json_with_leading_space_is_json():
    text = "\n  " + json.dumps(default_kernel().as_dict())
    assert kernel_from_bytes(text.encode(), "k.json") == default_kernel()
