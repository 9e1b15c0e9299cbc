# SPDX-License-Identifier: MIT
"""joblib: large arguments go through a file in shared memory, results are pickled back."""

from __future__ import annotations

from typing import Any

from joblib import Parallel, delayed  # pyright: ignore

from vmalloc.bench.peers.peer import Array, Peer, TaskPeer, read
from vmalloc.bench.peers.stock import produce

__all__ = ["LokyArgument", "LokyResult"]


class LokyArgument(Peer):
    """An argument of `delayed`; it has no queue."""

    def start(self) -> None:
        # two workers, because one would mean this process
        self._parallel: Any = Parallel(n_jobs=2, backend="loky").__enter__()

    def hand_over(self, nbytes: int, seed: int) -> int:
        (checksum,) = self._parallel([delayed(read)(produce(nbytes, seed))])
        return int(checksum)

    def stop(self) -> None:
        self._parallel.__exit__(None, None, None)
        _end_workers()


class LokyResult(TaskPeer):
    """What a delayed call returns."""

    def start(self) -> None:
        self._parallel: Any = Parallel(n_jobs=2, backend="loky").__enter__()

    def fetch(self, nbytes: int, seed: int) -> Array:
        (array,) = self._parallel([delayed(produce)(nbytes, seed)])
        result: Array = array
        return result

    def stop(self) -> None:
        self._parallel.__exit__(None, None, None)
        _end_workers()


def _end_workers() -> None:
    """joblib keeps its workers for the next Parallel; there is none."""
    from joblib.externals.loky import get_reusable_executor  # pyright: ignore[reportMissingImports]

    get_reusable_executor().shutdown(wait=True, kill_workers=True)
