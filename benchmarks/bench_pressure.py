# SPDX-License-Identifier: MIT
"""What happens when memory is short: a loop in a memory cgroup that leaves little, and under a limit.

A child works in a region while its memory cgroup (v1 or v2, where this program may make one) or the region's
own limit leaves a tenth more than what it holds at a time. Its throughput is compared with the same work
unbounded, in turns. It must not be killed, by SIGBUS or for being out of memory, and no request may fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _common as common
from _common import median, result

MIB = 1 << 20
LIVE = 256 * MIB
SHARE = 0.9  # of the bound that is in use when all is live


def work(seconds: float, limit: int) -> None:
    """Epochs over mixed sizes with LIVE bytes at the most; prints arrays a second, and failures."""
    import random

    import vmalloc

    rng = random.Random(1)
    sizes = [rng.choice((1 << 14, 1 << 16, 1 << 18, MIB, 4 * MIB)) for _ in range(100_000)]
    nr = failed = 0
    at = 0
    with vmalloc.Region(4 * LIVE, limit=limit or None) as region:
        held: list[tuple[int, object]] = []
        in_use = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            size = sizes[at := (at + 1) % len(sizes)]
            while in_use + size > LIVE:
                in_use -= held.pop(rng.randrange(len(held)))[0]
            try:
                array = region.empty(size, "u1")
            except vmalloc.OutOfPages:
                failed += 1
                in_use -= held.pop()[0]
                continue
            array[::4096] = 1
            held.append((size, array))
            in_use += size
            nr += 1
        print(
            json.dumps({"per_s": nr / seconds, "failed": failed, "source": region.stats().pressure_sources})
        )


@contextmanager
def cgroup(limit: int) -> Iterator[Path | None]:
    """A memory cgroup of that limit, or None where none can be made."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        made = root / f"vmalloc-bench-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / name).write_text(str(limit))
        except OSError:
            made.rmdir()
            continue
        try:
            yield made
        finally:
            for _ in range(100):
                try:
                    made.rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
        return
    yield None


def run(seconds: float, *, limit: int = 0, group: Path | None = None) -> dict[str, float]:
    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, __file__, "--work", str(seconds), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
    if done.returncode:
        return {"per_s": 0.0, "failed": 0, "ended": done.returncode}
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--work", nargs=2, help="a child's part", metavar=("SECONDS", "LIMIT"))
    args = parser.parse_args()
    if args.work:
        work(float(args.work[0]), int(args.work[1]))
        return
    seconds, rounds = (1.0, 1) if args.quick else (4.0, 5)
    results: list[common.Result] = []
    rows = []
    bound = int(LIVE / SHARE)
    with cgroup(bound + 64 * MIB) as group:  # and the interpreter's own
        cases = {"limit": {"limit": bound}, **({"cgroup": {"group": group}} if group else {})}
        for name, options in cases.items():
            ratios, failed, ended = [], 0, 0
            for _ in range(rounds):
                free = run(seconds)
                short = run(seconds, **options)  # type: ignore[arg-type]
                ratios.append(short["per_s"] / free["per_s"])
                failed += int(short["failed"])
                ended = ended or int(short.get("ended", 0))
            rows.append([name, f"{median(ratios):.2f}", str(failed), str(ended)])
            peers = {"failed": float(failed), "ended by": float(ended)}
            case = f"throughput at {SHARE:.0%} of the {name}"
            results.append(result(case, "magazine", median(ratios), "ratio", peers))
    if len(cases) == 1:
        print("no memory cgroup can be made here: only the region's own limit was tried")
    common.show("bounded over unbounded", ["bound", "throughput", "OutOfPages", "ended by"], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
