# SPDX-License-Identifier: MIT
"""`vmalloc check`: walk the invariants of a live region or of an image of one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from vmalloc.cli.manners import Command, Output, Refusal, json_option, plain_table, told
from vmalloc.errors import RegionCorrupt, VmallocError
from vmalloc.image import attach_any, is_image, load, save
from vmalloc.region import RegionBase

ALWAYS = (
    "the words tile the region",
    "bits and every level of summaries",
    "free pages",
    "ids",
    "owners of busy ranges",
    "holders",
    "names",
    "leases",
)
AT_REST = (
    "lists, lengths and counters of pools",
    "lazy lists, warm lists and lazy pages",
    "magazines",
    "locks",
    "thread slots",
    "shared ranges that nobody holds",
    "ranges on the move",
)


@dataclass
class Report:
    """What a check did and found."""

    region: str
    source: str  #: live or image
    readonly: bool
    at_rest: bool
    states: dict[str, dict[str, int]] | None  #: ranges and pages of each; None if the words do not parse
    stats: dict[str, Any] | None
    mended: list[str] = field(default_factory=list[str])
    findings: list[str] = field(default_factory=list[str])

    @property
    def checked(self) -> list[str]:
        return [*ALWAYS, *(AT_REST if self.at_rest else ())]

    @property
    def left_out(self) -> list[str]:
        return [] if self.at_rest else [*AT_REST]

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"checked": self.checked, "left_out": self.left_out}


def _count_states(region: RegionBase) -> dict[str, dict[str, int]]:
    states: dict[str, dict[str, int]] = {}
    for r in region.ranges():
        count = states.setdefault(r.state, {"ranges": 0, "pages": 0})
        count["ranges"] += 1
        count["pages"] += r.nr_pages
    return states


def _report(region: RegionBase, source: str, at_rest: bool, repair: bool) -> Report:
    mended = region._repair() if repair else []  # pyright: ignore[reportPrivateUsage]
    findings = region._check(at_rest)  # pyright: ignore[reportPrivateUsage]
    states: dict[str, dict[str, int]] | None = None
    stats: dict[str, Any] | None = None
    with contextlib.suppress(RegionCorrupt):
        states, stats = _count_states(region), region.stats().as_dict()
    return Report(region.id, source, region.readonly, at_rest, states, stats, mended, findings)


def _print(report: Report) -> None:
    for text in report.mended:
        click.echo(f"mended: {text}")
    for text in report.findings:
        click.echo(text)
    if report.states is not None:
        rows = [
            {"state": state, "ranges": str(count["ranges"]), "pages": str(count["pages"])}
            for state, count in sorted(report.states.items())
        ]
        click.echo("\n".join(plain_table(rows, ("state", "ranges", "pages"), ("ranges", "pages"))))
    click.echo(f"checked: {', '.join(report.checked)}")
    if report.left_out:
        click.echo(
            f"left out, for others may be at work (--at-rest says that none is): {', '.join(report.left_out)}"
        )
    if report.readonly and report.source == "live":
        click.echo("taken without locks: what moved meanwhile may be among the findings")
    stats = report.stats or {}
    click.echo(
        f"{len(report.findings)} findings; "
        + (
            f"{stats['nr_ranges']} ranges tile {stats['nr_pages']} pages, {stats['busy_pages']} busy, "
            f"{stats['free_pages']} free"
            if stats
            else "the words do not parse"
        )
    )


def _save(region: RegionBase, path: Path, data: bool) -> None:
    try:
        is_still = save(region, path, data=data)
    except OSError as e:
        raise Refusal(f"cannot write {path}: {e.strerror}") from None
    click.echo(f"{path}: {path.stat().st_blocks * 512} bytes written", err=True)
    if not is_still:
        click.echo("the region changed while it was copied: the image is of several moments", err=True)


@click.command("check", cls=Command)
@click.argument("which")
@click.option("--at-rest", is_flag=True, help="Nobody else works: compare lists, magazines and counters too.")
@click.option(
    "--repair",
    is_flag=True,
    help="First make hints, holders and counts agree with the words; say what was wrong.",
)
@click.option(
    "--read-only", "readonly", is_flag=True, help="Take no process slot and no lock, recover nobody."
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Save an image of the region, as it is, instead of checking it.",
)
@click.option("--with-data", is_flag=True, help="With --dump: the contents of the pages too.")
@json_option
def command(
    which: str,
    at_rest: bool,
    repair: bool,
    readonly: bool,
    dump: Path | None,
    with_data: bool,
    json_path: str | None,
) -> None:
    """Check the region of process WHICH, the one called WHICH, or the image in file WHICH.

    Exit status: 0 nothing found, 1 something found, 2 nothing there to check, or not to be reached. A live
    region is attached as any process would, and what dead processes left is reclaimed first; with
    --read-only or --dump it is only looked at. An image is never changed: --repair mends a copy in memory.

    \b
    Examples:
      vmalloc check 4711
      vmalloc check --dump region.image 4711
      vmalloc check region.image
    """
    if repair and readonly:
        raise click.UsageError("--repair changes the region, --read-only does not")
    if with_data and dump is None:
        raise click.UsageError("--with-data belongs to --dump")
    if dump is not None and (repair or at_rest or json_path):
        raise click.UsageError("--dump saves and does not check: check the image afterwards")
    output = Output(json_path)
    try:
        if dump is not None:
            _save(attach_any(which, readonly=True), dump, with_data)
            return
        source = "image" if is_image(which) else "live"
        region = (
            load(which, readonly=not repair) if source == "image" else attach_any(which, readonly=readonly)
        )
        report = _report(region, source, at_rest, repair)
    except VmallocError as e:
        raise Refusal(told(e)) from None
    if not output.json_is_alone:
        _print(report)
    output.json(report.as_dict())
    raise SystemExit(1 if report.findings else 0)
