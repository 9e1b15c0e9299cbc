# SPDX-License-Identifier: MIT
"""Millions of alloc+free pairs a second, by 1 to 64 worker processes, for each pool design.

Every worker takes and frees 1 to 16 pages, 16 ranges live. The designs take turns; the value is the
median. More workers than CPUs measure what a preempted lock holder costs, not scaling.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import _common as common
from _common import median, result

from vmalloc.facts import POOLS

WORKERS = [1, 2, 4, 8, 16, 32, 64]


def main() -> None:
    args = common.options(__doc__).parse_args()
    rounds, milliseconds = (2, 50) if args.quick else (7, 300)
    source = Path(__file__).with_name("contend_loop.c")
    program = common.build(source, "contend_loop", common.library_flags())

    def measure(design: str, workers: int) -> float:
        command = [program, str(POOLS.index(design)), str(workers), str(milliseconds)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])

    results, rows = [], []
    for workers in [1, 2, 8, 64] if args.quick else WORKERS:
        values = common.interleaved(rounds, {d: (lambda d=d, w=workers: measure(d, w)) for d in POOLS})
        medians = {d: median(v) for d, v in values.items()}
        results += [
            result(f"{workers} workers", d, medians[d], "Mpairs/s", {"off": medians["off"]}) for d in POOLS
        ]
        rows.append(
            [str(workers), *(f"{medians[d]:.2f} ({medians[d] / medians['off']:.1f}x)" for d in POOLS)]
        )
    common.show("Mpairs/s (ratio to `off`)", ["workers", *POOLS], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
