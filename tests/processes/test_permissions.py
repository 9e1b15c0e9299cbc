# SPDX-License-Identifier: MIT
"""Who may attach, and what a read-only attachment can do: look."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import PAGE
from tests.processes.workers import NOBODY, needs_root, told_by_nobody, wait_until

import vmalloc


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M", name="kept", nodes=1)
    region["seven"] = region.full((100, 100), 7, "u1")
    yield region
    region.close()


def path_of(region: vmalloc.Region) -> str:
    return f"/proc/{os.getpid()}/fd/{region.fileno()}"


def refusal(source: int | str, readonly: bool) -> str:
    try:
        vmalloc.Region.attach(source, readonly=readonly)
    except vmalloc.RegionUnavailable as e:
        return f"{errno.errorcode[e.errno or 0]} {e.strerror}"
    return "attached"


# ---- rights and seals ----


def test_only_its_user_can_open_a_region_anew(region: vmalloc.Region) -> None:
    assert stat.S_IMODE(os.fstat(region.fileno()).st_mode) == 0o600


def test_nobody_can_cut_a_region_short(region: vmalloc.Region) -> None:
    assert fcntl.fcntl(region.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(region.fileno(), PAGE)


@needs_root
@pytest.mark.parametrize("readonly", [False, True])
def test_another_user_who_got_the_descriptor_is_refused(region: vmalloc.Region, readonly: bool) -> None:
    said = told_by_nobody(lambda: refusal(region.fileno(), readonly))
    assert said.startswith("EACCES")
    assert "another user" in said


@needs_root
def test_another_user_cannot_open_it_through_proc(region: vmalloc.Region) -> None:
    path = path_of(region)
    assert told_by_nobody(lambda: refusal(path, True)).startswith("EACCES")


@needs_root
def test_root_may_attach_what_another_user_made() -> None:
    made_read, made = os.pipe()
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        theirs = vmalloc.Region("1M")
        theirs["a"] = theirs.full(5, 9, "u1")
        os.write(made, f"{theirs.fileno()}\n".encode())
        os.read(ended, 1)  # until root closes it
        os._exit(0)
    with os.fdopen(made_read) as f:
        os.close(made)
        fd = int(f.readline())
    region = vmalloc.Region.attach(f"/proc/{pid}/fd/{fd}")
    assert region["a"].tolist() == [9] * 5
    region.close()
    os.close(end)
    os.close(ended)
    assert os.waitpid(pid, 0)[1] == 0


# ---- read-only ----


def test_a_read_only_attachment_sees_what_others_see(region: vmalloc.Region) -> None:
    look = vmalloc.Region.attach(path_of(region), readonly=True)
    assert look is not region
    assert look.readonly
    assert not region.readonly
    assert look.id == region.id
    assert look.nr_pages == region.nr_pages
    assert look.names() == ["seven"]
    assert look.ranges() == region.ranges()
    assert look.stats() == region.stats()
    look.check(at_rest=True)
    look.close()


def test_it_follows_the_region_and_takes_no_slot(region: vmalloc.Region) -> None:
    look = vmalloc.Region.attach("kept", readonly=True)
    before = look.stats()
    assert before.nr_processes == 1
    block = region.alloc(500 * PAGE)
    assert look.stats().busy_pages == before.busy_pages + 500
    block.release()
    look.close()


def test_the_descriptor_need_not_be_writable_and_the_mapping_is_not(region: vmalloc.Region) -> None:
    fd = os.open(path_of(region), os.O_RDONLY)
    look = vmalloc.Region.attach(fd, readonly=True)
    os.close(fd)
    with open("/proc/self/maps") as f:
        rights = sorted(line.split()[1] for line in f if "memfd:vmalloc:kept" in line)
    assert rights == ["r--s", "r--s", "rw-s"]  # look's, the page that keeps region's OFD lock, and region's
    assert look.stats().nr_shared == 1
    look.close()


def set_name(region: vmalloc.Region) -> None:
    region["new"] = [1, 2, 3]


def delete_name(region: vmalloc.Region) -> None:
    del region["seven"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: r.alloc(1), id="alloc"),
        pytest.param(lambda r: r.alloc_bulk(1, 3), id="alloc_bulk"),
        pytest.param(lambda r: r.empty(10), id="empty"),
        pytest.param(lambda r: r.zeros(10), id="zeros"),
        pytest.param(lambda r: r["seven"], id="get a name"),
        pytest.param(set_name, id="set a name"),
        pytest.param(delete_name, id="delete a name"),
        pytest.param(lambda r: r.purge(), id="purge"),
        pytest.param(lambda r: r.shrink(), id="shrink"),
        pytest.param(lambda r: r.recover(), id="recover"),
        pytest.param(lambda r: r.expire_leases(), id="expire_leases"),
        pytest.param(lambda r: r.drop_inherited(), id="drop_inherited"),
        pytest.param(lambda r: r.check(repair=True), id="repair"),
        pytest.param(pickle.dumps, id="send"),
    ],
)
def test_whatever_would_change_or_hold_something_is_refused(
    region: vmalloc.Region, change: Callable[[vmalloc.Region], Any]
) -> None:
    look = vmalloc.Region.attach(path_of(region), readonly=True)
    ranges = region.ranges()
    with pytest.raises(vmalloc.RegionUnavailable, match="read-only") as refused:
        change(look)
    assert refused.value.errno == errno.EROFS
    assert region.ranges() == ranges
    look.close()


def test_looking_does_not_disturb_and_always_tiles_the_region_while_others_work(
    region: vmalloc.Region,
) -> None:
    look = vmalloc.Region.attach(path_of(region), readonly=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        while True:
            try:
                os.write(write, b".")  # fails when the parent has seen enough
            except BrokenPipeError:
                os._exit(0)
            for _ in range(50):
                blocks = [region.alloc(n * PAGE) for n in (1, 3, 300, 17)]
                del blocks
                region.shrink()
    os.close(write)
    seen = 0
    while seen < 30:
        os.read(read, 1)
        ranges = look.ranges()
        assert ranges[0].start == 0
        assert ranges[-1].end == look.nr_pages
        assert all(a.end == b.start for a, b in itertools.pairwise(ranges))
        seen += 1
    os.close(read)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the child goes on after its pipe is closed")
    look.close()
