# SPDX-License-Identifier: MIT
"""multiprocessing.shared_memory: one named block per array, filled in place; only the name travels."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer, end_with_parent, fill, read

__all__ = ["BlockQueue", "BlockTask"]


def _view(block: SharedMemory, nbytes: int) -> Array:
    return np.ndarray(nbytes // 8, np.uint64, block.buf)


def _new_block(name: str, nbytes: int, seed: int) -> SharedMemory:
    block = SharedMemory(name, create=True, size=nbytes)
    fill(_view(block, nbytes), seed)
    return block


def _answer(pipe: Connection, queue: Any) -> None:
    while (message := queue.get()) is not None:
        name, nbytes = message
        block = SharedMemory(name)
        checksum = read(_view(block, nbytes))
        block.close()
        pipe.send(checksum)


def _produce(name: str, nbytes: int, seed: int) -> str:
    _new_block(name, nbytes, seed).close()
    return name


class BlockQueue(Peer):
    """A creates and unlinks; B attaches by the name that a queue brings."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # one for both sides, or each would clean up after the other
        self._names = (f"{self.prefix}{i}" for i in count())
        self._queue = self.context.Queue()
        self._other = Other(self.context, _answer, self._queue)

    def hand_over(self, nbytes: int, seed: int) -> int:
        block = _new_block(next(self._names), nbytes, seed)
        self._queue.put((block.name, nbytes))
        checksum: int = self._other.pipe.recv()
        block.close()
        block.unlink()
        return checksum

    def stop(self) -> None:
        self._queue.put(None)
        self._other.stop()
        self._queue.close()


class BlockTask(TaskPeer):
    """The task creates, this side attaches and unlinks."""

    def start(self) -> None:
        resource_tracker.ensure_running()
        self._names = (f"{self.prefix}{i}" for i in count())
        self._executor = ProcessPoolExecutor(1, self.context, end_with_parent)
        self._block: SharedMemory | None = None

    def fetch(self, nbytes: int, seed: int) -> Array:
        name = self._executor.submit(_produce, next(self._names), nbytes, seed).result()
        self._block = SharedMemory(name)
        return _view(self._block, nbytes)

    def release(self) -> None:
        if self._block is not None:
            self._block.close()
            self._block.unlink()
            self._block = None

    def stop(self) -> None:
        self.release()
        self._executor.shutdown()
