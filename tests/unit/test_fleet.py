# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.capacity import GuestGroup
from xenpt.errors import InputError
from xenpt.fleet import fleet, read_fleet
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import V6_1

KERNEL = {"kernel": default_kernel(), "rules": V6_1}
HALF_TIB = 1 << 27


def test_same_guests_on_fewer_larger_hosts():
    hosts = [Host(memory=size) for size in ("1T", "4T", "12T")]
    found = fleet(hosts, [GuestGroup(40, HALF_TIB)], [(None, None)], **KERNEL)
    # 1014 GiB of each TiB, less dom0's 8; each guest takes 514 GiB and 3 MiB
    assert [option.per_host for option in found] == [1, 7, 23]
    assert [option.nr_hosts for option in found] == [40, 6, 2]
    shares = [option.full.overhead / option.full.nr_pages for option in found]
    assert shares == sorted(shares, reverse=True)
    assert all(option.full.left >= 0 for option in found)


def test_guest_that_no_host_has_room_for():
    (found,) = fleet([Host(memory="256G")], [GuestGroup(2, HALF_TIB)], [(None, None)], **KERNEL)
    assert (found.per_host, found.nr_hosts) == (0, None)
    assert found.full.guests == ()


def test_host_whose_dom0_panics_houses_nobody():
    (found,) = fleet([Host(memory="1T")], [GuestGroup(2, 1 << 18)], [("32M", None)], **KERNEL)
    assert found.per_host == 0
    assert found.as_dict()["panic"] == "Domain 0 allocation is too small for kernel image"


def write(tmp_path, text):
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_spans_every_combination(tmp_path):
    path = write(
        tmp_path,
        """
        guests = "8x64G"
        [[hosts]]
        name = "a"
        host = "1T,2T"
        type = ["pv", "pvh"]
        dom0_rule = ["qubes", "xcp-ng"]
        [[hosts]]
        name = "b"
        host = "32T"
        bigmem = true
        xen = "4.20"
        dom0_mem = "8G,max:8G"
        vcpus = 16
        """,
    )
    found = read_fleet(path, **KERNEL)
    assert [option.name for option in found] == ["a"] * 8 + ["b"]
    assert {option.guests.kind for option in found[:8]} == {"pv", "pvh"}
    assert {option.empty.dom0_rule.name for option in found[:8]} == {"qubes", "xcp-ng"}
    last = found[-1]
    assert (last.guests.vcpus, last.empty.host.bigmem, last.empty.host.xen) == (16, True, "4.20")
    assert last.empty.dom0.guest.dom0_mem == "8G,max:8G"


def test_file_may_name_a_map_beside_it(tmp_path):
    log = "(XEN)  [0000000000000000, 00000000ffffffff] (usable)\n"
    (tmp_path / "host.log").write_text(log, encoding="utf-8")
    path = write(tmp_path, '[[hosts]]\ne820 = "host.log"\nguests = "2x1G"\n')
    (found,) = read_fleet(path, **KERNEL)
    assert found.empty.nr_pages == 1 << 20


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[[hosts", "not TOML"),
        ("hosts = 1", "hosts: expected tables"),
        ("[[hosts]]\nhost = '1T'", "guests is missing"),
        ("guests = '1x1G'", "host or e820 is missing"),
        ("[[hosts]]\ncolour = 'red'", "unknown key 'colour'"),
        ("[[hosts]]\nhost = 3\nguests = '1x1G'", "host: 3: expected a text in quotes"),
        ("[[hosts]]\nhost = '1T'\nguests = 'x'", "guests 'x'"),
        ("[[hosts]]\nhost = '1T'\nguests = '1x1G'\nbigmem = 'yes'", "bigmem: 'yes'"),
        ("[[hosts]]\nhost = '1T'\nguests = '1x1G'\nvcpus = '2'", "vcpus: '2'"),
        ("[[hosts]]\nhost = '1T'\nguests = '1x1G'\ndom0_rule = 'x'", "rule 'x'"),
        ("[[hosts]]\nhost = '1T'\nguests = '1x1G'\ne820 = 'gone'", "gone"),
    ],
)
def test_file_that_has_no_meaning(tmp_path, text, reason):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=reason) as caught:
        read_fleet(path, **KERNEL)
    assert str(caught.value).startswith(str(path))
