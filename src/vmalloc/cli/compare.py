# SPDX-License-Identifier: MIT
"""vmalloc compare: designs x CPUs, simulated with several seeds, as a table and a figure; questions as
pages."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import INTERRUPTED, Command, json_option, told
from vmalloc.cli.simulate import BadPlan, costs_of, or_default, progress_bar, suite_words

if TYPE_CHECKING:
    from vmalloc.simulate.plan import Plan


@click.command(cls=Command)
@click.option("--designs", default="linux-6.8,linux-6.9,linux-6.16,llist", show_default=True,
              help="By commas; a design with changed choices is written NAME:choice=N.")  # fmt: skip
@click.option(
    "--cpus", default="", help="By commas, as 64,448,1024. Default: the machine's, or the question's."
)
@click.option("--machine", default="", help="Costs: a name or a file, as for vmalloc simulate.")
@click.option(
    "--seeds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs of each cell."
)
@click.option("--shrunk", type=int, help="Make the workload so many times smaller. Default: by its size.")
@click.option("--cost", "costs", multiple=True, metavar="NAME=N", help="Change a cost, in ns or as a number.")
@click.option(
    "--question",
    help="Answer one: llist, percpu, shrinker-fairness, nodes, decay, pool-size, purge-vs-shrink.",
)
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True,
              help="Processes that run cells.")  # fmt: skip
@click.option(
    "--scheduler", help="Run the cells on this Dask cluster, as tcp://host:8786, not on processes here."
)
@click.option(
    "--store",
    type=click.Path(dir_okay=False),
    help="Keep finished cells in this Parquet file; go on from it.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(),
              help="Folder of a question's page.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the table.")
@json_option
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    designs: str,
    cpus: str,
    machine: str,
    seeds: int,
    shrunk: int | None,
    costs: tuple[str, ...],
    question: str | None,
    jobs: int,
    scheduler: str | None,
    store: str | None,
    out: Path,
    plot: Path | None,
    json_path: str | None,
    words: tuple[str, ...],
) -> None:
    """Compare designs in simulation, with the uncertainty over seeds.

    \b
    vmalloc compare --cpus 64,448 test_loop_count=2000 --store cells.parquet
    vmalloc compare --designs linux-6.16,linux-6.16:decay_shift=1 --plot d.png
    vmalloc compare --question llist --out pages

    Prints a Markdown table. With --store a sweep that was interrupted goes on where it was; a process that
    dies costs its cell a second try. A cluster's workers need this version of vmalloc, and the file of a
    machine that is not one of ours.
    """
    from vmalloc.simulate.plan import Plan
    from vmalloc.simulate.questions import QUESTIONS, base_plan, plans_of

    if question is not None and question not in QUESTIONS:
        raise BadPlan(f"--question {question}: there are {', '.join(QUESTIONS)}")
    _check_outputs(out, plot, store, draws=plot is not None or question is not None)
    labels: dict[Plan, str] = {}
    try:
        changes: dict[str, Any] = {"costs": costs_of(costs), **suite_words(words)}
        smaller = or_default("--shrunk", shrunk)
        changes |= ({"machine": machine} if machine else {}) | ({"shrunk": smaller} if smaller else {})
        counts = _counts(cpus)
        if question is not None:
            plans: list[Plan] = []
            for count in counts or (0,):
                some, names = plans_of(QUESTIONS[question], base_plan(**changes, cpus=count), seeds)
                plans, labels = plans + some, labels | names
            plans.sort(
                key=lambda plan: list(QUESTIONS[question].variants).index(labels[replace(plan, seed=0)])
            )
        else:
            plans = _grid(Plan(**changes), designs, counts, seeds)
        for plan in plans:
            plan.on()
    except ValueError as error:
        raise BadPlan(told(error)) from None
    finished, rows = _run(plans, jobs, store, scheduler)
    is_interrupted = len(finished) < len(plans)
    if json_path is not None:
        _write_json(json_path, rows)
    if json_path != "-" and (question is None or not is_interrupted):
        _tell(question, finished, rows, labels, out, plot)
    if is_interrupted:
        more = "" if store else "; with --store FILE the same command goes on from there"
        click.echo(f"interrupted after {len(finished)} of {len(plans)} cells{more}", err=True)
        raise SystemExit(INTERRUPTED)


def _write_json(path: str, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, indent=1)
    if path == "-":
        click.echo(text)
    else:
        Path(path).write_text(text + "\n")


def _check_outputs(out: Path, plot: Path | None, store: str | None, *, draws: bool) -> None:
    """What cannot be written, or not without an extra, is said now rather than after minutes of work."""
    folders = {"--out": out}
    if plot is not None:
        folders["--plot"] = plot.absolute().parent
    if store is not None:
        folders["--store"] = Path(store).absolute().parent
    for option, folder in folders.items():
        if not folder.is_dir():
            raise BadPlan(f"{option}: there is no directory {folder}")
    needed = {"matplotlib": draws, "pyarrow": store is not None}
    for module, is_needed in needed.items():
        if is_needed and importlib.util.find_spec(module) is None:
            raise BadPlan(f"this needs {module}: pip install 'vmalloc[lab]'")


def _counts(cpus: str) -> list[int]:
    words = [word.strip() for word in cpus.split(",") if word.strip()]
    if wrong := [word for word in words if not word.isdigit() or int(word) < 1]:
        raise ValueError(f"--cpus {wrong[0]}: wanted numbers by commas")
    return [int(word) for word in words]


def _grid(base: Plan, designs: str, counts: list[int], seeds: int) -> list[Plan]:
    from vmalloc.simulate.compare import grid

    names = [word.strip().replace(":", ",") for word in designs.split(",") if word.strip()]
    if not names:
        raise ValueError("--designs names none")
    for name in names:
        replace(base, design=name)
    return grid(base, names, counts or [0], seeds)


def _run(
    plans: list[Plan], jobs: int, store: str | None, scheduler: str | None
) -> tuple[list[Plan], list[dict[str, Any]]]:
    """The plans that were run, all but for Ctrl-C, and their rows."""
    from vmalloc.simulate.sweep import SweepError, SweepInterrupted, run_on_cluster, run_on_processes

    try:
        with progress_bar("cells") as bar:
            if scheduler is not None:
                return plans, run_on_cluster(plans, scheduler, store, bar)
            return plans, run_on_processes(plans, min(jobs, len(plans)), store, bar)
    except SweepInterrupted as ended:
        return ended.finished, ended.rows
    except (SweepError, RuntimeError, MemoryError) as error:
        raise click.ClickException(told(error) or "not enough memory") from None


def _tell(
    question: str | None,
    plans: list[Plan],
    rows: list[dict[str, Any]],
    labels: dict[Plan, str],
    out: Path,
    plot: Path | None,
) -> None:
    from vmalloc.simulate.compare import draw, group, markdown
    from vmalloc.simulate.questions import page

    try:
        if question is not None:
            click.echo(page(question, plans, rows, labels, out).read_text())
            return
        groups = group(plans, rows, labels)
        click.echo(markdown(groups))
        if plot is not None:
            draw(groups, plot)
    except OSError as error:
        where = error.filename or (out if question is not None else plot)
        raise click.ClickException(f"{where}: {error.strerror or error}") from None
    except ValueError as error:
        raise click.ClickException(told(error)) from None
