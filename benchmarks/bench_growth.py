# SPDX-License-Identifier: MIT
"""ns per pair on the hot path and on the space path while everything grows: is it flat?

hot    one range taken and freed with 10^2 to 10^7 others live
space  taken from space, freed and purged, against region size (1 GiB to 1 TiB of 4 KiB pages, half
       full) and fill (10 % to 99 % of 64 GiB)

The points of one line take turns. The value is the median over the turns, the peer `p99` the 99th
percentile within a run, and `first` the line's first point: flat means value / first near 1.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import _common as common
from _common import median, result

PAGES_PER_GIB = 1 << 18


def lines(quick: bool) -> dict[str, dict[str, tuple[str, int, int]]]:
    """Each line's points: the program's arguments."""
    live = [10**n for n in range(2, 6 if quick else 8)]
    sizes = [1, 16, 128, 1024] if not quick else [1, 1024]
    fills = [10, 50, 90, 99] if not quick else [10, 99]
    return {
        "hot": {f"hot {n:.0e} live".replace("e+0", "e"): ("hot", 64 * PAGES_PER_GIB, n) for n in live},
        "space, size": {f"space {g} GiB": ("space", g * PAGES_PER_GIB, 50) for g in sizes},
        "space, fill": {f"space {f} % full": ("space", 64 * PAGES_PER_GIB, f) for f in fills},
    }


def main() -> None:
    args = common.options(__doc__).parse_args()
    source = Path(__file__).with_name("growth_loop.c")
    program = common.build(source, "growth_loop", common.library_flags())
    results, rows = [], []
    for points in lines(args.quick).values():
        tails: dict[str, list[float]] = {case: [] for case in points}

        def measure(
            case: str, arguments: tuple[str, int, int], tails: dict[str, list[float]] = tails
        ) -> float:
            command = [program, *map(str, arguments)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            middle, tail = map(float, output.split())
            tails[case].append(tail)
            return middle

        values = common.interleaved(
            1 if args.quick else 7, {c: (lambda c=c, a=a, m=measure: m(c, a)) for c, a in points.items()}
        )
        first = median(next(iter(values.values())))
        for case, v in values.items():
            tail = median(tails[case])
            design = "magazine" if case.startswith("hot") else "off"
            results.append(result(case, design, median(v), "ns/pair", {"p99": tail, "first": first}))
            rows.append(
                [case, f"{median(v):.1f}", f"{min(v):.1f}", f"{tail:.1f}", f"{median(v) / first:.2f}x"]
            )
    common.show("Growth", ["case", "median ns", "minimum", "p99", "to the first"], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
