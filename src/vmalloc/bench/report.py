# SPDX-License-Identifier: MIT
"""What a run looks like: tables of at most 80 columns, and a file."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from vmalloc.bench.handover import WARM_UPS, Found, Series, machine, size_text
from vmalloc.bench.peers import WAYS

__all__ = ["details", "notes", "summary"]

TITLES = {
    "queue": "A fills an array and sends it, B reads all of it and replies",
    "task": "a worker fills an array and returns it, the caller reads all of it",
}
SIZES_PER_TABLE = 6


def _unit(us: float) -> tuple[float, str]:
    return (1e6, "s") if us >= 1e6 else (1e3, "ms") if us >= 1e3 else (1.0, "us")


def _digits(number: float) -> str:
    return f"{number:.3g}" if number < 1e3 else f"{number:.0f}"


def time_text(us: float) -> str:
    """Three digits and a unit."""
    factor, name = _unit(us)
    return f"{_digits(us / factor)} {name}"


def quartiles_text(one: Series) -> str:
    """Both in the unit of the upper."""
    low, high = one.quartiles_us
    factor, name = _unit(high)
    return f"{_digits(low / factor)} .. {_digits(high / factor)} {name}"


def ratio_text(ratio: float | None) -> str:
    """How many times ours: 0.87x, 5.1x, 118x."""
    if ratio is None:
        return "-"
    if ratio < 0.095:
        return f"{ratio:.1g}x"
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def details(found: Found) -> Iterator[Table]:
    """A table per way: every peer and size, the fastest first."""
    for way in WAYS:
        if not any(one.way == way for one in found.measured):
            continue
        table = Table(
            title=f"{way}: {TITLES[way]}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
            padding=(0, 0, 0, 1),
        )  # fmt: skip
        table.add_column("", no_wrap=True)
        for heading in ("median", "quartiles", "x ours", "faults", "of time"):
            table.add_column(heading, justify="right", no_wrap=True)
        for nbytes in found.plan.nbytes:
            rows = found.of(way, nbytes)
            if not rows:
                continue
            table.add_section()
            table.add_row(f"[bold]{size_text(nbytes)}[/], {max(len(one.samples) for one in rows)} rounds")
            for one in rows:
                table.add_row(
                    f"  {one.title}",
                    time_text(one.median_us),
                    quartiles_text(one),
                    ratio_text(found.ratio(one)),
                    f"{one.minor + one.major:,.0f}",
                    f"{one.fault_share(found.fault_us):.0%}",
                )
        yield table


def summary(found: Found) -> Iterator[Table]:
    """A table per way: how many times ours, by peer and size."""
    for way in WAYS:
        sizes = [nbytes for nbytes in found.plan.nbytes if found.of(way, nbytes)]
        for first in range(0, len(sizes), SIZES_PER_TABLE):
            part = sizes[first : first + SIZES_PER_TABLE]
            table = Table(
                title=f"{way}: how many times ours", title_justify="left", box=box.SIMPLE_HEAD,
                pad_edge=False, padding=(0, 1),
            )  # fmt: skip
            table.add_column("", no_wrap=True)
            for nbytes in part:
                table.add_column(size_text(nbytes), justify="right", no_wrap=True)
            for name in found.peers_of(way):
                mine = {one.nbytes: one for one in found.measured if (one.way, one.peer) == (way, name)}
                cells = [ratio_text(found.ratio(mine[n])) if n in mine else "" for n in part]
                table.add_row(next(iter(mine.values())).title, *cells)
            yield table


def notes(found: Found) -> Iterator[str]:
    """What one has to know beside the numbers, and what is missing from them."""
    if found.measured:
        yield f"{machine()}; other processes took {found.foreign_share:.0%} of the CPUs"
        costs = ", ".join(f"{kind} {us:.2g}" for kind, us in found.fault_us.items())
        yield (
            f"Warm: each peer handed over {WARM_UPS} arrays of the size before; the cold first time is in "
            f"--json. A page fault takes here, in us: {costs}. `of time` estimates from "
            "that; where faults are cheaper, as on bare metal, whoever takes them loses less."
        )
    for name, install in found.not_installed.items():
        yield f"{name}: not installed: pip install {install}"
    for title, where, reason in found.failed:
        yield f"{title} failed ({where}): {reason}"
    for text in found.left_out:
        yield f"left out: {text}"
    if found.is_interrupted:
        yield "Interrupted: this is what was measured until then."
