# SPDX-License-Identifier: MIT
"""Compare: designs x CPUs x parameters, each over several seeds, to a table and a figure.

The uncertainty is that over the seeds: half of the interval in which the mean lies with 95 %, by Student's t.
It says nothing about the costs; docs/simulator/validation.md does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vmalloc.simulate.plan import Plan

__all__ = ["COLUMNS", "Group", "draw", "grid", "group", "markdown"]

COLUMNS = {
    "pairs": ("pairs", 1.0),
    "purges": ("purges", 1.0),
    "pairs_per_s": ("pairs a second", 1.0),
    "us_per_pair": ("us a pair and thread", 1.0),
    "lock_wait_share": ("waiting for locks, %", 100.0),
    "alloc_p50_us": ("alloc p50, us", 1.0),
    "alloc_p99_us": ("p99", 1.0),
    "alloc_max_us": ("max", 1.0),
    "pool_hit_share": ("served by pools, %", 100.0),
    "pool_hit_first_share": ("of the first quarter of the nodes", 100.0),
    "pool_hit_others_share": ("of the others", 100.0),
    "pooled_mean_mib": ("in pools, MiB", 1.0),
    "lazy_mean_mib": ("lazy, MiB", 1.0),
    "footprint_ratio": ("footprint / live", 1.0),
}
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class Group:
    """The runs of one plan over its seeds."""

    plan: Plan
    label: str
    cpus: int
    rows: tuple[dict[str, Any], ...]

    def mean(self, name: str) -> float:
        return float(mean(row[name] for row in self.rows))

    def half_width(self, name: str) -> float:
        """Of the 95 % interval of the mean; 0 for a single run, which says nothing."""
        n = len(self.rows)
        if n < 2:
            return 0.0
        t = _T_95[n - 2] if n - 2 < len(_T_95) else 2.0
        return float(t * stdev(row[name] for row in self.rows) / sqrt(n))


def grid(base: Plan, designs: Sequence[str], cpus: Sequence[int], seeds: int) -> list[Plan]:
    """Every design on every number of CPUs, with every seed; as many threads as CPUs unless the base says."""
    return [
        replace(base, design=design, cpus=count, seed=seed)
        for design in designs
        for count in cpus
        for seed in range(seeds)
    ]


def group(
    plans: Sequence[Plan], rows: Sequence[dict[str, Any]], labels: dict[Plan, str] | None = None
) -> list[Group]:
    """Rows of the same plan but for the seed, together, in order."""
    found: dict[str, tuple[Plan, list[dict[str, Any]]]] = {}
    for plan, row in zip(plans, rows, strict=True):
        without = replace(plan, seed=0)
        found.setdefault(repr(without), (without, []))[1].append(row)
    names = {repr(plan): label for plan, label in (labels or {}).items()}
    return [
        Group(plan, names.get(repr(plan), plan.design), kept[0]["cpus"], tuple(kept))
        for plan, kept in found.values()
    ]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(one: Group, name: str) -> str:
    """A mean with its half width."""
    scale = COLUMNS[name][1]
    value, width = one.mean(name) * scale, one.half_width(name) * scale
    return _number(value) if not width else f"{_number(value)} ± {_number(width)}"


def markdown(groups: Iterable[Group], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """The table."""
    heads = [COLUMNS[name][0] for name in columns]
    lines = ["| design | CPUs | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for one in groups:
        cells = " | ".join(cell(one, name) for name in columns)
        lines.append(f"| {one.label} | {one.cpus} | {cells} |")
    return "\n".join(lines)


def draw(
    groups: Sequence[Group],
    path: Path,
    columns: Sequence[str] = ("pairs_per_s", "lock_wait_share", "alloc_p99_us"),
) -> None:
    """A picture: one panel for each column, over the CPUs; bars if there is one number of CPUs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(columns), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(columns), squeeze=False)[0]
    labels = list(dict.fromkeys(one.label for one in groups))
    is_line = len({one.cpus for one in groups}) > 1
    for panel, name in zip(panels, columns, strict=True):
        title, scale = COLUMNS[name]
        for at, label in enumerate(labels):
            mine = sorted((one for one in groups if one.label == label), key=lambda one: one.cpus)
            means = [one.mean(name) * scale for one in mine]
            widths = [one.half_width(name) * scale for one in mine]
            if is_line:
                panel.errorbar(
                    [one.cpus for one in mine], means, yerr=widths, label=label, marker=".", capsize=3
                )
            else:
                panel.bar([at], means[:1], yerr=widths[:1], capsize=3)
        if is_line:
            panel.set_xscale("log", base=2)
            panel.set_xlabel("CPUs")
            if name != "lock_wait_share":
                panel.set_yscale("log")
        else:
            panel.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    if is_line:
        panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
