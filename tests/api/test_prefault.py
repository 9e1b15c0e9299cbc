# SPDX-License-Identifier: MIT
"""Memory in advance, zeros, huge pages."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from tests.conftest import DESIGNS, PAGE

import vmalloc
from vmalloc.prefault import at_once, huge_text

MIB = 1 << 20


@pytest.fixture(params=DESIGNS)
def region(request: pytest.FixtureRequest) -> Iterator[vmalloc.Region]:
    with vmalloc.Region("256M", nodes=1, **request.param) as region:
        yield region


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_prefaulted_memory_is_resident_and_is_found_warm(region: vmalloc.Region, threads: int | None) -> None:
    before = region.stats().resident_bytes
    assert region.prefault("100M", threads=threads) == 100 * MIB
    assert region.stats().resident_bytes >= before + 100 * MIB
    first = faults()
    arrays = [region.empty(3 * MIB, "u1") for _ in range(30)]
    for a in arrays:
        a[:] = 1
    assert faults() - first < 90 * MIB // PAGE // 10  # the interpreter's own
    assert region.stats().resident_bytes < before + 104 * MIB


def test_small_requests_are_served_from_it_too() -> None:
    with vmalloc.Region("64M", nodes=1) as region:
        assert region.prefault(16 * MIB) == 16 * MIB
        resident = region.stats().resident_bytes
        blocks = [region.alloc(PAGE) for _ in range(1000)]
        for block in blocks:
            memoryview(block)[:] = b"x" * PAGE
        assert region.stats().resident_bytes <= resident + MIB


@pytest.mark.parametrize("nbytes", [1, PAGE, PAGE + 1, MIB + 1])
def test_it_says_how_many_bytes_in_whole_pages(region: vmalloc.Region, nbytes: int) -> None:
    assert region.prefault(nbytes) == -(-nbytes // PAGE) * PAGE


def test_there_may_be_less(region: vmalloc.Region) -> None:
    kept = region.empty(200 * MIB, "u1")
    assert region.prefault("1G") == 56 * MIB
    assert region.prefault("1G") == 0
    b = region.empty(56 * MIB, "u1")
    del kept, b
    region.check(at_rest=True)


def test_holes_are_filled_too() -> None:
    with vmalloc.Region("16M", nodes=1, pools="off") as region:
        blocks = [region.alloc(PAGE) for _ in range(region.nr_pages)]
        for block in blocks[::2]:
            block.release()
        region.purge()
        assert region.prefault(8 * MIB) == 8 * MIB


def test_no_more_than_the_limit(region: vmalloc.Region) -> None:
    with vmalloc.Region("64M", limit="8M", nodes=1) as limited:
        assert limited.prefault("64M") == 8 * MIB


def test_it_stays_warm_above_lazy_max_until_a_shrink() -> None:
    with vmalloc.Region("64M", lazy_max="1M", nodes=1) as region:
        region.prefault("32M")
        for _ in range(100):
            region.empty(MIB, "u1")
        s = region.stats()
        assert s.lazy_pages + s.cached_pages == 32 * MIB // PAGE
        assert region._info()["floor_pages"] == 32 * MIB // PAGE
        assert region.shrink() == 32 * MIB
        assert region._info()["floor_pages"] == 0


def test_several_threads_prefault_beside_requests() -> None:
    with vmalloc.Region("128M", nodes=1) as region:
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda: got.append(region.prefault("16M", threads=2))) for _ in range(3)
        ]
        for t in threads:
            t.start()
        for _ in range(200):
            region.empty(MIB, "u1")[:] = 1
        for t in threads:
            t.join()
        assert got == [16 * MIB] * 3
        region.check(at_rest=True)
        assert region.stats().busy_pages == 0


def start_only(monkeypatch: pytest.MonkeyPatch, nr: int, error: BaseException) -> None:
    """From then on the start of a thread raises that."""
    start, left = threading.Thread.start, iter(range(nr))

    def start_or_raise(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_raise)


def test_what_finds_no_thread_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    start_only(monkeypatch, 1, RuntimeError("can't start new thread"))
    done: list[tuple[int, bool]] = []

    def work(i: int) -> None:
        done.append((i, threading.current_thread() is threading.main_thread()))

    at_once([(work, i) for i in range(4)])
    assert sorted(done) == [(0, True), (1, False), (2, True), (3, True)]


def test_after_an_interruption_between_two_threads_none_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    start_only(monkeypatch, 2, KeyboardInterrupt())
    ended: list[int] = []

    def work(i: int) -> None:
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        at_once([(work, i) for i in range(4)])
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize(
    "wrong", [{"nbytes": 0}, {"nbytes": -1}, {"nbytes": "x"}, {"nbytes": 1, "threads": 0}]
)
def test_sizes_and_threads_are_positive(region: vmalloc.Region, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        region.prefault(**wrong)


def test_a_closed_region_says_so(region: vmalloc.Region) -> None:
    region.close()
    with pytest.raises(vmalloc.RegionClosed):
        region.prefault(1)


# ---- zeros ----


@pytest.mark.parametrize("nbytes", [1, PAGE, 3 * PAGE + 5, 2 * MIB, 40 * MIB + 1])
def test_zeros_are_zero_whatever_was_there(region: vmalloc.Region, nbytes: int) -> None:
    for _ in range(3):
        a = region.empty(nbytes, "u1")
        a[:] = 255
        del a
        assert not region.zeros(nbytes, "u1").any()


# ---- huge pages ----


def test_long_ranges_begin_at_two_mebibytes_if_huge_pages_are_asked_for() -> None:
    with vmalloc.Region("64M", nodes=1, huge="try") as region:
        small = region.alloc(PAGE)
        arrays = [region.empty(n, "u1") for n in (2 * MIB, 2 * MIB + 1, 5 * MIB)]
        assert [a.ctypes.data % (2 * MIB) for a in arrays] == [0, 0, 0]
        assert small.offset == 0
        del arrays
        arrays = [region.empty(n, "u1") for n in (2 * MIB, 5 * MIB)]  # now warm
        assert [a.ctypes.data % (2 * MIB) for a in arrays] == [0, 0]


def test_a_full_region_is_used_up_also_where_huge_pages_do_not_fit() -> None:
    with vmalloc.Region("9M", nodes=1, huge="try") as region:
        blocks = [region.alloc(3 * MIB), region.alloc(3 * MIB), region.alloc(2 * MIB)]
        assert [b.offset // MIB for b in blocks] == [0, 4, 7]  # at 8 there is no room for two


def test_stats_say_whether_there_are_huge_pages_or_why_not() -> None:
    with vmalloc.Region("4M") as region:
        assert region.stats().huge == "never"
    with vmalloc.Region("4M", huge="try") as region:
        assert region.stats().huge.startswith(("on: ", "no: "))
        again = vmalloc.Region.attach(region.fileno(), readonly=True)
        assert again._info()["huge"]


def test_each_refusal_has_its_text() -> None:
    assert huge_text({"huge": False, "huge_error": 0}) == "never"
    assert huge_text({"huge": True, "huge_error": 22}) == "no: Invalid argument"


def test_only_try_and_never_are_known() -> None:
    with pytest.raises(ValueError, match="'try' or 'never', not 'always'"):
        vmalloc.Region("1M", huge="always")


def test_a_write_to_prefaulted_memory_is_seen_like_any_other() -> None:
    with vmalloc.Region("8M", nodes=1) as region:
        region.prefault("8M")
        a = region.array(np.arange(1000))
        region["a"] = a
        assert (region["a"] == np.arange(1000)).all()
