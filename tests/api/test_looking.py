# SPDX-License-Identifier: MIT
"""Looking at a large region beside a busy thread: one turn at the interpreter lock, not one each."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.conftest import PAGE

import vmalloc
from vmalloc.facts import NAMES_MAX

SLICE_S = 0.2  # a busy thread keeps the interpreter lock so long
RANGES = 2000  # one turn for each would be 400 s; the test would have failed long before
OFF_BITS = 144  # where the header says where the index's bits are

pytestmark = pytest.mark.timeout(60)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Beside a thread that gives the interpreter lock away only when it must."""
    over = False

    def count() -> None:
        while not over:
            pass

    before = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    sys.setswitchinterval(SLICE_S)
    try:
        yield
    finally:
        over = True
        thread.join()
        sys.setswitchinterval(before)


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    with vmalloc.Region("64M", nodes=1) as region:
        yield region


def test_ranges_come_in_one_turn(region: vmalloc.Region) -> None:
    blocks = [region.alloc(PAGE) for _ in range(RANGES)]
    with busy():
        found = [r for r in region.ranges() if r.state == "busy"]
    assert sorted(r.start * PAGE for r in found) == sorted(b.offset for b in blocks)
    assert {r.nr_pages for r in found} == {1}


def test_names_come_in_one_turn(region: vmalloc.Region) -> None:
    a = region.zeros(1)
    names = [f"nächste {i}" for i in range(NAMES_MAX)]
    for name in names:
        region[name] = a
    with busy():
        assert sorted(region.names()) == sorted(names)


def test_findings_of_a_check_and_of_a_repair_come_in_one_turn(region: vmalloc.Region) -> None:
    blocks = [region.alloc(PAGE) for _ in range(RANGES)]
    at = int.from_bytes(os.pread(region.fileno(), 8, OFF_BITS), "little")
    os.pwrite(region.fileno(), bytes(RANGES // 8), at)  # as if the first so many pages were free
    with busy():
        found = region._check(False)
        mended = region._repair()
    assert len(found) > RANGES // 2  # a report ends after 1,000
    assert mended
    assert region._check(False) == []
    del blocks


def test_the_text_of_out_of_pages_comes_in_one_turn(region: vmalloc.Region) -> None:
    blocks = [region.alloc(PAGE) for _ in range(RANGES)]
    with busy(), pytest.raises(vmalloc.OutOfPages, match=rf"{RANGES} busy"):
        region.alloc(1 << 40)
    del blocks


def test_a_picture_is_whole_while_others_work(region: vmalloc.Region) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            for n in (1, 3, 300):
                region.alloc(n * PAGE).release()
            region.purge()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(200):
        end = 0
        for r in region.ranges():
            assert r.start == end
            end = r.end
        assert end == region.nr_pages
    stop.set()
    thread.join()
