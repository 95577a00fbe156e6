# SPDX-License-Identifier: GPL-2.0-or-later
import resource

import pytest

from xenpt import room
from xenpt.errors import NoRoomError

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 GiB free, and a process of 1 GiB without a limit of its own."""
    found = {"MemAvailable": 8 * GIB >> 10, "VmSize": 1 * GIB >> 10}
    monkeypatch.setattr(room, "_kib", lambda _, name: found[name])
    limits = [resource.RLIM_INFINITY]
    monkeypatch.setattr(room.resource, "getrlimit", lambda _: (limits[0], limits[0]))
    return limits


@pytest.mark.usefixtures("machine")
def test_what_fits_is_not_refused():
    room.require_room(8 * GIB, "tables")


@pytest.mark.usefixtures("machine")
def test_what_is_more_than_the_machine_has_is_refused_with_both_numbers():
    with pytest.raises(NoRoomError, match=r"^tables need about 9 GiB of memory, 8 GiB are free$"):
        room.require_room(9 * GIB, "tables")


def test_the_limit_of_the_process_counts_without_what_it_has(machine):
    machine[0] = 4 * GIB
    with pytest.raises(NoRoomError, match="3 GiB are free"):
        room.require_room(3 * GIB + 1, "tables")
    machine[0] = GIB // 2  # of a process that has more already
    with pytest.raises(NoRoomError, match="0 B are free"):
        room.require_room(room.SMALL_BYTES, "tables")


def test_little_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda: 0)
    room.require_room(room.SMALL_BYTES - 1, "tables")


def test_a_real_machine_has_some():
    assert 0 < room.free_bytes() < 1 << 50
