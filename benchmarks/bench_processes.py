# SPDX-License-Identifier: MIT
"""Is any process slow for life? The hot pair of 4 KiB in 100 processes of each kind, one after the other.

Whether two hot lines share a set of the cache, or a store is taken for one that a load depends on, is decided
by where things lie, which is drawn anew for each process. So each process runs some rounds and its quickest
counts: noise hits rounds, a slow mode hits all of a process. Kinds take turns. `slow` is how many processes
took half as long again as the median of their kind.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import _common as common
from _common import median, result

PROCESSES = 100
PAIRS = {"c": 100_000, "python": 20_000}
ROUNDS = 8
SLOW = 1.5
IN_PYTHON = """
import sys, time, vmalloc
rounds, pairs = int(sys.argv[1]), int(sys.argv[2])
region = vmalloc.Region("64M", helper=False)
alloc = region.alloc
def once():
    began = time.process_time_ns()
    for _ in range(pairs):
        alloc(4096).release()
    return (time.process_time_ns() - began) / pairs
print(min(once() for _ in range(rounds)))
"""


def in_c(program: Path, environment: dict[str, str], rounds: int) -> float:
    lines = f"hot 4096 {PAIRS['c']}\n" * (rounds + 1)  # the first one warms up
    told = subprocess.run(
        [program], input=lines, check=True, capture_output=True, text=True, env=os.environ | environment
    )
    return min(float(line.split()[0]) for line in told.stdout.splitlines()[1:])


def in_python(rounds: int) -> float:
    command = [sys.executable, "-c", IN_PYTHON, str(rounds), str(PAIRS["python"])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def programs() -> dict[str, tuple[Path, dict[str, str]]]:
    """Each kind's, and tcmalloc's beside them where it is installed."""
    source, flags = Path(__file__).with_name("alloc_loop.c"), common.library_flags()
    kinds = {"result in registers": 1, "inlined": 2, "result through memory": 3}
    built: dict[str, tuple[Path, dict[str, str]]] = {
        name: (common.build(source, f"alloc_loop_{how}", [f"-DUSE_VM={how}", *flags]), {})
        for name, how in kinds.items()
    }
    if library := ctypes.util.find_library("tcmalloc_minimal"):
        built["tcmalloc"] = (common.build(source, "alloc_loop_malloc", []), {"LD_PRELOAD": library})
    else:
        print("tcmalloc: libtcmalloc_minimal is not installed; skipped")
    return built


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--only", choices=("c", "python"), help="only programs in C, or only Python")
    args = parser.parse_args()
    processes, rounds = (3, 2) if args.quick else (PROCESSES, ROUNDS)
    kinds = {} if args.only == "python" else programs()
    values: dict[str, list[float]] = {name: [] for name in kinds}
    if args.only != "c":
        values["Python"] = []
    for _ in range(processes):
        for name in values:
            values[name].append(in_c(*kinds[name], rounds) if name in kinds else in_python(rounds))
    rows, results = [], []
    for name, each in values.items():
        middle = median(each)
        nr_slow = sum(one > SLOW * middle for one in each)
        rows.append([name, f"{min(each):.2f}", f"{middle:.2f}", f"{max(each):.2f}", f"{nr_slow}/{len(each)}"])
        results += [
            result(f"hot 4 KiB, {name}: {what}", "magazine", value, unit)
            for what, value, unit in (
                ("least", min(each), "ns"),
                ("median", middle, "ns"),
                ("most", max(each), "ns"),
                ("slow", nr_slow, "processes"),
            )
        ]
    common.show(
        f"ns a pair of {processes} processes, of each its quickest of {rounds} rounds",
        ["through", "least", "median", "most", "slow"],
        rows,
    )
    common.finish(args, results)


if __name__ == "__main__":
    main()
