# SPDX-License-Identifier: MIT
"""`python -m vmalloc.demo`: the patch's result on this machine, then photographs between processes.

First the kernel's vmalloc test suite, mask 7, on 64 workers, for every pool design: the ratio to `off` is
the patch's headline (651 s to 51 s on its author's machine). Then photographs go
from one process to another, through a region and through stock multiprocessing. Both end as tables here
and as one picture in demo.png.
"""

# matplotlib leaves its **kwargs untyped, so strict mode would object to every call of it:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import vmalloc
from vmalloc.suite import Parameters, Plan, Run, run
from vmalloc.suite.progress import progress_bar
from vmalloc.suite.report import table as suite_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

FULL = Parameters(nr_threads=64, run_test_mask=7, test_loop_count=100_000)
QUICK = Parameters(nr_threads=8, run_test_mask=7, test_loop_count=2_000)
BATCH = 32


@dataclass(frozen=True)
class HandOver:
    """One line of the second table; medians, in microseconds."""

    what: str
    nbytes: int
    stock_us: float
    region_us: float


# ---- photographs -----------------------------------------------------------------------------------------


def photographs() -> list[NDArray[Any]] | None:
    """The photographs that ship inside scikit-learn (427 x 640 pixels), or None without it."""
    try:
        # scikit-learn brings no types
        from sklearn.datasets import load_sample_images  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType, reportMissingImports]
    except ImportError:
        return None
    return list(load_sample_images().images)  # pyright: ignore[reportUnknownArgumentType]


def brightness(photo: NDArray[Any]) -> float:
    """What the receiver does: looks at every 64th pixel of every 64th row."""
    return float(photo[..., ::64, ::64, :].mean())


def _receive(inbox: Any, answers: Connection) -> None:
    while (photo := inbox.get()) is not None:
        answers.send(brightness(photo))


class Receiver:
    """Another process with an ordinary multiprocessing.Queue as its inbox."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.inbox = context.Queue()
        self.answers, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_receive, args=(self.inbox, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, photo: Any) -> float:
        """Seconds until its answer is here."""
        started = time.perf_counter()
        self.inbox.put(photo)
        self.answers.recv()
        return time.perf_counter() - started

    def stop(self) -> None:
        self.inbox.put(None)
        self.process.join()
        self.inbox.close()


def interleaved(ways: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Median microseconds of each way, taking turns; the first turn of each does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn, (took, way) in itertools.product(range(rounds + 1), zip(seconds, ways, strict=True)):
        value = way()
        if turn:
            took.append(value)
    return [statistics.median(took) * 1e6 for took in seconds]


def through_a_queue(region: vmalloc.Region, photos: list[NDArray[Any]], rounds: int) -> list[HandOver]:
    """One photograph, then a batch of 32 in one array, to a process that waits for it."""
    import numpy as np

    receiver = Receiver()
    batch = np.stack([photos[i % len(photos)] for i in range(BATCH)])
    lines: list[HandOver] = []
    for what, photo, turns in (
        ("a photograph", photos[0], rounds),
        (f"{BATCH} in one array", batch, rounds // 5),
    ):
        mine = region.array(photo)
        stock, shared = interleaved(
            [lambda p=photo: receiver.send(p), lambda m=mine: receiver.send(vmalloc.ref(m))],  # type: ignore[misc]
            max(turns, 3),
        )
        lines.append(HandOver(f"Queue: {what}", photo.nbytes, stock, shared))
    receiver.stop()
    return lines


def through_a_pool(region: vmalloc.Region, photos: list[NDArray[Any]], rounds: int) -> HandOver:
    """32 photographs to a pool of two workers, Pool.map."""
    many = [photos[i % len(photos)] for i in range(BATCH)]
    refs = [vmalloc.ref(region.array(photo)) for photo in many]

    def timed(pool: Any, photos: Sequence[Any]) -> float:
        started = time.perf_counter()
        pool.map(brightness_of, photos)
        return time.perf_counter() - started

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        stock, shared = interleaved(
            [lambda: timed(pool, many), lambda: timed(pool, refs)], max(rounds // 5, 3)
        )
    return HandOver(f"Pool.map: {BATCH} photographs", sum(photo.nbytes for photo in many), stock, shared)


def brightness_of(photo: Any) -> float:
    """A reference arrives as the array itself."""
    return brightness(photo)


def hand_overs(photos: list[NDArray[Any]], rounds: int) -> list[HandOver]:
    """All lines of the second table."""
    with vmalloc.Region("1G", name="demo") as region:
        return [*through_a_queue(region, photos, rounds), through_a_pool(region, photos, rounds)]


def hand_over_table(lines: Sequence[HandOver]) -> Table:
    shown = Table(title="photographs to another process, until it answered; medians", title_justify="left")
    for column in ("what", "MB", "stock multiprocessing", "through a region", "faster"):
        shown.add_column(column, justify="left" if column == "what" else "right")
    for line in lines:
        shown.add_row(
            line.what,
            f"{line.nbytes / 1e6:.1f}",
            f"{line.stock_us:,.0f} us",
            f"{line.region_us:,.0f} us",
            f"{line.stock_us / line.region_us:.1f}x",
        )
    return shown


# ---- the picture -----------------------------------------------------------------------------------------


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], texts: Sequence[str], color: Any
) -> None:
    drawn = axes.barh(range(len(names)), values, color=color)
    axes.bar_label(drawn, texts, padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_suite(axes: Axes, found: Run) -> None:
    lines = [result for result in found.results if result.test == "all"]
    texts = [f"{line.usec / 1e6:.2f} s, {found.speedup(line) or 0:.1f}x" for line in lines]
    _bars(axes, [line.pools for line in lines], [line.usec / 1e6 for line in lines], texts, "tab:blue")
    p = found.parameters
    axes.set_title(f"vmalloc test suite, mask {p.run_test_mask}, {p.nr_threads} workers")
    axes.set_xlabel("seconds, whole run")


def _draw_hand_overs(axes: Axes, lines: Sequence[HandOver]) -> None:
    names = [f"{line.what}\n{way}" for line in lines for way in ("stock", "region")]
    values = [value for line in lines for value in (line.stock_us, line.region_us)]
    _bars(
        axes, names, values, [f"{value:,.0f} us" for value in values], ["tab:gray", "tab:blue"] * len(lines)
    )
    axes.set_xscale("log")
    axes.set_title("photographs to another process")
    axes.set_xlabel("microseconds until it answered, median")


def draw(path: Path, found: Run, lines: Sequence[HandOver]) -> bool:
    """One picture of both tables; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, 2 if lines else 1, squeeze=False)[0]
    _draw_suite(columns[0], found)
    if lines:
        _draw_hand_overs(columns[1], lines)
    figure.savefig(path, dpi=110)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vmalloc.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: 8 workers, 2,000 loops")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture (default: demo.png)")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    plan = Plan(QUICK if options.quick else FULL)
    console.print(
        f"vmalloc suite {plan.parameters.words()}" + ("" if options.quick else "; about two minutes")
    )
    with progress_bar() as progress:
        found = run(plan, progress)
    console.print(suite_table(found))
    photos = photographs()
    lines: list[HandOver] = []
    if photos is None:
        console.print("scikit-learn is not installed, so there are no photographs to hand over: skipped")
    else:
        lines = hand_overs(photos, 15 if options.quick else 200)
        console.print(hand_over_table(lines))
    if draw(options.out, found, lines):
        console.print(f"both as a picture: {options.out}")
    else:
        console.print("matplotlib is not installed: no picture")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
