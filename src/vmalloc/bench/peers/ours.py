# SPDX-License-Identifier: MIT
"""vmalloc installed: the same stock queue and the same stock executor, arrays travel by reference."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import vmalloc
from vmalloc.bench.peers import stock
from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer, end_with_parent, fill

__all__ = ["CopiedQueue", "CopiedTask", "CreatedQueue", "CreatedTask"]

_region: vmalloc.Region | None = None


def install(region: vmalloc.Region) -> None:
    """Both sides: from here on arrays of `region` travel by reference, others are copied into it."""
    global _region
    _region = region
    vmalloc.install(region)


def new_region() -> vmalloc.Region:
    """As much as the machine has; nothing of it is touched yet."""
    return vmalloc.Region(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE"), name="bench")


def new_array(nbytes: int) -> Array:
    """Memory of the region."""
    assert _region is not None, "install() comes first"
    return _region.empty(nbytes // 8, "u8")


def produce(nbytes: int, seed: int) -> Array:
    """The task: make in the region and fill."""
    array = new_array(nbytes)
    fill(array, seed)
    return array


def _answer(pipe: Connection, region: vmalloc.Region, queue: Any) -> None:
    install(region)
    stock.answer(pipe, queue)


def _in_worker(region: vmalloc.Region) -> None:
    end_with_parent()
    install(region)


class CreatedQueue(Peer):
    """The sender makes its array in the region."""

    _produce = staticmethod(produce)

    def start(self) -> None:
        region = new_region()
        install(region)
        self._queue = self.context.Queue()
        self._other = Other(self.context, _answer, region, self._queue)

    def hand_over(self, nbytes: int, seed: int) -> int:
        self._queue.put(self._produce(nbytes, seed))
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._queue.put(None)
        self._other.stop()
        self._queue.close()


class CopiedQueue(CreatedQueue):
    """The sender makes its array anywhere; it is copied into the region once."""

    _produce = staticmethod(stock.produce)


class CreatedTask(TaskPeer):
    """The task makes its array in the region."""

    _produce = staticmethod(produce)

    def start(self) -> None:
        region = new_region()
        install(region)
        self._executor = ProcessPoolExecutor(1, self.context, _in_worker, (region,))

    def fetch(self, nbytes: int, seed: int) -> Array:
        return self._executor.submit(self._produce, nbytes, seed).result()

    def stop(self) -> None:
        self._executor.shutdown()


class CopiedTask(CreatedTask):
    """The task makes its array anywhere; it is copied into the region once."""

    _produce = staticmethod(stock.produce)
