# SPDX-License-Identifier: MIT
"""The board: what the workers of one run share beside the region (vm_suite_board of loops.h)."""

from __future__ import annotations

import mmap
import os
from typing import Any

from vmalloc import _core

__all__ = ["Board"]


class Board:
    """A memfd mapped here; pickles to the same memory in a child of this process."""

    def __init__(self, path: str, nbytes: int, fd: int = -1) -> None:
        self._path, self._nbytes, self._fd = path, nbytes, fd
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.memory = mmap.mmap(opened, nbytes)
        finally:
            os.close(opened)

    @classmethod
    def create(cls, nr_workers: int, nr_pages: int) -> Board:
        """For a region of nr_pages; nothing is touched but what is used."""
        nbytes = _core.suite_board_bytes(nr_workers, nr_pages)
        fd = os.memfd_create("vmalloc-suite", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        board = cls(f"/proc/{os.getpid()}/fd/{fd}", nbytes, fd)
        _core.suite_prepare(board.memory, nr_workers)
        return board

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self._path, self._nbytes)

    def close(self) -> None:
        self.memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
