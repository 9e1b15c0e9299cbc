# SPDX-License-Identifier: MIT
# pyright: reportAttributeAccessIssue=false
"""torch.multiprocessing: a tensor moves into a block of shared memory when it is pickled."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.multiprocessing  # pyright: ignore[reportMissingImports]

from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer, end_with_parent, fill, read

__all__ = ["TensorQueue", "TensorTask"]


def _array_of(tensor: Any) -> Array:
    array: Array = tensor.numpy().view("u8")
    return array


def _produce(nbytes: int, seed: int) -> Any:
    tensor = torch.empty(nbytes // 8, dtype=torch.int64)
    fill(_array_of(tensor), seed)
    return tensor


def _answer(pipe: Connection, queue: Any) -> None:
    torch.set_num_threads(1)
    while (tensor := queue.get()) is not None:
        checksum = read(_array_of(tensor))
        del tensor
        pipe.send(checksum)


def _in_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


class TensorQueue(Peer):
    """`torch.multiprocessing.Queue`, its default sharing strategy."""

    def start(self) -> None:
        context: Any = torch.multiprocessing.get_context(self.context.get_start_method())
        self._queue = context.Queue()
        self._other = Other(context, _answer, self._queue)

    def hand_over(self, nbytes: int, seed: int) -> int:
        tensor = _produce(nbytes, seed)
        self._queue.put(tensor)
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._queue.put(None)
        self._other.stop()
        self._queue.close()


class TensorTask(TaskPeer):
    """`torch.multiprocessing.Pool.apply`."""

    def start(self) -> None:
        context: Any = torch.multiprocessing.get_context(self.context.get_start_method())
        self._pool = context.Pool(1, _in_worker)

    def fetch(self, nbytes: int, seed: int) -> Array:
        return _array_of(self._pool.apply(_produce, (nbytes, seed)))

    def stop(self) -> None:
        self._pool.terminate()
        self._pool.join()
