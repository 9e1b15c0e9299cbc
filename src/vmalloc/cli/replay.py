# SPDX-License-Identifier: MIT
"""vmalloc replay: predict where a recorded kernel put each area, or serve its requests with the model."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import Command, Output, ParamType, Refusal, json_option, told
from vmalloc.facts import LEVELS, POOLS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from vmalloc.lab import replay as lab
    from vmalloc.model import CachingDesign
    from vmalloc.model import Design as KernelDesign

OF_A_SHORT_ONE = 2
"""Figures of a recording that is too short: why there are no others, and how many allocations it has."""
PATH = click.Path(exists=True, dir_okay=False, path_type=Path)


class Design(ParamType):
    """A name of the model's designs, which are imported when one is given."""

    name = "design"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "NAME|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from vmalloc.model import PRESETS

        if value not in (*PRESETS, "all"):
            self.fail(f"{value!r} is not one of {', '.join(map(repr, (*PRESETS, 'all')))}.", param, ctx)
        return str(value)


@click.command(name="replay", cls=Command)
@click.argument("trace", type=PATH)
@click.option(
    "--predict", "predicting", is_flag=True, help="Forecast every address and compare it with the kernel's."
)
@click.option("--on", "target", type=click.Choice(["model", "core"]), help="Serve the requests instead.")
@click.option(
    "--pools",
    multiple=True,
    help=f"The pool designs, by commas: --on core, by default {','.join(POOLS)}; or --on model.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="With --on core: runs of each design, in turn.",
)
@click.option(
    "--design",
    type=Design(),
    help="The model's design; `all` ranks the kernel versions. "
    "Default: linux-6.16, or vmalloc for a recording of our own allocator.",
)
@click.option("--state", type=PATH, help="Complete start state (a guest's NAME.state0).")
@click.option("--vmallocinfo", type=PATH, help="/proc/vmallocinfo at the start, with real addresses.")
@click.option("--end-state", type=PATH, help="Complete end state to compare with (NAME.state1).")
@click.option("--cpus", type=click.IntRange(1, 4096), help="Possible CPUs of the recorded machine.")
@json_option
def command(
    trace: Path,
    predicting: bool,
    target: str | None,
    pools: tuple[str, ...],
    repeat: int,
    design: str | None,
    state: Path | None,
    vmallocinfo: Path | None,
    end_state: Path | None,
    cpus: int | None,
    json_path: str | None,
) -> None:
    """Replay a recording: predict its addresses, or serve its requests.

    With --predict each request goes to the model and each address is compared with the kernel's. Without a
    start state the model learns it from the events and says how much it assumed.

    \b
    Examples:
      vmalloc replay kernel.trace.gz --predict
      vmalloc replay kernel.trace.gz --on core --pools off,magazine
      vmalloc replay kernel.trace.gz --on model --pools off,magazine
      vmalloc replay run.parquet --on model          of `vmalloc record NAME`

    With --on model the requests for the vmalloc window are served by a design's model from an empty window.
    With --on core they are served by the real allocator, as fast as it can: one thread for each recorded
    CPU, a free of another CPU's range waiting for its allocation. Requests for other windows are left out.
    """
    from vmalloc.lab import replay
    from vmalloc.lab.events import TraceError
    from vmalloc.lab.state import StateError
    from vmalloc.model import KERNEL_PRESETS

    if predicting == (target is not None):
        raise click.UsageError(
            "say one of these: --predict (a kernel's addresses), --on model (its requests, or a region's, "
            "served by a model), --on core (by the real allocator)"
        )
    if predicting and design not in (*KERNEL_PRESETS, "all", None):
        names = ", ".join((*KERNEL_PRESETS, "all"))
        raise Refusal(
            f"--predict compares with a kernel; {design} is none of its designs: take {names}, or --on model"
        )
    if pools and target != "core" and (target is None or design not in ("vmalloc", None)):
        raise click.UsageError("--pools goes with --on core, or with --on model of ours (--design vmalloc)")
    output = Output(json_path)
    console = output.console
    try:
        recording = replay.load(trace, state, vmallocinfo, cpus)
        if predicting and recording.own is not None:
            raise Refusal(
                "--predict compares with a kernel; this recording is of our own allocator: take --on model"
            )
        if pools and target == "model" and recording.own is not None:
            raise Refusal("--pools: the model serves a region's recording by the design that the region has")
        design = design or ("linux-6.16" if recording.own is None and not pools else "vmalloc")
        if target == "core":
            result = _on_core(console, recording, pools, repeat)
        elif target == "model":
            result = _on_model(console, recording, design, pools)
        elif design == "all":
            result = _rank(console, recording)
        else:
            result = _predict(console, recording, design, end_state)
    except (TraceError, StateError, ValueError) as error:
        raise click.ClickException(told(error)) from error
    output.json(result)


