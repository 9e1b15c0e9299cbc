# SPDX-License-Identifier: MIT
"""The picture: time by size, and the same as multiples of ours. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmalloc.bench.handover import Found, machine, size_text
from vmalloc.bench.peers import ALONE, OURS, PEERS, WAYS

__all__ = ["draw"]

TITLES = {"queue": "through a queue", "task": "result of a task"}


def draw(found: Found, path: Path) -> None:
    """Write a picture; the ending of the name says which kind. ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = [way for way in WAYS if any(one.way == way for one in found.measured)]
    if not ways:
        raise ValueError("nothing was measured, so there is nothing to draw")
    figure = Figure(figsize=(7 * len(ways), 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, len(ways), squeeze=False, sharex=True)
    for column, way in enumerate(ways):
        _draw_way(found, way, axes[0][column], axes[1][column])
    figure.suptitle(
        f"An array handed to another process, all of it written and read (warm)\n{machine()}", fontsize=9
    )
    figure.savefig(path, dpi=120)


def _color(peer: str) -> str:
    """The same in every picture."""
    others = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")  # C7 is gray
    fixed = {OURS: "black", ALONE: "gray"}
    return fixed.get(peer) or others[list(PEERS).index(peer) % len(others)]


def _draw_way(found: Found, way: str, times: Any, ratios: Any) -> None:
    sizes = [nbytes for nbytes in found.plan.nbytes if found.of(way, nbytes)]
    for name in found.peers_of(way):
        mine = sorted((s for s in found.measured if (s.way, s.peer) == (way, name)), key=lambda s: s.nbytes)
        style: dict[str, Any] = {"label": mine[0].title, "color": _color(name), "marker": ".", "lw": 1}
        if name == OURS:
            style["lw"] = 2.5
        elif name == ALONE:
            style["ls"] = ":"
        x = [one.nbytes for one in mine]
        times.plot(x, [one.median_us for one in mine], **style)
        times.fill_between(
            x, *zip(*(one.quartiles_us for one in mine), strict=True), color=style["color"], alpha=0.12
        )
        known = [(one.nbytes, ratio) for one in mine if (ratio := found.ratio(one)) is not None]
        if known and name != ALONE:  # far below where sizes are small
            ratios.plot(*zip(*known, strict=True), **style)
    for axis in (times, ratios):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sizes, [size_text(nbytes) for nbytes in sizes])
        axis.grid(alpha=0.3, which="both", lw=0.5)
    times.set_title(TITLES[way])
    times.set_ylabel("us, median and quartiles")
    times.legend(fontsize=8)
    ratios.set_ylabel("times ours")
