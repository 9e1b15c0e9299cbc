# SPDX-License-Identifier: MIT
"""What an idle program gives back by itself, how soon the dead are gone, and what the helper costs at work.

burst   arrays are made up to a size, freed, and then nothing is called: resident memory, second by second
dead    a process that holds memory is killed beside an idle one: until its slot and its pages are gone
steady  the same epochs in one region with and without the helper, in turns: CPU time and page faults
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import time

import _common as common
from _common import median, result

import vmalloc

MIB = 1 << 20
IDLE_S = 10
PATIENCE_S = 30


def resident(region: vmalloc.Region) -> int:
    return os.fstat(region.fileno()).st_blocks * 512


def touch(region: vmalloc.Region, nbytes: int, size: int) -> list[object]:
    """Arrays of `size` bytes, one byte written in each page."""
    arrays = []
    for _ in range(nbytes // size):
        array = region.empty(size, "u1")
        array[::4096] = 1
        arrays.append(array)
    return arrays


def bench_burst(args: argparse.Namespace, results: list[common.Result]) -> None:
    burst = (256 if args.quick else 4096) * MIB
    rows = []
    for size, name in ((MIB, "1 MiB"), (1 << 16, "64 KiB"), (16 * MIB, "16 MiB")):
        with vmalloc.Region(2 * burst) as region:
            keep = touch(region, 16 * MIB, MIB)
            floor = resident(region)
            arrays = touch(region, burst, size)
            full = resident(region)
            arrays.clear()
            curve = []
            for _ in range(IDLE_S + 1):
                curve.append(resident(region))
                time.sleep(1)
            assert len(keep) == 16
        rows.append([name, f"{full / MIB:.0f}", *(f"{(n - floor) / MIB:.0f}" for n in curve)])
        results.append(
            result(f"burst of {burst // MIB} MiB in {name}, above the floor after {IDLE_S} s", "magazine",
                   (curve[-1] - floor) / MIB, "MiB", {"full": (full - floor) / MIB})
        )  # fmt: skip
    columns = ["arrays of", "full", *(f"{second} s" for second in range(IDLE_S + 1))]
    common.show("MiB resident above the floor, so long after the free", columns, rows)


def bench_dead(args: argparse.Namespace, results: list[common.Result]) -> None:
    gone = []
    with vmalloc.Region("1G") as region:
        for _ in range(3 if args.quick else 15):
            pid = os.fork()
            if pid == 0:
                arrays = touch(region, 64 * MIB, MIB)
                os.kill(os.getpid(), signal.SIGKILL)
                assert arrays
            os.waitpid(pid, 0)
            started = time.perf_counter()
            while True:
                stats = region.stats()
                waited = time.perf_counter() - started
                if (stats.nr_processes, stats.busy_pages) == (1, 0) or waited > PATIENCE_S:
                    break
                time.sleep(0.01)
            gone.append(waited)
    row = ["64 MiB held", f"{median(gone):.2f}", f"{max(gone):.2f}"]
    common.show("seconds until a killed process and its pages are gone", ["", "median", "max"], [row])
    results.append(result("dead gone from stats(), max", "magazine", max(gone), "s"))


def bench_steady(args: argparse.Namespace, results: list[common.Result]) -> None:
    rows = []
    for count, size in ((3200, 32 << 10), (200, 2 * MIB), (60, 16 * MIB)):
        times: dict[bool, list[float]] = {True: [], False: []}
        faults: dict[bool, int] = {True: 0, False: 0}
        with vmalloc.Region("4G", helper=False) as region:  # one, so that both work on the same pages
            for turn in range(20 if args.quick else 68):
                region.helper = has_helper = turn // 4 % 2 == 1
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                started = time.process_time()
                touch(region, count * size, size)
                spent = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                if turn >= 4:  # the first four make it warm
                    times[has_helper].append(time.process_time() - started)
                    faults[has_helper] += spent
        pages = count * size // 4096 * len(times[True])
        ratio = median([a / b for a, b in zip(times[True], times[False], strict=True)])
        more = 100 * (faults[True] - faults[False]) / pages
        rows.append([f"{count} x {size >> 10} KiB", f"{ratio:.3f}", f"{more:.2f} %"])
        case = f"steady {count} x {size >> 10} KiB, with / without the helper"
        results.append(result(case, "magazine", ratio, "ratio", {"faults, % of pages": more}))
    common.show(
        "the helper at work: CPU time with it (its own too) over time without, faults more",
        ["", "time", "faults"],
        rows,
    )


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--only", choices=("burst", "dead", "steady"))
    args = parser.parse_args()
    results: list[common.Result] = []
    for name, bench in (("burst", bench_burst), ("dead", bench_dead), ("steady", bench_steady)):
        if args.only in (None, name):
            bench(args, results)
    common.finish(args, results)


if __name__ == "__main__":
    main()
