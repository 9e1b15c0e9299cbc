# SPDX-License-Identifier: MIT
"""Workers make arrays; the parent gets them by reference and frees them by dropping them.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

# A reference lives as long as its Ref, so a worker keeps those it handed out.
made: list[vmalloc.Ref] = []


def squares(region: vmalloc.Region, n: int) -> vmalloc.Ref:
    a = region.empty(n, "i8")
    a[:] = range(n)
    a *= a
    made.append(vmalloc.ref(a))
    return made[-1]


if __name__ == "__main__":
    region = vmalloc.Region("64M")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        arrays: list[Any] = list(pool.map(squares, [region] * 4, [10, 100, 1000, 10_000]))
    region.recover()  # the workers are gone; their references with them
    print([int(a[-1]) for a in arrays])  # [81, 9801, 998001, 99980001]
    print(region.stats().busy_pages, "pages in use")
    arrays.clear()
    print(region.stats().busy_pages, "pages in use")