def _on_core(
    console: Console, recording: lab.Recording, pools: tuple[str, ...], repeats: int
) -> dict[str, Any]:
    """Serve the requests with the real allocator."""
    from rich.table import Table

    from vmalloc.lab import replay_on_core as on_core  # it needs the compiled core, the rest does not

    designs = [name for text in pools for name in text.split(",")] or list(POOLS)
    load = on_core.load_of(recording)
    with _progress(console) as bar:
        task = bar.add_task("runs", total=len(set(designs)) * repeats)
        results = on_core.run_on_core(load, designs, repeats, lambda done: bar.update(task, completed=done))
    report = on_core.summary(load, results)
    table = Table(
        "pools", "wall, ms", "ns/request", "CPU ns/request", *LEVELS, "failed", "waits", "lock wait, ms",
        "purges",
        title=f"{load.allocations:,} allocations, {load.frees:,} frees by {report['threads']} threads "
        f"on {report['machine_cpus']} CPUs; medians of {repeats}",
    )  # fmt: skip
    for row in report["designs"]:
        table.add_row(
            row["pools"],
            f"{row['wall_s'] * 1e3:,.1f}",
            f"{row['ns_per_request']:,.0f}",
            f"{row['cpu_ns_per_request']:,.0f}",
            *(f"{row['hit_share'][level]:.1%}" for level in LEVELS),
            f"{row['failed']:,}",
            f"{row['waits']:,.0f}",
            f"{row['lock_wait_s'] * 1e3:,.1f}",
            f"{row['purges']:,.0f}",
        )
    console.print(table)
    console.print(
        "ns/request is wall time over requests. CPU time leaves out waiting for other threads' allocations."
    )
    for what, count in report["left_out"].items():
        if count:
            console.print(f"left out: {count:,} {what}")
    return report


def _predict(
    console: Console, recording: lab.Recording, design: str, end_state: Path | None
) -> dict[str, Any]:
    from vmalloc.lab import replay
    from vmalloc.lab.null import predict_null
    from vmalloc.model import KERNEL_PRESETS

    with _progress(console) as bar:
        task = bar.add_task(design, total=len(recording.events))
        outcome = replay.predict(
            recording, KERNEL_PRESETS[design], end_state, lambda at: bar.update(task, completed=at)
        )
        null = None if recording.complete else predict_null(recording, KERNEL_PRESETS[design])
    result = outcome.as_dict()
    result["restored"] = dict(recording.restored)
    result["too_short"] = replay.too_short(recording, KERNEL_PRESETS[design], outcome.prediction)
    result["null"] = None if null is None else replay.Outcome(null, outcome.kernel, 0.0).as_dict()
    _print_prediction(console, recording, result)
    return result


def _rank(console: Console, recording: lab.Recording) -> dict[str, Any]:
    from rich.table import Table

    from vmalloc.lab import replay

    with _progress(console) as bar:
        task = bar.add_task("all designs", total=None)
        ranking = replay.rank(recording, lambda at: bar.update(task, completed=at))
    result = ranking.as_dict()
    table = Table(
        "design", "generation", "won : lost", "chance", "replayed", "exact", "level right", "purges as told",
        title="events on which a design and the best one disagree",
    )  # fmt: skip
    for row in result["designs"]:
        is_best = row is result["designs"][0]
        stopped = row["stopped_after"]
        table.add_row(
            row["design"],
            row["generation"],
            "best" if is_best else f"{row['won']:,} : {row['lost']:,}",
            "" if is_best else f"{row['chance']:.2g}",
            "all" if stopped is None else f"{stopped:,}, then stopped",
            f"{row['exact']:.2%}",
            f"{row['level_right']:.2%}",
            f"{row['purges_as_told']}/{row['purges']}",
        )
    console.print(table)
    generation = (
        ranking.best if ranking.best != "cannot tell" else f"cannot tell ({'; '.join(ranking.candidates)})"
    )
    console.print(f"kernel generation: {generation}")
    for witness in ranking.witnesses:
        console.print(f"the recording itself: {witness}", markup=False, highlight=False)
    return result


def _ours(pools: tuple[str, ...]) -> list[KernelDesign | CachingDesign]:
    """Our own allocator with each of these pool designs."""
    from vmalloc.model import CachingDesign

    names = [name for text in pools for name in text.split(",")]
    if unknown := [name for name in names if name not in POOLS]:
        raise ValueError(f"{', '.join(unknown) or 'nothing'}: the pool designs are {', '.join(POOLS)}")
    return [CachingDesign(name, name) for name in names]


