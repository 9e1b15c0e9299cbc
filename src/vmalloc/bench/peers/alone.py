# SPDX-License-Identifier: MIT
"""The work itself: one process fills memory it has used before and reads it. No peer can be faster."""

from __future__ import annotations

import numpy as np

from vmalloc.bench.peers.peer import Array, TaskPeer, fill, read

__all__ = ["Alone"]


class Alone(TaskPeer):
    """Fill and read, nothing handed over."""

    def start(self) -> None:
        self._arrays: dict[int, Array] = {}

    def fetch(self, nbytes: int, seed: int) -> Array:
        if nbytes not in self._arrays:
            self._arrays = {nbytes: np.empty(nbytes // 8, np.uint64)}
        array = self._arrays[nbytes]
        fill(array, seed)
        return array

    def hand_over(self, nbytes: int, seed: int) -> int:
        return read(self.fetch(nbytes, seed))

    def stop(self) -> None:
        self._arrays = {}
