# SPDX-License-Identifier: MIT
"""The standard library as it is: arrays are pickled through a pipe."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer, end_with_parent, fill, read

__all__ = ["StockQueue", "StockTask", "answer", "new_array", "produce"]


def new_array(nbytes: int) -> Array:
    """Private memory, as numpy gives it."""
    return np.empty(nbytes // 8, np.uint64)


def produce(nbytes: int, seed: int) -> Array:
    """The task: make and fill."""
    array = new_array(nbytes)
    fill(array, seed)
    return array


def answer(pipe: Connection, queue: Any) -> None:
    """B of a queue: read what comes and say what it was, until the pipe ends."""
    while (array := queue.get()) is not None:
        checksum = read(array)
        del array  # before the reply, so that A's next array finds the memory free
        pipe.send(checksum)


class StockQueue(Peer):
    """`multiprocessing.Queue.put` and `get`."""

    def start(self) -> None:
        self._queue = self.context.Queue()
        self._other = Other(self.context, answer, self._queue)

    def hand_over(self, nbytes: int, seed: int) -> int:
        self._queue.put(produce(nbytes, seed))
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._queue.put(None)
        self._other.stop()
        self._queue.close()


class StockTask(TaskPeer):
    """`ProcessPoolExecutor.submit(...).result()`."""

    def start(self) -> None:
        self._executor = ProcessPoolExecutor(1, self.context, end_with_parent)

    def fetch(self, nbytes: int, seed: int) -> Array:
        return self._executor.submit(produce, nbytes, seed).result()

    def stop(self) -> None:
        self._executor.shutdown()
