# SPDX-License-Identifier: MIT
"""The interface of a peer, and the work every peer does: fill all of an array, read all of it.

A peer lives in a process of its own (host.py), which is one of the two sides; it starts the other side
as its child. In the queue way the host is A: it fills, sends and waits for the reply. In the task way
the host is B: a worker fills and returns, the host reads.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Other",
    "Peer",
    "Resident",
    "TaskPeer",
    "end_with_parent",
    "expected",
    "fill",
    "read",
    "seed_after",
]

Array = NDArray[np.uint64]

_MASK = (1 << 64) - 1


def fill(array: Array, seed: int) -> None:
    """Write every word: the seed, and in the last one the seed and the length."""
    array.fill(seed)
    array[-1] = seed ^ array.nbytes


def seed_after(seed: int) -> int:
    """The next of a series in which no seed comes twice."""
    return (seed * 6364136223846793005 + 1442695040888963407) & _MASK


def read(array: Array) -> int:
    """Read every word. What comes out tells a missing or an old word, and a wrong length."""
    return (int(np.add.reduce(array)) * 31 + int(array[-1])) & _MASK


def expected(nbytes: int, seed: int) -> int:
    """What read() must say of an array that fill() filled."""
    last = seed ^ nbytes
    return ((seed * (nbytes // 8 - 1) + last) * 31 + last) & _MASK


class Resident(ABC):
    """What host.py gives a process of its own."""

    def __init__(self, prefix: str, start_method: str | None = None) -> None:
        """`prefix` begins the name of every file that outlives a crash; the caller removes those."""
        self.prefix = prefix
        # None is what the interpreter does of itself
        self.context: Any = get_context(start_method)

    @abstractmethod
    def start(self) -> None:
        """Start the other side and whatever it needs."""

    @abstractmethod
    def stop(self) -> None:
        """End the other side; nothing stays."""


class Peer(Resident):
    """One way of handing an array over."""

    @abstractmethod
    def hand_over(self, nbytes: int, seed: int) -> int:
        """A makes an array and fills it, B reads all of it; returns what B's read() said."""

    def timed(self, nbytes: int, seed: int) -> tuple[int, int]:
        """hand_over(): nanoseconds from before A's array exists until B's answer is here, and the answer."""
        start = time.perf_counter_ns()
        checksum = self.hand_over(nbytes, seed)
        return time.perf_counter_ns() - start, checksum


class TaskPeer(Peer):
    """A worker makes an array and fills it, and it arrives here."""

    @abstractmethod
    def fetch(self, nbytes: int, seed: int) -> Array:
        """Have a task return a fresh array that it filled."""

    def release(self) -> None:
        """Give back what fetch() brought, beyond dropping the array."""

    def hand_over(self, nbytes: int, seed: int) -> int:
        array = self.fetch(nbytes, seed)
        checksum = read(array)
        del array
        self.release()
        return checksum

    def timed_fetch(self, nbytes: int, seed: int) -> tuple[int, int]:
        """As timed(), but reading is not counted: only the arrival and giving the array back."""
        start = time.perf_counter_ns()
        array = self.fetch(nbytes, seed)
        ns = time.perf_counter_ns() - start
        checksum = read(array)
        start = time.perf_counter_ns()
        del array
        self.release()
        return ns + time.perf_counter_ns() - start, checksum


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that was."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Other:
    """The other process of a peer, and a pipe for signals and replies."""

    def __init__(self, context: Any, work: Any, *args: Any) -> None:
        """Run `work(pipe, *args)` in a child until its pipe says EOFError."""
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, self.pipe, work, args), daemon=True)
        self._process.start()
        theirs.close()

    def stop(self) -> None:
        """Close the pipe and wait for the end; insist after 5 s."""
        self.pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(pipe: Connection, other_end: Connection, work: Any, args: tuple[Any, ...]) -> None:
    other_end.close()  # or this process would keep its own pipe open
    end_with_parent()
    try:
        work(pipe, *args)
    except (EOFError, BrokenPipeError):
        pass
