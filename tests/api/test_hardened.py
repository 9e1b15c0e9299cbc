# SPDX-License-Identifier: MIT
"""Hardened regions: what was written past an end or after a free is found, and both lines are told."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from tests.conftest import DESIGNS, PAGE

import vmalloc
from vmalloc.facts import QUARANTINE_SHARE

SIZES = [1, 100, PAGE - 321, PAGE - 320, PAGE - 1, PAGE, PAGE + 1, 10 * PAGE, 300 * PAGE]


def line() -> str:
    """Where the caller stands."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def free(block: vmalloc.Block) -> None:
    block.release()


def come_and_go(region: vmalloc.Region, times: int) -> None:
    for _ in range(times):
        region.alloc(1).release()


def release_each(blocks: list[vmalloc.Block]) -> None:
    for block in blocks:
        block.release()


FREED = f"{free.__code__.co_filename}:{free.__code__.co_firstlineno + 1}"


def scribble(address: int, nbytes: int = 1) -> None:
    """What ctypes, a C library or another process can do."""
    ctypes.memset(address, 0x55, nbytes)


@pytest.fixture(params=DESIGNS)
def region(request: pytest.FixtureRequest) -> Iterator[vmalloc.Region]:
    with vmalloc.Region("64M", nodes=1, hardened=True, **request.param) as region:
        yield region


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(args.exc_value))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_a_program_without_mistakes_notices_nothing(region: vmalloc.Region, size: int) -> None:
    for _ in range(3):
        block = region.alloc(size)
        memoryview(block)[:] = bytes([7]) * size
        region.check()
        block.release()
        a = region.zeros(size, "u1")
        assert not a.any()
        a[:] = 1
        del a
    region.check()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("past", [0, 1, 63])
def test_an_overrun_is_told_with_both_lines(region: vmalloc.Region, size: int, past: int) -> None:
    block, made = region.alloc(size), line()
    scribble(block.address + size + past)
    with pytest.raises(vmalloc.MemoryMisused) as caught:
        free(block)
    e = caught.value
    assert (e.kind, e.made, e.freed, e.byte) == ("overrun", made, FREED, size + past)
    for told in (made, FREED, f"byte {past + 1} past the end of {size} bytes"):
        assert told in str(e)
    assert block.released
    region.check()


def test_a_long_overrun_is_told_too_though_it_wrote_over_the_record(region: vmalloc.Region) -> None:
    block, made = region.alloc(100), line()
    scribble(block.address + 100, PAGE - 100)
    with pytest.raises(vmalloc.MemoryMisused) as caught:
        block.release()
    assert (caught.value.kind, caught.value.made, caught.value.byte) == ("overrun", made, 100)


def test_check_finds_an_overrun_of_what_is_in_use(region: vmalloc.Region) -> None:
    a, made = region.empty(10, "u1"), line()
    scribble(a.ctypes.data + 10)
    with pytest.raises(vmalloc.MemoryMisused, match="is in use") as caught:
        region.check()
    assert (caught.value.made, caught.value.freed) == (made, "")
    ctypes.memset(a.ctypes.data + 10, 0xA7, 1)  # put right, or the finalizer tells it again


@pytest.mark.parametrize("size", SIZES)
def test_a_use_after_free_is_told_with_both_lines(region: vmalloc.Region, size: int) -> None:
    block, made = region.alloc(size), line()
    address = block.address
    free(block)
    assert ctypes.string_at(address, size) == b"\xdb" * size  # who only reads sees poison
    scribble(address + size - 1)
    with pytest.raises(vmalloc.MemoryMisused) as caught:
        region.check()
    e = caught.value
    assert (e.kind, e.made, e.freed, e.byte) == ("use after free", made, FREED, size - 1)
    assert made in str(e)
    assert FREED in str(e)
    ctypes.memset(address, 0xDB, size)
    region.check()


def test_a_use_after_free_is_found_when_the_range_is_to_be_used_again(region: vmalloc.Region) -> None:
    block, made = region.alloc(5), line()
    scribble_at = block.address
    block.release()
    scribble(scribble_at)
    with pytest.raises(vmalloc.MemoryMisused) as caught:
        come_and_go(region, 2 * region.nr_pages)
    assert (caught.value.kind, caught.value.made) == ("use after free", made)


