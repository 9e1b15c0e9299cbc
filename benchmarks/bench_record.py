# SPDX-License-Identifier: MIT
"""What a recording adds to a hot pair of 4 KiB in C: with a stamp a batch, and with exact times.

Short rounds without, with, and with exact times take turns in one process. The value is the median over the
rounds of what a recording adds in the same round; `off` is the pair itself.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import _common as common
from _common import median, result

ROUNDS, PAIRS = 200, 50_000
QUICK_ROUNDS, QUICK_PAIRS = 3, 1_000


def main() -> None:
    args = common.options(__doc__).parse_args()
    source = Path(__file__).with_name("record_loop.c")
    program = common.build(source, "record_loop", common.library_flags())
    size = (QUICK_ROUNDS, QUICK_PAIRS) if args.quick else (ROUNDS, PAIRS)
    words = [str(program), *map(str, size)]
    output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    rounds = [[float(word) for word in line.split()] for line in output.splitlines()]
    results, rows = [], []
    for call, at in (("vm_alloc", 0), ("vm_take", 3)):
        off = median(r[at] for r in rounds)
        coarse, exact = (median(r[at + kind] - r[at] for r in rounds) for kind in (1, 2))
        rows.append([call, f"{off:.2f}", f"+{coarse:.1f}", f"+{exact:.1f}"])
        for name, value in (("off", off), ("a stamp a batch adds", coarse), ("exact times add", exact)):
            results.append(result(f"{call}, {name}", "magazine", value, "ns"))
    common.show("ns per alloc+free pair, CPU time", ["by", "off", "a stamp a batch", "exact"], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
