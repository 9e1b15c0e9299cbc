# SPDX-License-Identifier: MIT
"""What sharing a range costs, by how many processes its region has slots for.

plain   ns to take and free a page
share   the same, shared in between
spread  the same, 4,096 ranges of 64 KiB at a time
bytes   resident metadata of each shared range, by its pages

The numbers of slots take turns. The peer `first` is the smallest table: a ratio near 1 says that the
table's size costs nothing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import _common as common
from _common import median, result

SLOTS = (63, 255, 511, 1023)
PAGES = (1, 4, 16, 64, 256)


def main() -> None:
    args = common.options(__doc__).parse_args()
    program = common.build(Path(__file__).with_name("share_loop.c"), "share_loop", common.library_flags())

    def measure(*arguments: object) -> float:
        command = [program, *map(str, arguments)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    results, rows = [], []
    for case in ("plain", "share", "spread"):
        values = common.interleaved(
            1 if args.quick else 11, {str(n): (lambda n=n, c=case: measure(c, n)) for n in SLOTS}
        )
        first = median(values[str(SLOTS[0])])
        for slots, v in values.items():
            results.append(result(f"{case}, {slots} slots", "magazine", median(v), "ns", {"first": first}))
            rows.append([f"{case}, {slots} slots", f"{median(v):.1f} ns", f"{median(v) / first:.2f}x"])
    for nr_pages in PAGES:
        first = measure("bytes", SLOTS[0], nr_pages)
        for slots in SLOTS:
            nbytes = measure("bytes", slots, nr_pages)
            case = f"{nr_pages} pages, {slots} slots"
            results.append(result(case, "magazine", nbytes, "bytes", {"first": first}))
            rows.append([case, f"{nbytes:.0f} bytes", f"{nbytes / first:.2f}x"])
    common.show("Sharing", ["case", "median", "to the first"], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