def test_closing_looks_at_what_is_left() -> None:
    region = vmalloc.Region("1M", hardened=True)
    block = region.alloc(5)
    address = block.address
    block.release()
    scribble(address)
    with pytest.raises(vmalloc.MemoryMisused, match="use after free"):
        region.close()
    assert region.closed


def test_a_finalizer_tells_by_the_hook_and_check_tells_it_again(
    region: vmalloc.Region, unraisable: list[Any]
) -> None:
    a, made = region.empty(10, "u1"), line()
    scribble(a.ctypes.data + 12)
    del a
    gc.collect()
    assert [(e.kind, e.made, e.byte) for e in unraisable] == [("overrun", made, 12)]
    with pytest.raises(vmalloc.MemoryMisused, match="overrun"):
        region.check()
    region.check()


def test_what_is_released_tells_where(region: vmalloc.Region) -> None:
    block, made = region.alloc(5), line()
    free(block)
    with pytest.raises(vmalloc.NotAllocated) as caught:
        memoryview(block)
    assert made in str(caught.value)
    assert FREED in str(caught.value)
    block.release()  # a second time does nothing, as ever


def test_a_freed_range_waits_and_its_memory_is_not_lost(region: vmalloc.Region) -> None:
    first = region.alloc(PAGE)
    offset = first.offset
    first.release()
    assert region.alloc(PAGE).offset != offset
    most = region.nr_pages // QUARANTINE_SHARE
    for _ in range(2 * most):
        region.alloc(1).release()
        assert region.stats().busy_pages <= most + 4
    blocks = [
        region.alloc(PAGE) for _ in range(region.nr_pages // 2 - 100)
    ]  # two pages each: none is left in quarantine
    with pytest.raises(vmalloc.OutOfPages):
        blocks += [region.alloc(PAGE) for _ in range(200)]
    region.free_bulk(blocks)


def test_blocks_in_bulk_are_looked_at_each(region: vmalloc.Region) -> None:
    blocks, made = region.alloc_bulk(PAGE, 20), line()
    scribble(blocks[7].address + PAGE)
    with pytest.raises(vmalloc.MemoryMisused) as caught:
        release_each(blocks)
    assert caught.value.made == made
    for block in blocks:
        block.release()


def test_a_named_array_is_like_any_other(region: vmalloc.Region) -> None:
    a = region.zeros(100, "u1")
    region["a"] = a
    del a
    b = region["a"]
    assert b.nbytes == 100
    del region["a"]
    del b
    region.check()


def test_a_stale_reference_stays_stale_while_its_range_waits(region: vmalloc.Region) -> None:
    a = region.zeros(100, "u1")
    ref = vmalloc.ref(a)
    message = pickle.dumps(ref)
    del a, ref
    gc.collect()
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(message)


def test_the_error_goes_through_a_pickle() -> None:
    e = vmalloc.MemoryMisused("text", "overrun", 4096, 7, "a:1", "b:2")
    f = pickle.loads(pickle.dumps(e))
    assert (str(f), f.kind, f.offset, f.byte, f.made, f.freed) == ("text", "overrun", 4096, 7, "a:1", "b:2")


def made_by_numpy(region: vmalloc.Region, size: int) -> np.ndarray[Any, Any]:
    with region.numpy_arrays(1):
        return np.ones(size, "u1")


def drop(kept: list[Any]) -> None:
    kept.clear()


DROPPED = f"{drop.__code__.co_filename}:{drop.__code__.co_firstlineno + 1}"
MADE_BY_NUMPY = f"{made_by_numpy.__code__.co_filename}:{made_by_numpy.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize("size", SIZES)
def test_what_numpy_makes_in_it_is_sent_and_named_without_a_false_alarm(
    region: vmalloc.Region, unraisable: list[Any], size: int
) -> None:
    array = made_by_numpy(region, size)
    region["it"] = array
    ref = vmalloc.ref(array)
    copy = pickle.loads(pickle.dumps(ref))
    del array, ref
    assert int(copy.sum(dtype="u8")) == int(region["it"].sum(dtype="u8")) == size
    del copy, region["it"]
    array = made_by_numpy(region, size)
    array.resize(size + 100, refcheck=False)
    assert int(array.sum(dtype="u8")) == size
    del array
    gc.collect()
    region.check()
    assert unraisable == []


@pytest.mark.parametrize("size", SIZES)
def test_an_overrun_of_what_numpy_makes_is_told_with_both_lines(
    region: vmalloc.Region, unraisable: list[Any], size: int
) -> None:
    array = made_by_numpy(region, size)
    scribble(array.ctypes.data + size)
    kept = [array]
    del array
    drop(kept)
    with pytest.raises(vmalloc.MemoryMisused) as found:
        region.check()
    assert (found.value.kind, found.value.made, found.value.freed) == ("overrun", MADE_BY_NUMPY, DROPPED)
    assert unraisable == [found.value]


def test_a_use_after_free_of_what_numpy_made_is_told_with_both_lines(region: vmalloc.Region) -> None:
    array = made_by_numpy(region, 1000)
    address, kept = array.ctypes.data, [array]
    del array
    drop(kept)
    scribble(address)
    with pytest.raises(vmalloc.MemoryMisused) as found:
        region.check()
    told = found.value.kind, found.value.made, found.value.freed
    assert told == ("use after free", MADE_BY_NUMPY, DROPPED)
    ctypes.memset(address, 0xDB, 1)


def test_a_region_that_is_not_hardened_has_no_guard() -> None:
    with vmalloc.Region("1M") as region:
        assert region._guard is None
        assert region.alloc(PAGE)._range[1] == 1


def test_threads_come_and_go_at_once(region: vmalloc.Region) -> None:
    errors: list[BaseException] = []

    def work(size: int) -> None:
        try:
            for _ in range(300):
                block = region.alloc(size)
                memoryview(block)[:] = b"x" * size
                block.release()
                region.zeros(size, "u1")
        except BaseException as e:  # told by the main thread
            errors.append(e)

    threads = [threading.Thread(target=work, args=(size,)) for size in (1, PAGE, 100 * PAGE, 1000 * PAGE)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    region.check()


# ---- several processes ----


def free_last(pipe: Any) -> None:
    """Gets an array, lets go of it when told to, and sends what the finalizer said."""
    found: list[str] = []
    sys.unraisablehook = lambda args: found.append(str(args.exc_value))
    a = pipe.recv()
    pipe.send(a.nbytes)
    pipe.recv()
    del a
    gc.collect()
    pipe.send(found)


def freed_by_another(a: Any, meanwhile: Callable[[], None]) -> list[str]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=free_last, args=(there,))
    process.start()
    here.send(vmalloc.ref(a))
    assert here.recv() == a.nbytes
    meanwhile()
    here.send("go on")
    found: list[str] = here.recv()
    process.join()
    return found


def test_a_reference_that_another_process_drops_is_looked_at_there(region: vmalloc.Region) -> None:
    a, made = region.zeros(100, "u1"), line()
    assert freed_by_another(a, region.check) == []
    found = freed_by_another(a, lambda: scribble(a.ctypes.data + 105))
    assert len(found) == 1
    assert "overrun: byte 6 past the end" in found[0]
    assert f"{made} in process {os.getpid()}" in found[0]
    with pytest.raises(vmalloc.MemoryMisused, match="overrun"):
        region.check()
    ctypes.memset(a.ctypes.data + 105, 0xA7, 1)


def test_the_last_holder_poisons_it_wherever_that_is(region: vmalloc.Region) -> None:
    a = region.zeros(100, "u1")
    ref = pickle.loads(pickle.dumps(vmalloc.ref(a)))  # a second reference, of the same process
    address = a.ctypes.data
    del a
    assert (ref == 0).all()
    del ref
    gc.collect()
    assert ctypes.string_at(address, 100) == b"\xdb" * 100


def test_arrays_that_outlive_the_closing_are_freed_as_ever(region: vmalloc.Region) -> None:
    a, block = region.zeros(100, "u1"), region.alloc(PAGE)
    other = vmalloc.Region.attach(region.fileno(), readonly=True)
    region.close()
    assert other.stats().nr_busy == 2
    block.release()
    del a
    assert other.stats().nr_busy == 0


def test_a_forked_child_lets_go_of_its_parents_quarantine(region: vmalloc.Region) -> None:
    blocks = [region.alloc(PAGE) for _ in range(5)]
    kept = region.zeros(10)
    for block in blocks:
        block.release()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            region.check()
            region.alloc(PAGE).release()
            kept[:] = 3
            del kept
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (kept == 3).all()
    region.recover()
    region.check()
    assert np.asarray(kept).nbytes == 80


# ---- Ctrl-C ----


def is_broken_off(nth: int, run: Callable[[], object]) -> bool:
    """Whether `run` was still at it at the nth place where a signal may raise: any step of hardened.py."""
    left = nth

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith("hardened.py"):
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left < 0:
            sys.settrace(None)
            left = nth
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 asks for opcodes only where one was asked for before
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt as e:
        if isinstance(e.__context__, vmalloc.MemoryMisused):
            raise e.__context__ from None  # it is told above the interrupt
        return True
    finally:
        sys.settrace(before)
    return False


def in_quarantine(region: vmalloc.Region) -> int:
    return sum(q.nr_pages for q in region._guard._quarantine) if region._guard is not None else 0


def nothing_is_lost(region: vmalloc.Region) -> bool:
    return region.stats().busy_pages == in_quarantine(region)


@pytest.fixture
def full(unraisable: list[Any]) -> Iterator[vmalloc.Region]:
    """A region whose quarantine is full: each free lets another one out."""
    with vmalloc.Region("1M", nodes=1, hardened=True) as region:
        come_and_go(region, region.nr_pages // QUARANTINE_SHARE + 1)
        yield region
        assert [e for e in unraisable if not isinstance(e, KeyboardInterrupt)] == []


def at_each_step(run: Callable[[int], bool], stride: int = 1) -> None:
    nth = 0
    while run(nth):
        nth += stride
    assert nth > 10


def test_a_broken_off_request_leaves_nothing_and_tells_nothing(full: vmalloc.Region) -> None:
    def run(nth: int) -> bool:
        more = is_broken_off(nth, lambda: full.alloc(100))
        more = is_broken_off(nth, lambda: full.zeros(100, "u1")) or more
        more = is_broken_off(nth, lambda: full.alloc_bulk(100, 2)) or more
        full.check()
        assert nothing_is_lost(full)
        return more

    at_each_step(run)


def test_a_broken_off_release_is_done_or_can_be_done_again(full: vmalloc.Region) -> None:
    def run(nth: int) -> bool:
        block = full.alloc(100)
        more = is_broken_off(nth, block.release)
        block.release()
        full.check()
        assert nothing_is_lost(full)
        return more

    at_each_step(run)


def test_an_overrun_that_a_broken_off_release_found_is_told(full: vmalloc.Region) -> None:
    def run(nth: int) -> bool:
        block = full.alloc(100)
        scribble(block.address + 100)
        told: list[str] = []

        def tell(call: Callable[[], object]) -> bool:
            try:
                return bool(call())
            except vmalloc.MemoryMisused as e:
                told.append(e.kind)
                return False

        more = tell(lambda: is_broken_off(nth, block.release))
        tell(block.release)
        tell(full.check)
        assert told
        assert set(told) == {"overrun"}
        full.check()
        assert nothing_is_lost(full)
        return more

    at_each_step(run)


def test_a_finalizer_that_is_broken_off_frees_all_the_same(
    full: vmalloc.Region, unraisable: list[Any]
) -> None:
    def run(nth: int) -> bool:
        arrays = [full.zeros(100, "u1")]
        nr_told = len(unraisable)
        is_broken_off(nth, arrays.clear)
        full.check()
        assert nothing_is_lost(full)
        return len(unraisable) > nr_told

    at_each_step(run)


def test_a_broken_off_check_tells_the_next_time(full: vmalloc.Region, unraisable: list[Any]) -> None:
    def run(nth: int) -> bool:
        array = full.zeros(100, "u1")
        scribble(array.ctypes.data + 100)
        del array
        assert unraisable.pop().kind == "overrun"
        try:
            more = is_broken_off(nth, full.check)
        except vmalloc.MemoryMisused:
            with contextlib.suppress(vmalloc.MemoryMisused):
                full.check()  # broken off between telling and forgetting: told twice
            return False
        with pytest.raises(vmalloc.MemoryMisused, match="overrun"):
            full.check()
        return more

    at_each_step(run, stride=7)  # it looks at all that is in quarantine
