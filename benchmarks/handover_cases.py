# SPDX-License-Identifier: MIT
"""What bench_handover.py measures beside the peers of vmalloc.bench; each runs in a process of its own."""

from __future__ import annotations

import gc
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import vmalloc
from vmalloc.bench.peers import ours
from vmalloc.bench.peers.peer import (
    Array,
    Other,
    Peer,
    Resident,
    TaskPeer,
    end_with_parent,
    expected,
    fill,
    read,
)

TINY = 1000  # arrays in a list
TINY_BYTES = 64


class EmptyTask(Peer):
    """A stock executor and a task that has nothing to do but answer with a number."""

    def start(self) -> None:
        self._executor = ProcessPoolExecutor(1, self.context, end_with_parent)

    def hand_over(self, nbytes: int, seed: int) -> int:
        return self._executor.submit(expected, nbytes, seed).result()

    def stop(self) -> None:
        self._executor.shutdown()


_mapping: Array | None = None


def _fill_mapping(nbytes: int, seed: int) -> None:
    assert _mapping is not None, "it is inherited"
    fill(_mapping[: nbytes // 8], seed)


class FillTask(TaskPeer):
    """A stock executor and a task that fills memory which both sides have used before, and returns nothing.

    The floor in one piece: a worker that was asleep, of pages that another CPU has read, fills more slowly
    than a process that did not stop. Nothing of ours is in it.
    """

    BYTES = 64 << 20

    def start(self) -> None:
        global _mapping
        _mapping = np.frombuffer(mmap.mmap(-1, self.BYTES), np.uint64)
        self._executor = ProcessPoolExecutor(1, get_context("fork"), end_with_parent)

    def fetch(self, nbytes: int, seed: int) -> Array:
        assert _mapping is not None, "start() comes first"
        self._executor.submit(_fill_mapping, nbytes, seed).result()
        return _mapping[: nbytes // 8]

    def stop(self) -> None:
        self._executor.shutdown()


class SharedFill(TaskPeer):
    """One process fills memory of the same kind as FillTask's: shared, so in small pages on most machines."""

    def start(self) -> None:
        self._array = np.frombuffer(mmap.mmap(-1, FillTask.BYTES), np.uint64)

    def fetch(self, nbytes: int, seed: int) -> Array:
        array = self._array[: nbytes // 8]
        fill(array, seed)
        return array

    def stop(self) -> None:
        pass


def _wait(nbytes: int, seed: int, ns: int) -> int:
    end = time.perf_counter_ns() + ns
    while time.perf_counter_ns() < end:
        pass
    return expected(nbytes, seed)


class WaitingTask(EmptyTask):
    """A task that touches nothing and is busy for as long as a fill takes: who waits for it sleeps deeper."""

    NS = 2_000_000

    def hand_over(self, nbytes: int, seed: int) -> int:
        return self._executor.submit(_wait, nbytes, seed, self.NS).result()


def _answer_sent(pipe: Any, region: vmalloc.Region) -> None:
    ours.install(region)
    while True:
        array = pipe.recv()
        checksum = read(array)
        del array  # before the reply, so that the next one finds the memory free
        pipe.send(checksum)


class SentArray(Peer):
    """A connection's `send()` of an array made in the region; the other side reads it there and answers."""

    def start(self) -> None:
        region = ours.new_region()
        ours.install(region)
        self._other = Other(self.context, _answer_sent, region)

    def hand_over(self, nbytes: int, seed: int) -> int:
        self._other.pipe.send(ours.produce(nbytes, seed))
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._other.stop()


def _count_messages(pipe: Any, queue: Any) -> None:
    """Get as many messages as the pipe says, then tell what the last one was, and the CPU time it took."""
    while True:
        message, count = None, pipe.recv()
        begin = time.process_time_ns()
        for _ in range(count):
            message = queue.get()
        checksum = read(np.concatenate(message) if isinstance(message, list) else message)
        pipe.send((checksum, time.process_time_ns() - begin))


class StockMessages(Resident):
    """Small messages through a stock queue, many on the way at once."""

    def start(self) -> None:
        self._queue = self.context.Queue()
        self._other = Other(self.context, _count_messages, self._queue)

    def arrays(self, nbytes: int, count: int, seed: int) -> tuple[float, float]:
        """Messages of one array each: microseconds per message until the last is answered, and of CPU."""
        return self._send_all(lambda whole: whole, nbytes, count, seed)

    def lists(self, count: int, seed: int) -> tuple[float, float]:
        """The same with a list of tiny arrays in each."""

        def split(whole: Any) -> Any:
            return [row.copy() for row in whole.reshape(TINY, TINY_BYTES // 8)]

        return self._send_all(split, TINY * TINY_BYTES, count, seed)

    def _send_all(
        self, form: Callable[[Any], Any], nbytes: int, count: int, seed: int
    ) -> tuple[float, float]:
        whole = np.empty(nbytes // 8, "u8")
        fill(whole, seed)
        message = form(whole)
        start, begin = time.perf_counter_ns(), time.process_time_ns()
        self._other.pipe.send(count)
        for _ in range(count):
            self._queue.put(message)
        checksum, cpu_ns = self._other.pipe.recv()
        ns = time.perf_counter_ns() - start
        cpu_ns += time.process_time_ns() - begin
        if checksum != expected(nbytes, seed):
            raise RuntimeError("what arrived is not what was sent")
        return ns / count / 1e3, cpu_ns / count / 1e3

    def stop(self) -> None:
        self._other.stop()
        self._queue.close()


def _count_messages_installed(pipe: Any, region: vmalloc.Region, queue: Any) -> None:
    ours.install(region)
    _count_messages(pipe, queue)


class InstalledMessages(StockMessages):
    """The same with us installed on both sides."""

    def start(self) -> None:
        region = ours.new_region()
        ours.install(region)
        self._queue = self.context.Queue()
        self._other = Other(self.context, _count_messages_installed, region, self._queue)


def _echo(pipe: Any, region: vmalloc.Region, queue: Any) -> None:
    ours.install(region)
    while True:
        message = queue.get()
        pipe.send_bytes(b"here")  # the time ends; only then is it looked at
        pipe.send(None if message is None else int(message[-1]))
        del message


class ReferenceLatency(Resident):
    """An installed queue: a message that is None, and one that is a reference, in turn."""

    def start(self) -> None:
        self._region = ours.new_region()
        ours.install(self._region)
        self._queue = self.context.Queue()
        self._other = Other(self.context, _echo, self._region, self._queue)

    def latencies(self, nbytes: int, count: int, seed: int) -> tuple[float, float, float]:
        """Median microseconds from put to the reply to get: of None, an array sent before, a new one."""
        old = self._region.empty(nbytes // 8, "u8")
        times: tuple[list[float], list[float], list[float]] = ([], [], [])
        for turn in range(count):
            old[-1] = seed + turn
            fresh = self._region.empty(nbytes // 8, "u8")
            fresh[-1] = seed + turn
            for message, us in zip((None, old, fresh), times, strict=True):
                us.append(self._round_trip(message))
        return median(times[0]), median(times[1]), median(times[2])

    def _round_trip(self, message: Any) -> float:
        want = None if message is None else int(message[-1])
        start = time.perf_counter_ns()
        self._queue.put(message)
        self._other.pipe.recv_bytes()
        ns = time.perf_counter_ns() - start
        if self._other.pipe.recv() != want:
            raise RuntimeError("what arrived is not what was sent")
        return ns / 1e3

    def stop(self) -> None:
        self._other.stop()
        self._queue.close()


def counts() -> tuple[int, int]:
    """Descriptors and mappings of this process. Mappings of its private heap are not counted."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len(os.listdir("/proc/self/fd")), sum(line.split()[4] != "0" for line in lines)


def _keep(pipe: Any, region: vmalloc.Region, queue: Any) -> None:
    ours.install(region)
    while True:
        arrays = [queue.get() for _ in range(pipe.recv())]
        pipe.send((*counts(), int(sum(int(array[-1]) for array in arrays))))
        del arrays


class LiveArrays(Resident):
    """Arrays that both sides keep."""

    def start(self) -> None:
        self._region = ours.new_region()
        ours.install(self._region)
        self._queue = self.context.Queue()
        self._other = Other(self.context, _keep, self._region, self._queue)

    def with_live(self, count: int) -> list[int]:
        """Descriptors and mappings here, then there, while both hold `count` arrays of a page."""
        arrays = [self._region.empty(512, "u8") for _ in range(count)]
        self._other.pipe.send(count)
        for number, array in enumerate(arrays):
            array[-1] = number
            self._queue.put(array)
        *there, total = self._other.pipe.recv()
        if total != count * (count - 1) // 2:
            raise RuntimeError("what arrived is not what was sent")
        return [*counts(), *there]

    def stop(self) -> None:
        self._other.stop()
        self._queue.close()
