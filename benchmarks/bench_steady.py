# SPDX-License-Identifier: MIT
"""Is the same work, done again and again, as warm and as small as once?

epochs    arrays of one shape are allocated, written to, and freed, again and again, by one thread, by many,
          by many processes: faults and resident memory from the second epoch on, beside mimalloc, jemalloc,
          tcmalloc and glibc at shipped defaults; ns a page beside the shape that fits the magazines
          (`to fits`), and beside the same shape in memory that its workers hold all the time (`held`,
          `to held`): no allocator can be faster, and larger memory takes longer to write to
flow      messages go one way between two processes: ns a message beside a ring of two slots written by hand
headroom  allocations a second in a region that has little more pages than are in use
free      the slowest of many frees of small arrays, half of all, beside idle processes and a stopped one
crowd     the same number of pairs by few and by thousands of threads, in one process and in many; beside them
          as many threads that wake up, call nothing, and end: `net` is the ratio without what the machine
          takes longer for those, and both again in CPU time

Resident is memory of the region, or of the process for the others. The column size/bar is the most that was
resident over 1.1 times the live peak and 64 MiB.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import _common as common
from _common import median, result
from bench_alloc import find_peers

MIB = 1 << 20
FITS = "20x32768"  # the shape that fits the magazines
SHAPES = {
    "3,200 x 32 KiB": "3200x32768",
    "800 x 128 KiB": "800x131072",
    "200 x 2 MiB": "200x2097152",
    "60 x 16 MiB": "60x16777216",
    "mixed": "mixed:300",
    "mixed, drawn anew": "drawn:300",
}
WORKERS = {"1 thread": ("1", "thread"), "64 threads": ("64", "thread"), "8 processes": ("8", "process")}
MESSAGES = {"64 KiB": (64 << 10, 200), "1 MiB": (1 << 20, 30), "16 MiB": (16 << 20, 4)}
HEADROOM = (8.0, 2.0, 1.5, 1.2)
LIVE_PAGES = 1 << 17
FREE_RUNS = 3
LOCKS = ("none", "purge", "space", "warm", "pool", "names", "lease")


class Epoch(NamedTuple):
    """What one epoch cost: bytes are resident while all is in use, and when all is free."""

    faults: int
    pages: int
    ns: float
    full: int
    empty: int


def build(name: str, source: str, flags: list[str]) -> Path:
    return common.build(Path(__file__).with_name(source), name, flags)


def run_epochs(command: list[str | Path], environment: dict[str, str]) -> list[Epoch]:
    text = subprocess.run(
        command, env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout
    rows = (line.split() for line in text.splitlines())
    return [Epoch(int(r[0]), int(r[1]), float(r[2]), int(r[3]), int(r[4])) for r in rows]


class Epochs:
    """The two programs, and the others' libraries."""

    def __init__(self, quick: bool) -> None:
        self.ours = build("steady_vm", "steady_loop.c", ["-DUSE_VM", *common.library_flags(), "-lm"])
        self.theirs = build("steady_malloc", "steady_loop.c", ["-lm"])
        self.held = build("steady_held", "steady_loop.c", ["-DHOLD", "-lm"])
        self.peers = {name: env for name, env in find_peers().items() if "keep" not in name}
        self.count = "4" if quick else "10"
        self.turns = 1 if quick else 3

    def run(self, shape: str, workers: tuple[str, str], peer: str = "", *prelude: str) -> list[Epoch]:
        program = self.theirs if peer else self.ours
        environment = self.peers[peer] if peer else {}
        return run_epochs([program, shape, *workers, self.count, *prelude], environment)

    def times(self, shape: str, workers: tuple[str, str]) -> tuple[float, float, float]:
        """ns a page: ours, where memory is held all the time, and the ratio of the two; medians of turns."""
        programs = (self.ours, self.held)
        turns = [
            [summary(run_epochs([p, shape, *workers, self.count], {}))["ns/page"] for p in programs]
            for _ in range(self.turns)
        ]
        ours, held = (median(list(column)) for column in zip(*turns, strict=True))
        return ours, held, median([a / b for a, b in turns])


def summary(epochs: list[Epoch]) -> dict[str, float]:
    """Of the second epoch and later; `size` is resident over the bar's 1.1 times the live peak and 64 MiB."""
    later = epochs[1:]
    live = max(e.pages for e in epochs) * 4096
    resident = [r for e in later for r in (e.full, e.empty)]
    return {
        "faults %": 100 * sum(e.faults for e in later) / sum(e.pages for e in later),
        "mean MiB": fmean(resident) / MIB,
        "peak MiB": max(resident) / MIB,
        "size": max(resident) / (1.1 * live + 64 * MIB),
        "ns/page": median([e.ns for e in later]),
    }


