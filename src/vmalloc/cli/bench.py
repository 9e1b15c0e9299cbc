# SPDX-License-Identifier: MIT
"""vmalloc bench: what it costs to hand an array to another process, beside the peers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmalloc.cli.manners import INTERRUPTED, Command, Output, Refusal, json_option, told, what_to_install

if TYPE_CHECKING:
    from vmalloc.bench.handover import Found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@click.group(name="bench")
def command() -> None:
    """Measure this allocator beside its peers.

    \b
    Example:
      vmalloc bench handover
    """


@command.command(cls=Command)
@click.option("--sizes", default="4K,64K,1M,16M,256M", show_default=True, help="Bytes of an array.")
@click.option(
    "--peers",
    help="By commas, from: vmalloc copied stock shm torch joblib ray pysm iceoryx2 alone. Default: all.",
)
@click.option("--ways", default="queue,task", show_default=True, help="Through a queue, result of a task.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of each size. Default: what --seconds allows.")
@click.option(
    "--seconds", type=click.FloatRange(0.0), default=10.0, show_default=True,
    help="To spend on the rounds of one size and way; from 5 to 101 rounds.",
)  # fmt: skip
@click.option(
    "--start-method", type=click.Choice(["fork", "spawn", "forkserver"]),
    help="How the peers' processes start. Default: Python's own.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(1.0), default=60.0, show_default=True, help="Per hand-over, s."
)
@json_option
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw them (needs matplotlib).")
def handover(
    sizes: str,
    peers: str | None,
    ways: str,
    rounds: int | None,
    seconds: float,
    start_method: str | None,
    timeout: float,
    json_path: str | None,
    plot: Path | None,
) -> None:
    """Hand arrays to another process, by us and by the peers.

    \b
    Examples:
      vmalloc bench handover
      vmalloc bench handover --sizes 1M,64M --peers vmalloc,stock --plot of.png
      vmalloc bench handover --json | jq .results[0]

    Process A fills an array, process B reads all of it and replies: through a queue, and as the result
    of an executor's task. Peers that are not installed are named and left out. In every round each peer
    hands over one array, in turn; what arrived is checked every time. Shown are medians, quartiles, how
    many times ours, and the page faults with their estimated part of the time. Ctrl-C shows what was
    measured so far.
    """
    try:
        from vmalloc.bench import handover as bench
        from vmalloc.bench import plot as picture
        from vmalloc.bench.peers import PEERS

        chosen = tuple(PEERS) if peers is None else _words(peers)
        plan = bench.Plan(_words(sizes), _words(ways), chosen, rounds, seconds, start_method, timeout)
        output = Output(json_path)
        _check_plot(plot)
    except ModuleNotFoundError as error:
        raise Refusal(what_to_install(error.name, "bench")) from None
    except ValueError as error:
        raise Refusal(told(error)) from None
    with _progress_bar() as progress:
        result = bench.run(plan, progress)
    output.json(result.as_json())
    _show(result, output)
    if plot is not None and result.measured:
        picture.draw(result, plot)
    if result.is_interrupted:
        sys.exit(INTERRUPTED)
    sys.exit(0 if result.measured else 1)


def _check_plot(plot: Path | None) -> None:
    """ValueError or ModuleNotFoundError now rather than after minutes of measuring."""
    if plot is not None:
        if not plot.absolute().parent.is_dir():
            raise ValueError(f"--plot {plot}: there is no directory {plot.parent}")
        import matplotlib.backends.backend_agg as canvas

        kinds = canvas.FigureCanvasAgg.get_supported_filetypes()
        if plot.suffix.lstrip(".") not in kinds:
            raise ValueError(f"--plot {plot}: the name must end in one of .{', .'.join(sorted(kinds))}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    """What run() calls; None if no terminal watches. It has no thread, which would disturb the measuring."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:14}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("peers start", total=1.0)

        def show(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share, refresh=True)

        bar.refresh()
        yield show


def _show(result: Found, output: Output) -> None:
    from vmalloc.bench import report

    console = output.console
    for table in (*report.details(result), *report.summary(result)):
        console.print(table)
    for line in report.notes(result):
        console.print(line, soft_wrap=not console.is_terminal, markup=False)
