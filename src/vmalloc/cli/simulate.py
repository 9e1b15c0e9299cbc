# SPDX-License-Identifier: MIT
"""vmalloc simulate: the kernel's test suite on virtual CPUs, for any design."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vmalloc.cli.manners import Command, json_option, told

SHOWN = {
    "wall_s": "wall time of the whole workload, s",
    "pairs": "pairs simulated",
    "shrunk": "the workload is so many times smaller than meant",
    "pairs_per_s": "pairs a second, warm",
    "us_per_pair": "us a pair and thread, warm",
    "lock_wait_share": "waiting for locks",
    "space_wait_share": "  for the space",
    "busy_wait_share": "  for busy",
    "lazy_wait_share": "  for lazy",
    "pool_wait_share": "  for pools",
    "zone_wait_share": "  for the page allocator's zone",
    "counter_wait_share": "waiting for the lazy counter's line",
    "alloc_p50_us": "allocation, median, us",
    "alloc_p99_us": "allocation, 99th percentile, us",
    "alloc_max_us": "allocation, longest, us",
    "free_p99_us": "free, 99th percentile, us",
    "pool_hit_share": "served by pools and magazines",
    "purges": "purges",
    "node_purge_us": "time to fill one node's pools, us",
    "pooled_mean_mib": "in pools, mean, MiB",
    "lazy_mean_mib": "lazy, mean, MiB",
    "lazy_max_mib": "lazy, most, MiB",
    "footprint_ratio": "footprint / most in use",
}


class BadPlan(click.ClickException):
    exit_code = 2


def costs_of(words: tuple[str, ...]) -> dict[str, float]:
    """`name=value` options as numbers."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise BadPlan(f"--cost {word}: wanted NAME=NUMBER") from None
    return found


def or_default(option: str, value: int | None) -> int:
    """What a plan takes: its 0 is the default, which on a command line is said by leaving the option out."""
    if value == 0:
        raise BadPlan(f"{option} 0: wanted a number from 1 on; leave it out for the default")
    return value or 0


def suite_words(words: tuple[str, ...]) -> dict[str, Any]:
    """The suite's parameters that a simulation knows."""
    from vmalloc.suite.parameters import parse

    if not words:
        return {}
    known = ("nr_threads", "run_test_mask", "test_loop_count", "nr_pages", "sequential_test_order")
    parsed = parse(words)
    given = {word.partition("=")[0] for word in words if "=" in word}
    if unknown := sorted(given - set(known)):
        raise ValueError(f"{unknown[0]} is not simulated; there are {', '.join(known)}")
    modes = {word for word in words if "=" not in word}
    return {key: getattr(parsed, key) for key in known if key in given or (modes and key in known[2:])}


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float, float], None] | None]:
    """What is called with how many of how many are done; None if no terminal watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command(cls=Command)
@click.option("--design", default="linux-6.9", show_default=True,
              help="A preset, or vmalloc/POOLS; NAME,choice=N changes a choice of it.")  # fmt: skip
@click.option("--machine", default="threadripper-3970x", show_default=True,
              help="Costs: a name, or the path of such a file (vmalloc calibrate writes one).")  # fmt: skip
@click.option("--cpus", type=int, help="So many CPUs of that kind. Default: the machine's.")
@click.option(
    "--topology", default="", help="SOCKETSxCLUSTERSxCORESxSMT, as 1x8x4x2; a cluster shares a cache."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of test orders, sizes and starts.")
@click.option("--shrunk", type=int, help="Make the workload so many times smaller. Default: by its size.")
@click.option(
    "--atomic-per-area", is_flag=True, help="A purge settles the lazy counter for each area, as to 6.10."
)
@click.option("--shrink-every-us", type=int, help="Memory pressure: all pools are emptied so often.")
@click.option("--cost", "costs", multiple=True, metavar="NAME=N", help="Change a cost, in ns or as a number.")
@click.option(
    "--list", "list_all", is_flag=True, help="Print the designs, the machines and the costs, and stop."
)
@json_option
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
def command(
    design: str,
    machine: str,
    cpus: int | None,
    topology: str,
    seed: int,
    shrunk: int | None,
    atomic_per_area: bool,
    shrink_every_us: int | None,
    costs: tuple[str, ...],
    list_all: bool,
    json_path: str | None,
    words: tuple[str, ...],
) -> None:
    """Simulate the kernel's test suite on virtual CPUs.

    \b
    vmalloc simulate nr_threads=64 run_test_mask=7
    vmalloc simulate --design linux-6.8 --cpus 1024 test_loop_count=5000
    vmalloc simulate --design vmalloc/llist --machine ./here.toml nr_threads=8

    Decisions are the model's, times come from the costs of a machine, each of which has its source in
    its file. Statistics are of the warm part: after a tenth of the pairs and three purges, or after half
    of the pairs. The same seed gives the same result, to the last digit.
    """
    from vmalloc.simulate.plan import Plan, run_plan

    if list_all:
        click.echo(_listing(machine))
        return
    try:
        plan = Plan(
            design=design, machine=machine, cpus=or_default("--cpus", cpus), topology=topology, seed=seed,
            shrunk=or_default("--shrunk", shrunk), atomic_per_area=int(atomic_per_area),
            shrink_every_us=or_default("--shrink-every-us", shrink_every_us), costs=costs_of(costs),
            **suite_words(words),
        )  # fmt: skip
        plan.on()
    except ValueError as error:
        raise BadPlan(told(error)) from None
    if json_path not in (None, "-") and not Path(str(json_path)).absolute().parent.is_dir():
        raise BadPlan(f"--json {json_path}: there is no directory {Path(str(json_path)).parent}")
    try:
        with progress_bar("simulating") as bar:
            row = run_plan(plan, None if bar is None else lambda share: bar(round(share * 100), 100))
    except (RuntimeError, MemoryError) as error:
        raise click.ClickException(told(error) or "not enough memory") from None
    if json_path == "-":
        click.echo(json.dumps(row, indent=1))
        return
    if json_path is not None:
        try:
            Path(json_path).write_text(json.dumps(row, indent=1) + "\n")
        except OSError as error:
            raise click.ClickException(f"--json {json_path}: {error.strerror}") from None
    _show(row)


def _listing(machine: str) -> str:
    from vmalloc.simulate.costs import load_machine, machines
    from vmalloc.simulate.design import DESIGNS

    try:
        chosen = load_machine(machine)
    except ValueError as error:
        raise BadPlan(told(error)) from None
    lines = ["designs:", *(f"  {name}" for name in DESIGNS), "machines:"]
    lines += [f"  {name:22} {load_machine(name).meaning}" for name in machines()]
    lines.append(f"costs of {chosen.name} (ns, or plain numbers):")
    for name, cost in chosen.costs.items():
        fitted = " (fitted)" if cost.calibrated else ""
        lines.append(f"  {name:20} {cost.value:>10g}  {cost.source}{fitted}")
    return "\n".join(lines)


def _show(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{row['design']}, {row['nr_threads']} threads on {row['cpus']} CPUs of {row['machine']}"
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, meaning in SHOWN.items():
        value = row[name]
        if name.endswith("_share"):
            text = f"{value:.1%}"
        elif isinstance(value, int) or abs(value) >= 1000:
            text = f"{value:,.0f}"
        else:
            text = f"{value:.4g}"
        table.add_row(meaning, text)
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)
