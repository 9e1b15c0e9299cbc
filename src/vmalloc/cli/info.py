# SPDX-License-Identifier: MIT
"""`vmalloc info`: ranges one by one, ours as /proc/vmallocinfo shows the kernel's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import Command, Output, Refusal, human_bytes, json_option, plain_table, safe, told

if TYPE_CHECKING:
    from vmalloc._core import RangeTable
    from vmalloc.lab.vmallocinfo import Summary
    from vmalloc.region import RegionBase

KERNEL = "/proc/vmallocinfo"
TOP = 20  # callers
MOST = 100  # ranges, unless all are asked for
LINES_AT_ONCE = 1_000  # so that they stay in a cache
MAP_WIDTH = 72
MAP_LETTERS = {"free": ".", "busy": "#", "lazy": "~", "cached": "+", "pooled": "+"}


def _width() -> int:
    """Of a map: it takes one line, in a small terminal too."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else MAP_WIDTH + 2
    return max(min(MAP_WIDTH, columns - 2), 1)


def _map(table: RangeTable, width: int) -> str:
    """The region as one line: a letter for what most pages of each part are."""
    from vmalloc._core import STATES

    letters = [MAP_LETTERS.get(state, "?") for state in STATES]
    return "".join(letters[state] for state in table.most_of_each(width))


def _totals(table: RangeTable) -> str:
    return "  ".join(
        f"{state} {human_bytes(nr_pages * table.granule)} in {nr:,}"
        for state, (nr, nr_pages) in table.totals().items()
    )


def _chunks(table: RangeTable, with_free: bool, as_json: bool) -> Iterator[str]:
    at = 0
    while at < len(table):
        text, at = table.lines(at, LINES_AT_ONCE, with_free, as_json)
        yield text


def _show(table: RangeTable, show_all: bool) -> None:
    if show_all:
        for text in _chunks(table, True, False):
            sys.stdout.write(text)
    else:
        sys.stdout.write(table.lines(0, MOST, False, False)[0])
        totals = table.totals()
        more = len(table) - totals.get("free", (0, 0))[0] - MOST
        if more > 0:
            click.echo(f"... and {more:,} ranges more: --all shows them")
    click.echo(_totals(table))
    click.echo(f"[{_map(table, _width())}]")
    click.echo("# busy  + ready  ~ lazy  . free")


def _shares(served: dict[str, int]) -> str:
    """Who served requests since the region was made."""
    total = sum(served.values())
    shares = ", ".join(f"{level} {nr / total:.1%}" for level, nr in served.items() if nr)
    return f"{total:,} served: {shares}" if total else "none served yet"


def _of_region(region: RegionBase, show_all: bool, output: Output) -> None:
    from vmalloc._core import Monitor
    from vmalloc.stats import served_of

    info = region._info()  # pyright: ignore[reportPrivateUsage]
    served = served_of(Monitor(region).look()[0])
    table = region._range_table()  # pyright: ignore[reportPrivateUsage]
    table.know({process.slot: process.pid for process in region.processes() if process.pid})
    if not output.json_is_alone:
        _show(table, show_all)
        click.echo(f"requests: {_shares(served)}")
    head = {
        "id": info["id"].hex(),
        "granule": info["granule"],
        "nr_pages": info["nr_pages"],
        "served": served,
    }
    output.json_list(head, "ranges", _chunks(table, True, True))


def _of_kernel(path: str, show_all: bool, output: Output) -> None:
    from vmalloc.lab.events import TraceError
    from vmalloc.lab.vmallocinfo import read_vmallocinfo, summarize

    try:
        summary = summarize(path)
        groups = [
            {"caller": caller or "-", "kind": kind or "-", "areas": nr, "bytes": nbytes}
            for caller, kind, nr, nbytes in summary.groups()
        ]
        if not output.json_is_alone:
            _show_kernel(summary, groups, show_all)
        if output.json_path is not None:
            found = read_vmallocinfo(path)
            areas = [asdict(area) | {"flags": sorted(area.flags)} for area in found]
            output.json({"addresses": found.addresses, "callers": groups, "areas": areas})
    except PermissionError:
        raise Refusal(f"{path} is for root: sudo vmalloc info --kernel, or give a copy of it") from None
    except TraceError as error:
        raise Refusal(told(error)) from None


def _show_kernel(summary: Summary, groups: list[dict[str, Any]], show_all: bool) -> None:
    rows = [
        {
            "bytes": human_bytes(g["bytes"]),
            "areas": str(g["areas"]),
            "kind": g["kind"],
            "caller": safe(g["caller"]),
        }
        for g in (groups if show_all else groups[:TOP])
    ]
    click.echo("\n".join(plain_table(rows, ("bytes", "areas", "kind", "caller"), ("bytes", "areas"))))
    if summary.addresses == "real":
        start, end, letters = summary.map(_width())
        click.echo(f"[{letters}]")
        click.echo(f"0x{start:x} to 0x{end:x}: # busy  + busy in part  ~ lazy  . free")
    more = len(groups) - len(rows)
    total = sum(g["bytes"] for g in groups)
    click.echo(
        f"{len(summary):,} areas, {human_bytes(total)}, addresses {summary.addresses}"
        + (f"; {more} more callers (--all)" if more else "")
    )


@click.command("info", cls=Command)
@click.argument("which", required=False)
@click.option(
    "--kernel", is_flag=True, help=f"Of the kernel, from {KERNEL} or the copy of it that WHICH names."
)
@click.option(
    "--all",
    "show_all",
    is_flag=True,
    help=f"All ranges, free ones too, not {MOST}; with --kernel, every caller.",
)
@json_option
def command(which: str | None, kernel: bool, show_all: bool, json_path: str | None) -> None:
    """Show the ranges of the region WHICH (name, pid, path or image), as /proc/vmallocinfo does.

    Start and end, bytes, pages, state, and the process that holds it; then the whole region as one line.
    With --kernel: the kernel's areas by caller, most bytes first, and the addresses as one line.
    --json has all of them.

    \b
    Examples:
      vmalloc info frames
      vmalloc info --kernel
      vmalloc info --kernel vmallocinfo.gz --all
    """
    output = Output(json_path)
    if kernel:
        path = which or KERNEL
        if not Path(path).exists():
            raise Refusal(f"there is no {path}")
        _of_kernel(path, show_all, output)
        return
    if which is None:
        raise Refusal("say which region: a name or pid of `vmalloc ps`, a path or an image; or --kernel")
    from vmalloc.errors import RegionUnavailable
    from vmalloc.image import attach_any, is_image, load

    try:
        region = load(which) if os.sep in which and is_image(which) else attach_any(which, readonly=True)
    except RegionUnavailable as error:
        if is_image(which):
            region = load(which)
        else:
            raise Refusal(told(error)) from None
    _of_region(region, show_all, output)
