# SPDX-License-Identifier: MIT
"""py-sharedmemory: copied into a pooled block, and out of it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from py_sharedmemory import create_shared_memory_pair  # pyright: ignore[reportMissingImports]

from vmalloc.bench.peers.peer import Array, Other, Peer, TaskPeer
from vmalloc.bench.peers.stock import answer, produce

__all__ = ["PairQueue", "PairTask"]

CAPACITY = 2  # as in its own benchmark


def _produce_for(pipe: Connection, sender: Any) -> None:
    with sender:
        while True:
            sender.put(produce(*pipe.recv()))


class PairQueue(Peer):
    """`sender.put` here, `receiver.get` there."""

    def start(self) -> None:
        self._sender, receiver = create_shared_memory_pair(capacity=CAPACITY, ctx=self.context)
        self._other = Other(self.context, answer, receiver)
        self._receiver = receiver  # its semaphores have names until the child has opened them

    def hand_over(self, nbytes: int, seed: int) -> int:
        self._sender.put(produce(nbytes, seed))
        checksum: int = self._other.pipe.recv()
        return checksum

    def stop(self) -> None:
        self._sender.put(None)
        self._other.stop()
        self._receiver.close()
        self._sender.close()


class PairTask(TaskPeer):
    """It has no executor: a pipe asks, `receiver.get` brings the array."""

    def start(self) -> None:
        self._sender, self._receiver = create_shared_memory_pair(capacity=CAPACITY, ctx=self.context)
        self._other = Other(self.context, _produce_for, self._sender)

    def fetch(self, nbytes: int, seed: int) -> Array:
        self._other.pipe.send((nbytes, seed))
        array: Array = self._receiver.get(timeout=600)
        return array

    def stop(self) -> None:
        self._other.stop()
        self._receiver.close()
        self._sender.close()
