# SPDX-License-Identifier: MIT
"""`vmalloc ps`: the regions of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from vmalloc.find import Found, find_regions


def _table(regions: list[Found]) -> Table:
    table = Table("name", "resident", "virtual", "processes", box=None)
    for region in regions:
        pids = " ".join(map(str, region.pids))
        table.add_row(region.name or "-", decimal(region.resident_bytes), decimal(region.nbytes), pids)
    return table


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="A list of objects instead of a table.")
def command(as_json: bool) -> None:
    """List the regions that processes have open (yours; all of them for root).

    \b
    Example:
      vmalloc ps
    """
    regions = find_regions()
    if as_json:
        click.echo(json.dumps([asdict(r) for r in regions], indent=2))
    elif regions:
        Console().print(_table(regions))
    else:
        click.echo("no regions")
