# SPDX-License-Identifier: MIT
"""vmalloc calibrate: what a line, a lock, a page cost on this machine, as a file for the simulator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import Command, json_option
from vmalloc.cli.simulate import BadPlan

if TYPE_CHECKING:
    from vmalloc.simulate.calibrate import Beside
    from vmalloc.simulate.costs import Machine


@click.command(cls=Command)
@json_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the costs to NAME.toml.")
@click.option(
    "--beside", "is_beside", is_flag=True, help="Also run the suite, 1 to 64 workers, beside its simulation."
)
def command(json_path: str | None, out: Path | None, is_beside: bool) -> None:
    """Measure the costs of this machine.

    \b
    vmalloc calibrate --out here.toml
    vmalloc simulate --machine here.toml --design vmalloc/locked nr_threads=8
    vmalloc calibrate --beside

    Takes half a minute, with --beside two; other work on the machine makes it wrong. With --beside the suite
    runs on the real allocator with each pool design, and the table says whether the simulation orders the
    designs alike.
    """
    if out is not None and (out.suffix != ".toml" or not out.absolute().parent.is_dir()):
        raise BadPlan(f"--out {out}: wanted NAME.toml in a directory that exists")
    from vmalloc.simulate.calibrate import calibrated, table, write_machine

    def say(text: str) -> None:
        click.echo(text, err=True)

    try:
        machine, notes = calibrated(say)
        if out is not None:
            write_machine(machine, out)
        found = _beside(machine, say) if is_beside else []
        if json_path is not None:
            text = json.dumps(_document(machine, notes, found), indent=1)
            if json_path == "-":
                click.echo(text)
                return
            Path(json_path).write_text(text + "\n")
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'measuring'}: {error.strerror or error}") from None
    for name, cost in machine.costs.items():
        if not cost.source.startswith("not measured"):
            click.echo(f"{name:20} {cost.value:>10g}")
    for note in notes:
        click.echo(note)
    if is_beside:
        click.echo(table(machine.meaning, found))


def _beside(machine: Machine, say: Callable[[str], None]) -> list[Beside]:
    from vmalloc.simulate.calibrate import beside, write_machine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "here.toml"
        write_machine(machine, path)
        return beside(str(path), say=say)


def _document(machine: Machine, notes: list[str], found: list[Beside]) -> dict[str, Any]:
    document = {"meaning": machine.meaning, "costs": machine.values, "notes": notes}
    return document | ({"beside": [asdict(one) for one in found]} if found else {})
