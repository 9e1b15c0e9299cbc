# SPDX-License-Identifier: MIT
"""ns from Python: region.alloc and region.empty against np.empty, SharedMemory and mmap; import time.

64 KiB each, one byte stored, released again. Everything takes turns; the value is the median. A call that
does nothing is part of each; of ours there is a figure without it.
`import vmalloc` is measured in fresh interpreters, beside `import mmap`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from mmap import mmap
from multiprocessing.shared_memory import SharedMemory

import _common as common
from _common import median, result

import vmalloc

NBYTES = 65536


def timed(call: Callable[[], None], calls: int) -> float:
    start = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - start) / calls


def import_ms(module: str) -> float:
    code = f"import time; t = time.perf_counter_ns(); import {module}; print(time.perf_counter_ns() - t)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(out) / 1e6


def main() -> None:
    args = common.options(__doc__).parse_args()
    rounds, calls = (3, 500) if args.quick else (60, 5000)
    region = vmalloc.Region("1G")
    alloc = region.alloc

    def region_alloc() -> None:
        alloc(NBYTES).release()

    def nothing() -> None:
        pass

    def map_memory() -> None:
        m = mmap(-1, NBYTES)
        m[0] = 1
        m.close()

    def shared_memory() -> None:
        s = SharedMemory(create=True, size=NBYTES)
        s.buf[0] = 1
        s.close()
        s.unlink()

    calls_of: dict[str, tuple[Callable[[], None], int]] = {
        "region.alloc": (region_alloc, calls),
        "empty loop": (nothing, calls),
        "mmap": (map_memory, max(calls // 20, 10)),
        "SharedMemory": (shared_memory, max(calls // 100, 5)),
    }
    try:
        import numpy as np
    except ImportError:
        print("numpy is not installed; region.empty is skipped")
    else:

        def np_empty() -> None:
            np.empty(NBYTES, "u1")[0] = 1

        def region_empty() -> None:
            region.empty(NBYTES, "u1")[0] = 1

        calls_of |= {"region.empty": (region_empty, calls), "np.empty": (np_empty, calls)}
    values = common.interleaved(rounds, {n: (lambda c=c, k=k: timed(c, k)) for n, (c, k) in calls_of.items()})
    medians = {name: median(v) for name, v in values.items()}
    alone = {
        name: median(v - loop for v, loop in zip(values[name], values["empty loop"], strict=True))
        for name in medians
        if name.startswith("region")
    }
    others = {name: v for name, v in medians.items() if name not in (*alone, "empty loop")}
    results = [result(f"{name} 64 KiB", "magazine", medians[name], "ns", others) for name in alone]
    results += [result(f"{name} 64 KiB: without the loop", "magazine", v, "ns") for name, v in alone.items()]
    rows = [
        [name, f"{medians[name]:.0f}", f"{min(v):.0f}", f"{alone[name]:.0f}" if name in alone else ""]
        for name, v in values.items()
    ]
    imports = common.interleaved(
        3 if args.quick else 15, {m: (lambda m=m: import_ms(m)) for m in ("vmalloc", "mmap")}
    )
    ms = {m: median(v) for m, v in imports.items()}
    results.append(result("import vmalloc", "magazine", ms["vmalloc"], "ms", {"import mmap": ms["mmap"]}))
    rows += [[f"import {m}", f"{ms[m]:.2f} ms", f"{min(v):.2f} ms", ""] for m, v in imports.items()]
    columns = ["call", "median", "minimum", "without the loop"]
    common.show("Python, 64 KiB: ns per take and release", columns, rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
