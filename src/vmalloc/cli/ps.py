# SPDX-License-Identifier: MIT
"""`vmalloc ps`: the regions of this machine."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmalloc.cli.manners import (
    Command,
    Output,
    Refusal,
    human_age,
    human_bytes,
    json_option,
    plain_table,
    safe,
    told,
)

if TYPE_CHECKING:
    from vmalloc.overview import Seen

COLUMNS = ("name", "user", "size", "limit", "used", "resident", "age", "health")
RIGHT = ("size", "limit", "used", "resident", "age")
NAME_SHOWN = 24  # in a terminal of 80; fewer in a small one, so that the health is to be seen
NAME_LEAST = 4


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _row(region: Seen, name_most: int) -> dict[str, str]:
    return {
        "name": safe(region.name, name_most) or "-",
        "user": safe(_user(region.uid), name_most),
        "size": human_bytes(region.nbytes),
        "limit": human_bytes(region.limit),
        "used": human_bytes(region.used_bytes),
        "resident": human_bytes(region.resident_bytes),
        "age": human_age(region.age_s),
        "health": safe(region.health),
    }


def lines(regions: list[Seen], width: int = 0) -> list[str]:
    """A line for each region, below it one for each process; `width` of a terminal, 0 for no bound."""
    most = max(NAME_LEAST, min(NAME_SHOWN, width - 80 + NAME_SHOWN)) if width else 0
    table = plain_table([_row(r, most) for r in regions], COLUMNS, RIGHT)
    shown = table[:1]
    for line, region in zip(table[1:], regions, strict=True):
        shown.append(line)
        for process in sorted(region.processes, key=lambda p: -p.nbytes):
            state = "" if process.state == "running" else f"({process.state}) "
            shown.append(
                f"  {process.pid:>8}  holds {human_bytes(process.nbytes):>6}  {state}{safe(process.command)}"
            )
    return [safe(line, width) for line in shown] if width else shown


def _fits(region: Seen, which: str) -> bool:
    return region.name == which or any(str(process.pid) == which for process in region.processes)


@click.command("ps", cls=Command)
@click.argument("which", nargs=-1)
@json_option
def command(which: tuple[str, ...], json_path: str | None) -> None:
    """List the regions that processes have open (yours; all of them for root), and who holds how much.

    Nobody is disturbed: regions are looked at read-only, without a lock. `used` is what is allocated,
    `resident` also what is kept warm and the region's own metadata. A process holds what it allocated and
    what its threads keep for their next requests. Health is ok, full, or says what is wrong; `dead`
    processes are recovered by the next who needs the room. WHICH: only those of that name, or that a
    process of that pid has.

    \b
    Examples:
      vmalloc ps
      vmalloc ps frames
      vmalloc ps --json | jq '.[].processes'
    """
    from vmalloc.overview import look_at_all

    output = Output(json_path)
    try:
        regions = look_at_all()
    except OSError as error:
        raise Refusal(f"regions are found by /proc: {told(error)}; mount it") from None
    for one in which:
        if not any(_fits(region, one) for region in regions):
            raise Refusal(f"no region is called {safe(one)!r}, and no process of that pid has one")
    regions = [region for region in regions if not which or any(_fits(region, one) for one in which)]
    output.json([asdict(r) for r in regions])
    if output.json_is_alone:
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    click.echo("\n".join(lines(regions, width)) if regions else "no regions")