def epochs_of(args_quick: bool) -> Iterator[tuple[list[str], list[common.Result]]]:
    loop = Epochs(args_quick)
    fits = loop.times(FITS, WORKERS["1 thread"])[0]
    shapes = dict(list(SHAPES.items())[:1]) if args_quick else SHAPES
    for who, workers in WORKERS.items():
        for name, shape in shapes.items():
            ours = summary(loop.run(shape, workers))
            after = summary(loop.run(shape, workers, "", "prelude"))
            # processes do not share a heap of malloc's
            peers = (
                {}
                if workers[1] == "process"
                else {p: summary(loop.run(shape, workers, p)) for p in loop.peers}
            )
            case = f"{name}, {who}"
            ns, held, to_held = loop.times(shape, workers)
            ours |= {
                "ns/page": ns,
                "held, ns/page": held,
                "ns/page to held": to_held,
                "ns/page to fits": ns / fits,
            }
            yield (
                [case, f"{ours['faults %']:.2f}", f"{after['faults %']:.2f}", f"{ours['size']:.2f}",
                 f"{ours['mean MiB']:.0f}/{ours['peak MiB']:.0f}",
                 f"{ns:.1f}", f"{ns / fits:.1f}", f"{held:.1f}", f"{to_held:.2f}",
                 *(f"{p['faults %']:.1f} {p['mean MiB']:.0f}/{p['peak MiB']:.0f}" for p in peers.values())],
                [result(f"{case}: {key}", "magazine", value, key,
                        {n: p[key] for n, p in peers.items() if key in p})
                 for key, value in ours.items()],
            )  # fmt: skip


