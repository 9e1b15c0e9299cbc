# SPDX-License-Identifier: MIT
"""The thread's question in figures: a list and a lock, llist, tagged list, per CPU, or magazines?

Two measurements by 1 to 64 workers. The kernel's tests of mask 127, by threads: medians of a worker's time,
over those of `locked` in the same rounds. Then processes that take and free 1 to 16 pages at random, 16 live
each: pairs a second, how long a pair waited for locks, how often in 1,000 pairs a lock was found taken, and
how many pages the design kept ready, all workers still there. More workers than CPUs: what a preempted lock
holder costs, not scaling. At last what a design keeps ready when 1 to 3,500 threads freed all they had.

`--page FILE` writes the tables between the two marks of the document, and the picture beside it. All of it
takes 20 minutes. After Ctrl-C the rounds that ended are shown, and written with their number.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import _common as common
from _common import median, result

from vmalloc.facts import POOLS
from vmalloc.suite.driver import Plan, run
from vmalloc.suite.parameters import Parameters

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SHOWN = (1, 16, 64)
THREADS = (1, 64, 512, 3500)
LOOPS = 20_000  # with fewer the tests of one size measure each worker's first request, not its pairs
PAIRS_OF_ALL = 700_000
BEGIN, END = "<!-- measured by benchmarks/bench_thread.py -->", "<!-- end of what was measured -->"

Key = tuple[int, str, str]  # workers, test, design
Place = tuple[int, str]  # workers, design


class Held(NamedTuple):
    """What processes saw that take and free at random."""

    mpairs: float
    wait_ns: float  # a pair
    waits: float  # in 1,000 pairs
    pages: float  # neither in use nor free


class Round(NamedTuple):
    """All of it once. Microseconds of a worker for each test, of `all` the wall time; what processes saw."""

    times: dict[Key, float]
    seen: dict[Place, Held]
    kept: dict[Place, float]  # pages, by threads


def suite(workers: int, loops: int) -> dict[Key, float]:
    """All designs once. KeyboardInterrupt if it was broken off."""
    parameters = Parameters(nr_threads=workers, run_test_mask=127, test_loop_count=loops)
    told = run(Plan(parameters, designs=POOLS, single=False))
    if told.is_interrupted:
        raise KeyboardInterrupt
    assert not any(line.failed for line in told.results), told.results
    return {(workers, line.test, line.pools): line.usec for line in told.results}


def printed(program: Path, *numbers: int) -> list[float]:
    """What one of the C programs prints. SystemExit with what it says if it fails."""
    try:
        out = subprocess.run([program, *map(str, numbers)], check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"ended with {error.returncode}"
        sys.exit(f"{' '.join(map(str, (program.name, *numbers)))}: {reason}")
    return [float(word) for word in out.split()]


def held(program: Path, workers: int, milliseconds: int) -> dict[Place, Held]:
    return {
        (workers, design): Held(*printed(program, at, workers, milliseconds))
        for at, design in enumerate(POOLS)
    }


def kept(program: Path, threads: int, pairs: int) -> dict[Place, float]:
    return {(threads, design): printed(program, at, threads, pairs)[0] for at, design in enumerate(POOLS)}


def one_round(contend: Path, keep: Path, loops: int, milliseconds: int, name: str) -> Round:
    one = Round({}, {}, {})
    for workers in WORKERS:
        print(f"{name}, {workers} workers", file=sys.stderr, flush=True)
        one.times.update(suite(workers, loops))
        one.seen.update(held(contend, workers, milliseconds))
    for threads in THREADS:
        print(f"{name}, {threads} threads that free all", file=sys.stderr, flush=True)
        one.kept.update(kept(keep, threads, PAIRS_OF_ALL * loops // LOOPS))
    return one


def rounds_until_interrupted(rounds: int, loops: int, milliseconds: int) -> list[Round]:
    """Those that ended. SystemExit if none did."""
    here, flags = Path(__file__), common.library_flags()
    contend, keep = (
        common.build(here.with_name(f"{name}.c"), name, flags) for name in ("contend_loop", "held_loop")
    )
    done: list[Round] = []
    try:
        for number in range(1, rounds + 1):
            done.append(one_round(contend, keep, loops, milliseconds, f"round {number} of {rounds}"))
    except KeyboardInterrupt:
        if not done:
            sys.exit("interrupted: no round ended")
        print(f"interrupted: {len(done)} of {rounds} rounds", file=sys.stderr)
    return done


def medians(rounds: list[Round]) -> Round:
    return Round(
        {key: median(one.times[key] for one in rounds) for key in rounds[0].times},
        {
            place: Held(*map(median, zip(*(one.seen[place] for one in rounds), strict=True)))
            for place in rounds[0].seen
        },
        {place: median(one.kept[place] for one in rounds) for place in rounds[0].kept},
    )


def suite_rows(times: dict[Key, float]) -> list[list[str]]:
    """A row for each test and number of workers shown: ratios to `locked`, and its time."""
    tests = list(dict.fromkeys(test for _, test, _ in times))
    return [
        [
            test,
            str(workers),
            *(f"{times[workers, test, design] / times[workers, test, 'locked']:.2f}" for design in POOLS),
            f"{times[workers, test, 'locked'] / 1e3:,.1f} ms",
        ]
        for workers in SHOWN
        for test in tests
    ]


def held_rows(seen: dict[Place, Held]) -> list[list[str]]:
    return [
        [
            str(workers),
            design,
            f"{one.mpairs:.2f}",
            f"{one.mpairs / seen[workers, 'locked'].mpairs:.2f}",
            f"{one.wait_ns:,.0f}",
            f"{one.waits:.2f}",
            f"{one.pages:,.0f}",
        ]
        for workers in SHOWN
        for design, one in ((design, seen[workers, design]) for design in POOLS)
    ]


def kept_rows(pages: dict[Place, float]) -> list[list[str]]:
    return [[f"{threads:,}", *(f"{pages[threads, design]:,.0f}" for design in POOLS)] for threads in THREADS]


SUITE_COLUMNS = ["test", "workers", *POOLS, "locked took"]
HELD_COLUMNS = [
    "workers",
    "design",
    "million pairs/s",
    "to locked",
    "lock wait, ns a pair",
    "waits in 1,000 pairs",
    "pages kept ready",
]
KEPT_COLUMNS = ["threads", *POOLS]


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def why_no_page(path: Path) -> str:
    """Why the tables cannot go there; "" if they can."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not 0 <= text.find(BEGIN) < text.find(END):
        return f"it has no lines {BEGIN} and {END}"
    return "" if find_spec("matplotlib") else "the picture wants matplotlib"