def _on_model(
    console: Console, recording: lab.Recording, design: str, pools: tuple[str, ...]
) -> dict[str, Any]:
    from rich.table import Table

    from vmalloc.lab import replay
    from vmalloc.model import PRESETS

    designs = _ours(pools) if pools else list(PRESETS.values()) if design == "all" else [PRESETS[design]]
    results = []
    table = Table("design", *LEVELS, "purges", "footprint, pages", "events/s", "bare loop/s")
    searches = Table(
        "design", "overall", "1st", "2nd", "3rd", "4th",
        title="steps of a search of the space, mean/max, by quarter",
    )  # fmt: skip
    for one in designs:
        course = replay.run_on_model(recording, one)
        result = course.as_dict()
        results.append(result)
        hits = result["hit_share"]
        table.add_row(
            one.name,
            *(f"{hits.get(level, 0.0):.1%}" for level in LEVELS),
            str(result["purges"]),
            f"{result['footprint_pages_max']:,}",
            f"{result['events_per_s']:,.0f}",
            f"{result['bare_loop_events_per_s']:,.0f}",
        )
        ends = [len(course.samples) * quarter // 4 for quarter in range(5)]
        parts = [course.samples, *(course.samples[a:b] for a, b in pairwise(ends))]
        searches.add_row(
            one.name,
            *(f"{replay.search_length_mean(p):.1f}/{replay.search_length_max(p)}" for p in parts),
        )
    console.print(table)
    for result in results:
        if "compared" in result:
            console.print(f"addresses exact: {result['exact']:.3%} of {result['compared']:,} allocations")
    console.print(searches)
    return results[0] if len(designs) == 1 else {"designs": results}


def _warm_figure(result: dict[str, Any]) -> tuple[str, str]:
    """What tells of the design: where all that a forecast rests on was seen. Before that it is guessed."""
    if not result["after_warm_up"]:
        return "exact after warm-up", result.get("too_short") or "never warm"
    return (
        "exact after warm-up",
        f"{result['exact_after_warm_up']:.3%} of {result['after_warm_up']:.1%} of the allocations",
    )


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.3%}"


def _figures(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures that a null allocator has as well."""
    return [
        _warm_figure(result),
        ("allocations", f"{result['allocations']:,}"),
        ("addresses exact", f"{result['exact']:.3%}"),
        ("  alignment up to a page", f"{result['exact_page_aligned']:.3%}"),
        (
            "  larger alignment",
            f"{_share(result['exact_larger_alignment'])} of {result['larger_alignment']:,}",
        ),
        ("  larger alignment, within the search's bounds", _share(result["within_bounds"])),
        (
            "pool or global told right",
            f"{result['level_right']:.3%}"
            + (
                f", after warm-up {_share(result['level_right_after_warm_up'])}"
                if result["after_warm_up"]
                else ""
            ),
        ),
        ("orders inferred", f"{result['orders_inferred']} ({result['orders_inferred_share']:.2%})"),
        ("purges as told", f"{result['purges_as_told']} of {result['purges']}"),
    ]


def _print_prediction(console: Console, recording: lab.Recording, result: dict[str, Any]) -> None:
    from rich.table import Table

    from vmalloc.lab.null import EVENTS_MAX

    null = result["null"]
    columns = ["what", "value", *(["null allocator"] if null else [])]
    table = Table(*columns, title=f"{result['design']}: {result['events']:,} events")
    too_short = result.get("too_short")
    rows = zip(*(_figures(figures) for figures in (result, null) if figures), strict=True)
    for row in islice(rows, OF_A_SHORT_ONE) if too_short else rows:
        table.add_row(row[0][0], *(value for _, value in row))
    for kind, count in result["restored"].items():
        others = {
            "swapped": "lines moved back",
            "wrong time": "lines with a wrong time, used where they stand",
            "doubled": "lines that came twice, used once",
            "damaged": "damaged lines left out",
            "cut count": "purges whose count was cut, by what was settled",
        }
        what = others.get(kind, f"lost events restored: {kind}")
        table.add_row(what, f"{count:,}")
    for kind in () if too_short else ("by_cpu", "by_window"):
        shares = ", ".join(f"{key}: {share:.2%}" for key, share in result[kind].items())
        table.add_row(kind.replace("_", " "), shares)
    for category, count in {
        **result["misses"],
        **{f"assumed: {k}": n for k, n in result["assumed"].items()},
    }.items():
        table.add_row(category, f"{count:,}")
    if result["shrinks_inferred"]:
        table.add_row("shrinks inferred", str(result["shrinks_inferred"]))
    if result["end_state"] is not None:
        table.add_row("end state", "equal" if result["end_state_equal"] else str(result["end_state"]))
    if recording.lost:
        table.add_row("events lost by the recorder", f"{recording.lost:,}")
    console.print(table)
    if too_short:
        console.print(
            "Until a purge or two were seen, where the kernel looks next is not known: what was forecast "
            "before that says nothing about the design, and is in --json alone."
        )
        return
    if null:
        console.print(
            f"null allocator: the same requests, at most {EVENTS_MAX:,} events, by one that never uses "
            "an address twice; what it reaches too says nothing about the kernel."
        )
    if result["first_miss"] is not None:
        console.print(f"first miss: {result['first_miss']}")


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )
