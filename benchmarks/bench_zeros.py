# SPDX-License-Identifier: MIT
"""Zeros of used pages: is it cheaper to write them, or to discard the pages and get new ones?

Both alone, and with the array written whole afterwards. `ZEROS_PUNCH_BYTES` in facts.py follows from it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable

from _common import Result, finish, interleaved, median, options, result, show

SIZES = [64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20]
MADV_REMOVE = 9


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def measures(memory: mmap.mmap, nbytes: int) -> dict[str, Callable[[], float]]:
    import numpy as np

    a = np.frombuffer(memory, "u1", nbytes)

    def use(zero: Callable[[], object], also_write: bool) -> float:
        a[:] = 1
        return timed(lambda: (zero(), a.fill(2) if also_write else None))

    def write() -> None:
        a.fill(0)

    def discard() -> None:
        memory.madvise(MADV_REMOVE, 0, nbytes)

    return {
        "memset": lambda: use(write, False),
        "discard": lambda: use(discard, False),
        "memset, then written": lambda: use(write, True),
        "discard, then written": lambda: use(discard, True),
    }


def main() -> None:
    parser = options(__doc__)
    args = parser.parse_args()
    sizes = SIZES[:2] if args.quick else SIZES
    fd = os.memfd_create("bench_zeros")
    os.ftruncate(fd, sizes[-1])
    memory = mmap.mmap(fd, sizes[-1])
    results: list[Result] = []
    rows: list[list[str]] = []
    for nbytes in sizes:
        found = interleaved(3 if args.quick else 11, measures(memory, nbytes))
        values = {name: median(each) for name, each in found.items()}
        rows.append([f"{nbytes >> 10} KiB", *(f"{us:.0f}" for us in values.values())])
        peers = {name: us for name, us in values.items() if name != "memset"}
        results.append(result(f"{nbytes >> 10} KiB", "memset", values["memset"], "us", peers))
    show("microseconds", ["size", "memset", "discard", "memset, written", "discard, written"], rows)
    finish(args, results)


if __name__ == "__main__":
    main()
