# SPDX-License-Identifier: MIT
"""Make the tables and pictures of docs/kernel-model.md.

    python -m vmalloc.lab.kernel_model_report tests/data [docs/kernel-model.md]

The text between `<!-- generated: NAME -->` and `<!-- end -->` is replaced by the table NAME; the
rest is kept. Pictures go into the folder of the same name beside the file and need matplotlib.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vmalloc.facts import LEVELS
from vmalloc.lab.events import ALLOC
from vmalloc.lab.null import predict_null
from vmalloc.lab.predict import Prediction
from vmalloc.lab.replay import Outcome, Recording, load, predict, rank, run_on_model
from vmalloc.model import KERNEL_PRESETS, PRESETS, differences

GUESTS = (
    "random_size_1t", "vm_map_ram_1t", "pcpu_1t", "fix_align_1t", "align_shift_1t", "long_busy", "mix_smp1",
    "mix_smp8", "fix_size", "random_size", "kvfree_rcu_1",
)  # fmt: skip
LIVE = ("l1_admin", "l2_proc", "l8_consist")
PICTURED = "random_size_1t"
BLOCK = "<!-- generated: {} -->\n"
END = "<!-- end -->"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def differences_table() -> str:
    return table(("choice", *KERNEL_PRESETS), [(f"`{name}`", *values) for name, values in differences()])


def guest_table(data: Path) -> str:
    rows = []
    for name in GUESTS:
        folder = data / "guest"
        recording = load(folder / f"{name}.trace.xz", folder / f"{name}.state0.xz")
        outcome = predict(recording, KERNEL_PRESETS["linux-6.9"], folder / f"{name}.state1.xz")
        p, end = outcome.prediction, outcome.end
        assert end is not None
        rows.append((
            name, f"{p.page.exact:,} of {p.page.allocs:,}", f"{p.above.exact:,} of {p.above.allocs:,}",
            p.within_bounds, f"{p.orders_inferred} ({p.orders_inferred / p.all.allocs:.2%})",
            _misses(outcome), f"{p.purges_as_told} of {p.purges}",
            ("equal" if end.equal else "differs") + (f", {end.untraced} untraced" if end.untraced else ""),
        ))  # fmt: skip
    head = ("recording", "exact, alignment up to a page", "exact, larger", "larger, within bounds only",
            "orders inferred", "misses", "purges as told", "end state")  # fmt: skip
    return table(head, rows)


def live_table(data: Path) -> str:
    rows = []
    for name in LIVE:
        rows.append(_live_row(name, load(data / "live" / f"{name}.trace.xz")))
    snapshot = data / "live" / "l8_snap_before.real.xz"
    rows.append(_null_row(load(data / "live" / "l8_consist.trace.xz")))
    known = load(data / "live" / "l8_consist.trace.xz", vmallocinfo=snapshot)
    rows.append(_live_row("l8_consist, vmallocinfo given", known))
    head = ("recording", "allocations", "exact over all", "exact, last quarter", "warm", "exact when warm",
            "pool or global right", "right when warm", "assumptions")  # fmt: skip
    return table(head, rows)


def _live_row(name: str, recording: Recording) -> tuple[object, ...]:
    return _live_figures(name, predict(recording, KERNEL_PRESETS["linux-6.16"]).prediction)


def _null_row(recording: Recording) -> tuple[object, ...]:
    return _live_figures("l8_consist, null allocator", predict_null(recording, KERNEL_PRESETS["linux-6.16"]))


def _live_figures(name: str, p: Prediction) -> tuple[object, ...]:
    return (
        name, f"{p.all.allocs:,}", f"{p.all.share:.1%}", f"{p.last_quarter.share:.1%}",
        f"{p.warm.allocs / p.all.allocs:.1%}", f"{p.warm.share:.2%}", f"{p.level.share:.2%}",
        f"{p.level_warm.share:.2%}", f"{sum(p.assumed.values()):,}",
    )  # fmt: skip


def _misses(outcome: Outcome) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcome.prediction.misses.items()) or "none"


def generations_table(data: Path) -> str:
    rows = []
    names = [("guest", name) for name in GUESTS] + [("live", "l1_admin"), ("live", "l8_consist")]
    for folder, name in names:
        ranking = rank(load(data / folder / f"{name}.trace.xz"))
        counts = {
            design.name: f"{runner.against[0]} : {runner.against[1]}"
            for runner in ranking.runners
            for design in runner.designs
        }
        generation = ranking.best
        if generation == "cannot tell":
            generation += ": " + "; ".join(ranking.candidates)
        rows.append(
            (name, generation, *(counts[d] for d in ("linux-6.8", "linux-6.9", "linux-6.16", "llist")))
        )
    return table(("recording", "told", "linux-6.8", "linux-6.9", "linux-6.16", "llist"), rows)


def model_table(data: Path) -> str:
    recording = load(data / "guest" / f"{PICTURED}.trace.xz")
    rows = []
    for name, design in PRESETS.items():
        report = run_on_model(recording, design).as_dict()
        shares = [f"{report['hit_share'].get(level, 0.0):.1%}" for level in LEVELS]
        rows.append((
            name, *shares, report["purges"], f"{report['footprint_pages_max']:,}",
            f"{report['events_per_s']:,.0f}", f"{report['bare_loop_events_per_s']:,.0f}",
        ))  # fmt: skip
    head = ("design", *LEVELS, "purges", "footprint, pages", "events/s", "bare loop/s")
    return table(head, rows)


def core_table(data: Path) -> str:
    from vmalloc.lab.replay_on_core import load_of, run_on_core, summary

    rows = []
    for name in LIVE[1:]:
        asked = load_of(load(data / "live" / f"{name}.trace.xz"))
        report = summary(asked, run_on_core(asked, repeats=9))
        for row in report["designs"]:
            shares = [f"{row['hit_share'][level]:.1%}" for level in LEVELS]
            rows.append((
                name, row["pools"], f"{row['wall_s'] * 1e3:.1f}", f"{row['ns_per_request']:.0f}",
                f"{row['cpu_ns_per_request']:.0f}", *shares, row["failed"], f"{row['purges']:.0f}",
            ))  # fmt: skip
    head = ("recording", "pools", "wall, ms", "ns/request", "CPU ns/request", *LEVELS, "failed", "purges")
    return table(head, rows)


def draw(data: Path, folder: Path) -> None:
    """The three pictures of one recording."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    recording = load(data / "guest" / f"{PICTURED}.trace.xz")
    allocs = [e for e in recording.events if e.kind == ALLOC and (e.vstart, e.vend) == recording.window]

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    offsets = [(event.addr - recording.window[0]) / 2**20 for event in allocs]
    axes.scatter(range(len(allocs)), offsets, s=1)
    axes.set(xlabel="allocation", ylabel="MiB above the window's start", title=PICTURED)
    _save(figure, folder / "address.png")

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    axes.hist(_reuse_distances([event.addr for event in allocs]), bins=80)
    axes.set(xlabel="allocations between two uses of a start", ylabel="times", title=PICTURED)
    _save(figure, folder / "reuse.png")

    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    for name in ("linux-6.9", "linux-6.16"):
        samples = run_on_model(recording, PRESETS[name]).samples
        axes.plot([s.event for s in samples], [s.pooled for s in samples], label=name)
    axes.set(xlabel="event", ylabel="pages in pools", title=PICTURED)
    axes.legend()
    _save(figure, folder / "pools.png")