class Flow:
    """The producer, and the consumer it forks."""

    def __init__(self) -> None:
        program = build("flow", "flow_loop.c", common.library_flags())
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, how: str, size: int, count: int) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{how} {size} {count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def flows(quick: bool) -> Iterator[tuple[list[str], list[common.Result]]]:
    flow = Flow()
    for name, (size, count) in MESSAGES.items():
        values = common.interleaved(
            3 if quick else 60,
            {how: (lambda h=how, s=size, c=count: flow.round(h, s, c)) for how in ("vm", "ring")},
        )
        ratio = median([a / b for a, b in zip(values["vm"], values["ring"], strict=True)])
        ours, ring = median(values["vm"]), median(values["ring"])
        yield (
            [f"flow {name}", f"{ours / 1e3:.1f}", f"{ring / 1e3:.1f}", f"{ratio:.2f}"],
            [result(f"flow {name}", "magazine", ours, "ns/message", {"two slots": ring, "ratio": ratio})],
        )
    flow.close()


def headroom(quick: bool) -> Iterator[tuple[list[str], list[common.Result]]]:
    program = build("room", "room_loop.c", common.library_flags())
    failed: dict[float, int] = {}

    def measure(room: float) -> float:
        command = [program, str(LIVE_PAGES), str(int(LIVE_PAGES * room)), "8", "0.3" if quick else "1"]
        rate, none, _ = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        failed[room] = failed.get(room, 0) + int(none)
        return float(rate)

    values = common.interleaved(1 if quick else 5, {str(h): (lambda h=h: measure(h)) for h in HEADROOM})
    first = values[str(HEADROOM[0])]
    for room in HEADROOM:
        rate = values[str(room)]
        ratio = median([a / b for a, b in zip(rate, first, strict=True)])
        yield (
            [f"headroom {room}x", f"{median(rate) / 1e6:.2f}", f"{ratio:.2f}", str(failed[room])],
            [result(f"headroom {room}x", "magazine", median(rate) / 1e6, "M/s", {"ratio to 8x": ratio})],
        )


def frees(quick: bool) -> Iterator[tuple[list[str], list[common.Result]]]:
    sources = Path(__file__).resolve().parent.parent / "core"
    flags = [f"-I{sources}", *common.library_flags()]
    program = build("free", "free_loop.c", flags)
    arrays, processes = ("20000", "8") if quick else ("600000", "64")
    for lock in LOCKS:
        rows = []
        for _ in range(1 if quick else FREE_RUNS):
            command = [program, arrays, processes, lock]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append([float(number) for number in text.split()])
        worst, idle, cpu, idle_cpu, undisturbed, idle_undisturbed = (
            median(column) / 1e6 for column in list(zip(*rows, strict=True))[:6]
        )
        slept = sum(row[6] for row in rows)
        peers = {
            "the machine's own": idle,
            "in CPU time": cpu,
            "the machine's own CPU time": idle_cpu,
            "not preempted": undisturbed,
            "the machine's own, not preempted": idle_undisturbed,
            "slept": slept,
        }
        values = (worst, idle, undisturbed, idle_undisturbed, cpu, idle_cpu)
        yield (
            [f"stopped in: {lock}", *(f"{ms:.2f}" for ms in values), f"{slept:.0f}"],
            [result(f"slowest free, stopped in {lock}", "magazine", worst, "ms", peers)],
        )


class Crowd(NamedTuple):
    """What one crowd took from when all its threads were there."""

    seconds: float
    failed: int
    longest_s: float
    cpu: float


def run_crowd(program: Path, *arguments: str) -> Crowd:
    text = subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
    seconds, failed, longest, cpu = text.split()
    return Crowd(float(seconds), int(failed), float(longest), float(cpu))


def crowd_ratios(turns: list[list[Crowd]]) -> dict[str, float]:
    """Of turns {few, many, few that call nothing, as many}: many over few, by the clock and in CPU time.

    `net` takes off by how much the machine itself takes longer for many.
    """
    return {
        "ratio": median([many.seconds / few.seconds for few, many, *_ in turns]),
        "net": median([
            (many.seconds - max(0, m.seconds - f.seconds)) / few.seconds for few, many, f, m in turns
        ]),
        "CPU": median([many.cpu / few.cpu for few, many, *_ in turns]),
        "CPU net": median([(many.cpu - max(0, m.cpu - f.cpu)) / few.cpu for few, many, f, m in turns]),
    }  # fmt: skip


def crowds(quick: bool) -> Iterator[tuple[list[str], list[common.Result]]]:
    program = build("crowd", "crowd_loop.c", common.library_flags())
    pairs = "256000" if quick else "2560000"
    for name, few, many in (
        ("64 and 3,500 threads", ("1", "64"), ("1", "350" if quick else "3500")),
        ("4 x 14 and 250 x 14 threads", ("4", "14"), ("25" if quick else "250", "14")),
    ):
        orders = [(*few, pairs), (*many, pairs), (*few, pairs, "nothing"), (*many, pairs, "nothing")]
        turns = [[run_crowd(program, *order) for order in orders] for _ in range(1 if quick else 7)]
        ratios = crowd_ratios(turns)
        failed = sum(crowd.failed for turn in turns for crowd in turn)
        slowest = max(turn[1].longest_s for turn in turns)
        seconds = [median([turn[i].seconds for turn in turns]) for i in range(4)]
        peers = {
            "errors": float(failed),
            "the longest pair, s": slowest,
            **dict(zip(("few, s", "many, s", "few, nothing, s", "many, nothing, s"), seconds, strict=True)),
            **ratios,
        }
        figures = [f"{number:.2f}" for number in (*seconds, *ratios.values())]
        yield (
            [name, *figures, str(failed), f"{slowest:.2f}"],
            [result(name, "magazine", ratios["ratio"], "ratio of times", peers)],
        )


TABLES = {
    "epochs": (
        epochs_of, "Epochs, from the second on; of the others: faults %, resident mean/peak MiB",
        ["case", "faults %", "after prelude", "size/bar", "mean/peak MiB", "ns/page", "to fits", "held",
         "to held"],
    ),
    "flow": (flows, "One-way flow", ["case", "us", "two slots, us", "ratio"]),
    "headroom": (headroom, "Headroom, 8 threads, 1 to 256 pages", ["case", "M/s", "to 8x", "no room"]),
    "free": (
        frees, "Slowest single free, ms; beside it the same of an empty loop",
        ["case", "all", "empty", "not preempted", "empty", "CPU", "empty", "slept"],
    ),
    "crowd": (
        crowds, "The same pairs of 4 KiB by few and by many threads, s; beside them, where all call nothing",
        ["case", "few", "many", "few, nothing", "many, nothing", "ratio", "net", "CPU", "CPU net", "errors",
         "longest pair"],
    ),
}  # fmt: skip


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--case", action="append", choices=TABLES, help="only these")
    args = parser.parse_args()
    results: list[common.Result] = []
    for name in args.case or TABLES:
        measure, title, columns = TABLES[name]
        rows: list[list[str]] = []
        for row, values in measure(args.quick):
            rows.append(row)
            results += values
        wide = max(map(len, rows))
        if name == "epochs":
            columns = [*columns, *(p for p in find_peers() if "keep" not in p)][:wide]
        common.show(title, columns, [row + [""] * (wide - len(row)) for row in rows])
    common.finish(args, results)


if __name__ == "__main__":
    main()