def write_page(path: Path, all_of: Round, rounds: int) -> None:
    """Put the tables between the marks and the picture beside the page."""
    text = path.read_text()
    head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
    body = (
        f"{BEGIN}\n\n{common.machine()}; medians of {rounds} interleaved rounds.\n\n"
        f"![time of a test and of a pair, by workers]({path.stem}.png)\n\n"
        f"{markdown(SUITE_COLUMNS, suite_rows(all_of.times))}\n\n"
        f"{markdown(HELD_COLUMNS, held_rows(all_of.seen))}\n\n"
        f"{markdown(KEPT_COLUMNS, kept_rows(all_of.kept))}\n\n"
    )
    path.write_text(head + body + tail)
    draw(path.with_suffix(".png"), all_of.times, all_of.seen)


def draw(path: Path, times: dict[Key, float], seen: dict[Place, Held]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 3)
    for panel, test in zip(panels, ("fix_size_alloc", "all"), strict=False):
        panel.set_title(f"{test}, time over that of locked")
        for marker, design in zip("os^vDx", POOLS, strict=True):
            ratios = [times[w, test, design] / times[w, test, "locked"] for w in WORKERS]
            panel.plot(WORKERS, ratios, marker=marker, label=design)
    panels[2].set_title("random 1..16 pages, lock wait of a pair, ns")
    for marker, design in zip("os^vDx", POOLS, strict=True):
        panels[2].plot(WORKERS, [seen[w, design].wait_ns + 1 for w in WORKERS], marker=marker)
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("workers")
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=8, loc="center")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--page", type=Path, help="the document that gets the tables and the picture")
    parser.add_argument("--rounds", type=int, default=0, help="default 11, quick 1")
    args = parser.parse_args()
    loops, milliseconds = (100, 20) if args.quick else (LOOPS, 200)
    rounds = args.rounds or (1 if args.quick else 11)
    if rounds < 0:
        parser.error("--rounds: at least 1")
    if args.page and (reason := why_no_page(args.page)):
        parser.error(f"--page {args.page}: {reason}")  # now, not when all is measured
    done = rounds_until_interrupted(rounds, loops, milliseconds)
    all_of = medians(done)
    times, seen, pages = all_of
    common.show("The kernel's tests, time over that of `locked`", SUITE_COLUMNS, suite_rows(times))
    common.show("Random 1..16 pages, 16 live, by processes", HELD_COLUMNS, held_rows(seen))
    common.show("Pages kept ready by threads that freed all they had", KEPT_COLUMNS, kept_rows(pages))
    if args.page:
        write_page(args.page, all_of, len(done))
    results = [
        result(f"{workers} workers, {test}", design, usec, "us", {"locked": times[workers, test, "locked"]})
        for (workers, test, design), usec in times.items()
    ]
    for (workers, design), one in seen.items():
        units = ("Mpairs/s", "ns lock wait a pair", "lock waits in 1,000 pairs", "pages kept")
        for unit, value in zip(units, one, strict=True):
            results.append(result(f"{workers} workers, random 1..16", design, value, unit))
    results += [
        result(f"{threads} threads that freed all", design, nr, "pages kept")
        for (threads, design), nr in pages.items()
    ]
    common.finish(args, results)


if __name__ == "__main__":
    main()