def _reuse_distances(starts: Sequence[int]) -> list[int]:
    last: dict[int, int] = {}
    distances = []
    for at, start in enumerate(starts):
        if start in last:
            distances.append(at - last[start])
        last[start] = at
    return distances


def _save(figure: object, path: Path) -> None:
    figure.tight_layout()  # type: ignore[attr-defined]
    figure.savefig(path, dpi=80)  # type: ignore[attr-defined]


def fill_in(text: str, name: str, content: str) -> str:
    """Replace one generated block. Raises ValueError if the document has no such block."""
    pattern = re.compile(re.escape(BLOCK.format(name)) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no block {name!r} in the document")
    return pattern.sub(lambda _: BLOCK.format(name) + content + END, text)


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        raise SystemExit(__doc__)
    data = Path(arguments[0])
    document = Path(arguments[1] if len(arguments) > 1 else "docs/kernel-model.md")
    makers: dict[str, Callable[[], str]] = {
        "differences": differences_table,
        "guests": lambda: guest_table(data),
        "live": lambda: live_table(data),
        "generations": lambda: generations_table(data),
        "model": lambda: model_table(data),
        "core": lambda: core_table(data),
    }
    for name, make in makers.items():
        print(name, file=sys.stderr)
        document.write_text(fill_in(document.read_text(), name, make()))
    draw(data, document.with_suffix(""))


if __name__ == "__main__":
    main(sys.argv[1:])
