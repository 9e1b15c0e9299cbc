# SPDX-License-Identifier: MIT
"""Ray on this machine alone: arrays go through its object store."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from vmalloc.bench.peers.peer import Array, Peer, TaskPeer, read
from vmalloc.bench.peers.stock import produce

__all__ = ["ActorArgument", "RayTask"]


def _init() -> Any:
    """Start the raylet; returns the module. Everything it writes is below the host's own TMPDIR."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=tempfile.gettempdir(),
    )
    return ray


class _Reader:
    def read(self, array: Array) -> int:
        return read(array)


class ActorArgument(Peer):
    """The argument of an actor's method; Ray puts a large one into its store. It has no faster queue."""

    def start(self) -> None:
        self._ray = _init()
        self._actor = self._ray.remote(_Reader).remote()

    def hand_over(self, nbytes: int, seed: int) -> int:
        checksum: int = self._ray.get(self._actor.read.remote(produce(nbytes, seed)))
        return checksum

    def stop(self) -> None:
        self._ray.shutdown()


class RayTask(TaskPeer):
    """What a remote function returns."""

    def start(self) -> None:
        self._ray = _init()
        self._produce = self._ray.remote(produce)

    def fetch(self, nbytes: int, seed: int) -> Array:
        array: Array = self._ray.get(self._produce.remote(nbytes, seed))
        return array

    def stop(self) -> None:
        self._ray.shutdown()
