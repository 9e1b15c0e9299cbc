# SPDX-License-Identifier: MIT
"""The peers by name: what each is called, what it needs, which class plays it in which way.

Nothing is imported before a peer's own process starts it.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from vmalloc.bench.peers.peer import Resident

__all__ = ["ALONE", "OURS", "PEERS", "WAYS", "Entry", "load"]

OURS = "vmalloc"
ALONE = "alone"
#: How an array gets to the other process: A puts it into a queue, or a task in A returns it.
WAYS = ("queue", "task")


@dataclass(frozen=True)
class Entry:
    """One peer: `queue` and `task` name its title and its class, as "module:Class", or are None."""

    name: str
    queue: tuple[str, str] | None
    task: tuple[str, str] | None
    package: str | None = None  # what is imported
    install: str | None = None  # what pip calls it
    faults: str = "shared"  # which pages are new in every hand-over, if any are

    @property
    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def way(self, way: str) -> tuple[str, str] | None:
        """Title and class for "queue" or "task"; None if the peer does not go that way."""
        return self.queue if way == "queue" else self.task


def _at(module: str, cls: str) -> str:
    return f"{__name__}.{module}:{cls}"


PEERS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(OURS, ("vmalloc", _at("ours", "CreatedQueue")), ("vmalloc", _at("ours", "CreatedTask"))),
        Entry(
            "copied",
            ("vmalloc, copied in", _at("ours", "CopiedQueue")),
            ("vmalloc, copied in", _at("ours", "CopiedTask")),
        ),
        Entry(
            "stock",
            ("multiprocessing.Queue", _at("stock", "StockQueue")),
            ("ProcessPoolExecutor", _at("stock", "StockTask")),
            faults="private",
        ),
        Entry(
            "shm",
            ("SharedMemory", _at("shared_memory", "BlockQueue")),
            ("SharedMemory", _at("shared_memory", "BlockTask")),
        ),
        Entry(
            "torch",
            ("torch Queue", _at("torch_tensors", "TensorQueue")),
            ("torch Pool", _at("torch_tensors", "TensorTask")),
            "torch",
            "torch",
        ),
        Entry(
            "joblib",
            ("joblib, argument", _at("joblib_loky", "LokyArgument")),
            ("joblib, result", _at("joblib_loky", "LokyResult")),
            "joblib",
            "joblib",
            "private",
        ),
        Entry(
            "ray",
            ("Ray actor, argument", _at("ray_store", "ActorArgument")),
            ("Ray task", _at("ray_store", "RayTask")),
            "ray",
            "ray",
        ),
        Entry(
            "pysm",
            ("py-sharedmemory", _at("pooled_sender", "PairQueue")),
            ("py-sharedmemory", _at("pooled_sender", "PairTask")),
            "py_sharedmemory",
            "py-sharedmemory",
        ),
        Entry(
            "iceoryx2",
            ("iceoryx2", _at("loaned_sample", "SampleQueue")),
            ("iceoryx2", _at("loaned_sample", "SampleTask")),
            "iceoryx2",
            "iceoryx2",
        ),
        Entry(
            ALONE,
            ("(one process alone)", _at("alone", "Alone")),
            ("(one process alone)", _at("alone", "Alone")),
        ),
    )
}


def load(place: str) -> type[Resident]:
    """The class that "module:Class" names."""
    module, _, name = place.partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, Resident)):
        raise TypeError(f"{place} is no Resident")
    return cls
