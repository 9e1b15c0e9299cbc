# SPDX-License-Identifier: MIT
"""Limits of a live region, who holds how much, waiting for pages, and errors whose advice can be followed."""

from __future__ import annotations

import os
import pickle
import threading

import pytest

import vmalloc
from vmalloc import _core

MIB = 1 << 20


@pytest.fixture
def region():
    with vmalloc.Region("64M", nodes=1) as region:
        yield region
        region.check()


def out_of_pages(region: vmalloc.Region, nbytes: int) -> vmalloc.OutOfPages:
    with pytest.raises(vmalloc.OutOfPages) as caught:
        region.empty(nbytes, "u1")
    return caught.value


# ---- limits ----


def test_limits_are_read_as_they_were_given():
    with vmalloc.Region("64M", limit="32M", soft_limit="16M", quota=8 * MIB) as region:
        assert (region.limit, region.soft_limit, region.quota) == (32 * MIB, 16 * MIB, 8 * MIB)
        assert region.floor is None
    with vmalloc.Region("64M") as region:
        assert (region.limit, region.soft_limit, region.quota, region.floor) == (None,) * 4


def test_a_limit_is_raised_as_its_error_says(region):
    region.limit = "4M"
    kept = region.empty(3 * MIB, "u1")
    error = out_of_pages(region, 2 * MIB)
    assert error.cause == "limit"
    assert "raise region.limit" in str(error)
    assert error.limit == 4 * MIB
    region.limit = "8M"
    more = region.empty(2 * MIB, "u1")
    region.limit = None
    most = region.empty(40 * MIB, "u1")
    assert kept.nbytes + more.nbytes + most.nbytes == 45 * MIB


def test_what_lies_above_a_lowered_limit_stays(region):
    kept = region.full(10 * MIB, 7, "u1")
    region.limit = "1M"
    assert out_of_pages(region, 4096).cause == "limit"
    assert (kept == 7).all()
    del kept
    assert region.empty(MIB // 2, "u1").nbytes == MIB // 2


def test_a_quota_bounds_this_process(region):
    region.quota = "4M"
    kept = region.empty(3 * MIB, "u1")
    error = out_of_pages(region, 2 * MIB)
    assert (error.cause, error.quota, error.holders) == ("quota", 4 * MIB, ((os.getpid(), 3 * MIB),))
    for _ in range(100):  # what was given back counts no more
        del kept
        kept = region.empty(3 * MIB, "u1")
    assert kept.nbytes == 3 * MIB
    small = [region.empty(8192, "u1") for _ in range(128)]
    assert out_of_pages(region, 8192).cause == "quota"
    del small
    region.quota = None
    assert region.empty(20 * MIB, "u1").nbytes == 20 * MIB


def test_a_quota_leaves_the_rest_to_others(region):
    region.quota = "8M"
    kept = region.empty(8 * MIB, "u1")
    pid = os.fork()
    if pid == 0:
        region.drop_inherited()
        os._exit(0 if region.empty(8 * MIB, "u1").nbytes == 8 * MIB else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert kept.nbytes == 8 * MIB


@pytest.mark.parametrize("name", ["limit", "soft_limit", "quota", "floor"])
@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5, True])
def test_a_bad_limit_is_refused(region, name, wrong):
    with pytest.raises((ValueError, TypeError), match="size"):
        setattr(region, name, wrong)
    assert getattr(region, name) is None


@pytest.mark.parametrize("name", ["limits", "Limit", "qouta", "size"])
def test_an_attribute_that_does_not_exist_is_refused(region, name):
    with pytest.raises(AttributeError):
        setattr(region, name, "1G")


def test_a_reader_cannot_change_them(region):
    looked_in = vmalloc.Region.attach(region.fileno(), readonly=True)
    region.limit = "8M"
    assert looked_in.limit == 8 * MIB
    with pytest.raises(vmalloc.RegionUnavailable, match="read-only"):
        looked_in.limit = "9M"


# ---- who holds how much ----


def test_holders_are_told_by_pid_the_most_first(region):
    kept = region.empty(2 * MIB, "u1")
    reader, writer = os.pipe()
    done_reader, done_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        region.drop_inherited()
        own = region.empty(5 * MIB, "u1")
        os.write(writer, b"x")
        os.close(done_writer)
        os.read(done_reader, 1)
        os._exit(own.nbytes == 0)
    os.read(reader, 1)
    assert [(h.pid, h.nbytes) for h in region.holders()] == [(pid, 5 * MIB), (os.getpid(), 2 * MIB)]
    assert [h.pid for h in region.holders(1)] == [pid]
    os.close(done_writer)
    os.waitpid(pid, 0)
    for fd in (reader, writer, done_reader):
        os.close(fd)
    region.recover()
    assert [h.pid for h in region.holders()] == [os.getpid()]
    assert kept.nbytes == 2 * MIB


# ---- errors ----


def test_the_error_says_what_is_left(region):
    kept = region.empty(40 * MIB, "u1")
    error = out_of_pages(region, 30 * MIB)
    assert error.cause == "space"
    assert (error.requested, error.free, error.largest) == (30 * MIB, 24 * MIB, 24 * MIB)
    assert (error.limit, error.quota, error.lazy) == (None, None, 0)
    assert error.holders == ((os.getpid(), 40 * MIB),)
    assert str(os.getpid()) in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.cause, again.holders) == (error.cause, error.holders)
    assert kept.nbytes == 40 * MIB


# ---- waiting ----


@pytest.mark.parametrize(
    ("bound", "requested", "advice"),
    [
        ({}, 30, "Free something, or make a larger region."),
        ({}, 33, "The region is smaller than that: make a larger one."),
        ({"limit": 16 * MIB}, 12, "Free something, or raise region.limit."),
        ({"limit": 16 * MIB}, 17, "Raise region.limit."),
        ({"limit": 16 * MIB}, 33, "The region is smaller than that: make a larger one."),
        ({"quota": 16 * MIB}, 12, "Free something in this process, or raise region.quota."),
        ({"quota": 16 * MIB}, 17, "Raise region.quota."),
    ],
)
def test_the_advice_can_be_followed(bound, requested, advice):
    with vmalloc.Region("32M", **bound) as region:
        held = region.alloc(6 * MIB)
        with pytest.raises(vmalloc.OutOfPages) as full:
            region.alloc(requested * MIB)
        assert str(full.value).endswith(f". {advice}")
        held.release()


def test_nobody_waits_for_what_a_region_can_never_have(region, monkeypatch):
    monkeypatch.setattr(_core, "monotonic", lambda: pytest.fail("it waited"))
    with pytest.raises(vmalloc.OutOfPages):
        region.empty(region.size + 1, "u1", timeout=600)


def test_a_request_waits_for_pages(region):
    kept = [region.empty(60 * MIB, "u1")]
    timer = threading.Timer(0.2, kept.clear)
    timer.start()
    assert region.empty(50 * MIB, "u1", timeout=60).nbytes == 50 * MIB
    assert region.zeros(50 * MIB, "u1", timeout=0.0).nbytes == 50 * MIB
    assert len(region.alloc(50 * MIB, timeout=1)) == 50 * MIB


def test_waiting_ends(region):
    kept = region.empty(60 * MIB, "u1")
    with pytest.raises(vmalloc.OutOfPages):
        region.alloc(50 * MIB, timeout=0.05)
    with pytest.raises(ValueError, match="timeout"):
        region.alloc(50 * MIB, timeout=-1)
    assert kept.nbytes == 60 * MIB
