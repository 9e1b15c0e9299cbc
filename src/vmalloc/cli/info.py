# SPDX-License-Identifier: MIT
"""`vmalloc info`: ranges one by one, ours as /proc/vmallocinfo shows the kernel's."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import Command, Output, Refusal, human_bytes, json_option, plain_table, safe

if TYPE_CHECKING:
    from vmalloc.lab.vmallocinfo import Area
    from vmalloc.region import RegionBase
    from vmalloc.stats import Range

KERNEL = "/proc/vmallocinfo"
TOP = 20
LINES_AT_ONCE = 10_000
STATES_OF_PROCESS = ("busy",)


def _range_lines(ranges: list[Range], granule: int, pids: dict[int, int], show_all: bool) -> Iterator[str]:
    """As the kernel's: addresses (here offsets), bytes, who, pages, words."""
    words: dict[tuple[str, int, bool, bool], str] = {}
    for start, end, state, owner, _, shared, dirty in ranges:
        if state == "free" and not show_all:
            continue
        key = (state, owner, shared, dirty)
        if key not in words:
            words[key] = _words(state, owner, shared, dirty, pids)
        nr = end - start
        first = start * granule
        yield f"0x{first:012x}-0x{end * granule:012x} {nr * granule:>12} pages={nr} {words[key]}\n"


def _words(state: str, owner: int, shared: bool, dirty: bool, pids: dict[int, int]) -> str:
    who = ""
    if state in STATES_OF_PROCESS:
        who = f"pid={pids[owner]}" if owner in pids else f"process={owner}"
    return " ".join(filter(None, (state, who, "shared" if shared else "", "dirty" if dirty else "")))


def _map(ranges: list[Range], nr_pages: int, width: int = 72) -> str:
    """The region as one line: a letter for what most pages of each part are; '.' is free."""
    letters = {"free": ".", "busy": "#", "lazy": "~", "cached": "+", "pooled": "+"}
    parts: list[Counter[str]] = [Counter() for _ in range(width)]
    part, part_end = 0, -(-nr_pages // width)
    for at, range_end, state, *_ in ranges:
        letter = letters.get(state, "?")
        while range_end > part_end:
            if at < part_end:
                parts[part][letter] += part_end - at
                at = part_end
            part += 1
            part_end = -(-(part + 1) * nr_pages // width)
        parts[part][letter] += range_end - at
    return "".join(part.most_common(1)[0][0] if part else "." for part in parts)


def _shares(served: dict[str, int]) -> str:
    """Who served requests since the region was made."""
    total = sum(served.values())
    shares = ", ".join(f"{level} {nr / total:.1%}" for level, nr in served.items() if nr)
    return f"{total:,} served: {shares}" if total else "none served yet"


def _of_region(region: RegionBase, show_all: bool, output: Output) -> None:
    from vmalloc._core import Monitor
    from vmalloc.stats import served_of

    info = region._info()  # pyright: ignore[reportPrivateUsage]
    pids = {process.slot: process.pid for process in region.processes() if process.pid}
    served = served_of(Monitor(region).look()[0])
    gc.disable()  # a million tuples in a short life: collecting them takes most of the time
    ranges = region.ranges()
    if not output.json_is_alone:
        lines = _range_lines(ranges, info["granule"], pids, show_all)
        while chunk := "".join(islice(lines, LINES_AT_ONCE)):
            sys.stdout.write(chunk)
        click.echo(f"[{_map(ranges, info['nr_pages'])}]  # busy  + ready  ~ lazy  . free")
        click.echo(f"requests: {_shares(served)}")
    output.json(
        {
            "id": info["id"].hex(),
            "granule": info["granule"],
            "nr_pages": info["nr_pages"],
            "served": served,
            "ranges": [
                r._asdict() | {"pid": pids.get(r.owner) if r.state == "busy" else None} for r in ranges
            ],
        }
    )


def _groups(areas: Iterator[Area]) -> list[dict[str, Any]]:
    """Areas by caller and kind, most bytes first."""
    counts: Counter[tuple[str, str]] = Counter()
    nbytes: Counter[tuple[str, str]] = Counter()
    for area in areas:
        key = (area.caller.partition("+")[0] or "-", area.kind or "-")
        counts[key] += 1
        nbytes[key] += area.size
    return [
        {"caller": caller, "kind": kind, "areas": counts[caller, kind], "bytes": n}
        for (caller, kind), n in nbytes.most_common()
    ]


def _of_kernel(path: str, show_all: bool, output: Output) -> None:
    from vmalloc.lab.events import TraceError
    from vmalloc.lab.vmallocinfo import read_vmallocinfo

    try:
        found = read_vmallocinfo(path)
    except PermissionError:
        raise Refusal(f"{path} is for root: sudo vmalloc info --kernel, or give a copy of it") from None
    except TraceError as error:
        raise Refusal(safe(str(error))) from None
    groups = _groups(iter(found))
    if not output.json_is_alone:
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
        more = len(groups) - len(rows)
        total = sum(g["bytes"] for g in groups)
        click.echo(
            f"{len(found):,} areas, {human_bytes(total)}, addresses {found.addresses}"
            + (f"; {more} more callers (--all)" if more else "")
        )
    if output.json_path is not None:
        areas = [asdict(area) | {"flags": sorted(area.flags)} for area in found]
        output.json({"addresses": found.addresses, "callers": groups, "areas": areas})


@click.command("info", cls=Command)
@click.argument("which", required=False)
@click.option(
    "--kernel", is_flag=True, help=f"Of the kernel, from {KERNEL} or the copy of it that WHICH names."
)
@click.option("--all", "show_all", is_flag=True, help="Free ranges too; with --kernel, every caller.")
@json_option
def command(which: str | None, kernel: bool, show_all: bool, json_path: str | None) -> None:
    """Show the ranges of the region WHICH (name, pid, path or image), as /proc/vmallocinfo does.

    Start and end, bytes, pages, state, and the process that holds it; then the whole region as one line.
    With --kernel: the kernel's areas by caller, most bytes first.

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
            raise Refusal(safe(str(error))) from None
    _of_region(region, show_all, output)
