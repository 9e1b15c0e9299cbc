# SPDX-License-Identifier: MIT
"""`vmalloc report`: a recording, a replay or a live region as one page of HTML."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalloc.cli.manners import Command, Output, Refusal, json_option, safe, told
from vmalloc.cli.replay import PATH, Design

if TYPE_CHECKING:
    from vmalloc.lab.report import Report, Watch
    from vmalloc.region import RegionBase

PICTURES = 50
"""Of a region, while it is watched, at most."""


class OneDesign(Design):
    """Not all of them."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "DESIGN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "all":
            self.fail("one page shows one design.", param, ctx)
        return super().convert(value, param, ctx)


@click.command("report", cls=Command)
@click.argument("recording", required=False, type=click.Path(path_type=Path))
@click.option("--region", "which", metavar="WHICH", help="A live region instead: its name, a pid, a path.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    help=f"With --region: how long to watch, in up to {PICTURES} pictures; 0 for one.  [default: 5]",
)
@click.option("--replay", "design", type=OneDesign(), help="Pools and levels of this design's model, too.")
@click.option(
    "--state", type=PATH, help="With a recording: its complete start state (a guest's NAME.state0)."
)
@click.option(
    "--vmallocinfo", type=PATH, help="/proc/vmallocinfo at a recording's start, with real addresses."
)
@click.option(
    "-o", "--output", "page", type=click.Path(path_type=Path), help="The page, a file that is not there yet."
)
@click.option("--force", is_flag=True, help="Replace the page if it is there.")
@json_option
def command(
    recording: Path | None,
    which: str | None,
    seconds: float | None,
    design: str | None,
    state: Path | None,
    vmallocinfo: Path | None,
    page: Path | None,
    force: bool,
    json_path: str | None,
) -> None:
    """Make one page of HTML of a kernel's RECORDING or of a live region.

    It shows addresses over time, sizes, callers, life times, pools, what is freed and not purged, and
    fragmentation. The page needs no network and no colours. --json has the same numbers.

    \b
    Examples:
      vmalloc report kernel.trace.gz -o page.html
      vmalloc report kernel.trace.gz --replay linux-6.16 -o page.html
      vmalloc report kernel.trace.gz --vmallocinfo before.txt -o page.html
      vmalloc report --region frames --seconds 10 -o page.html
    """
    if (recording is None) == (which is None):
        raise Refusal("say either a recording or --region WHICH")
    if page is None and json_path is None:
        raise Refusal("say where the page goes: -o page.html; or --json")
    if which is None and seconds is not None:
        raise Refusal("--seconds goes with --region")
    if which is not None and (design or state or vmallocinfo):
        raise Refusal("--replay, --state and --vmallocinfo go with a recording")
    if state is not None and vmallocinfo is not None:
        raise Refusal("--state tells all that --vmallocinfo tells, and more: say one of them")

    def make() -> Report:
        if recording is not None:
            return _of_recording(recording, design, state, vmallocinfo)
        assert which is not None
        return _of_region(which, 5.0 if seconds is None else seconds)

    if page is None:
        Output(json_path).json(make().as_dict())
        return
    with _new_file(page, force):
        from vmalloc.cli.report_page import page_of  # before any work: plotly may be missing

        report = make()
        page.write_text(page_of(report), encoding="utf-8")
    Output(json_path).json(report.as_dict())


@contextmanager
def _new_file(path: Path, force: bool) -> Iterator[None]:
    """Whether it can be written is known before the work begins, and what fails leaves no part of a page."""
    was_there = path.exists()
    if was_there and not force:
        raise Refusal(f"{safe(str(path))} is there already; --force replaces it")
    path.open("a" if was_there else "x").close()
    try:
        yield
    except BaseException:
        if not was_there:
            path.unlink(missing_ok=True)
        raise


def _of_recording(path: Path, design: str | None, state: Path | None, vmallocinfo: Path | None) -> Report:
    from vmalloc.lab.events import TraceError
    from vmalloc.lab.report import add_replay, report_of_recording, start_of_state, start_of_vmallocinfo
    from vmalloc.lab.state import StateError

    try:
        if state is not None:
            report = report_of_recording(path, start_of_state(state))
        elif vmallocinfo is not None:
            report = report_of_recording(path, start_of_vmallocinfo(vmallocinfo))
        else:
            report = report_of_recording(path)
        if design is not None:
            from vmalloc.lab.replay import load
            from vmalloc.model import PRESETS

            add_replay(report, load(path), PRESETS[design])
    except (TraceError, StateError, ValueError) as error:
        raise click.ClickException(told(error)) from None
    return report


# ---- a live region ----


def _of_region(which: str, seconds: float) -> Report:
    from vmalloc._core import STATES
    from vmalloc.errors import RegionUnavailable
    from vmalloc.image import attach_any
    from vmalloc.lab.report import Watch

    try:
        region = attach_any(which, readonly=True)
    except RegionUnavailable as error:
        raise Refusal(told(error)) from None
    watch = Watch(region._info()["granule"], STATES)  # pyright: ignore[reportPrivateUsage]
    try:
        _look(region, watch, seconds)
    except KeyboardInterrupt:
        if not watch.times:
            raise
        click.echo("interrupted: the page shows what was seen until now", err=True)
    return watch.report(which)


def _look(region: RegionBase, watch: Watch, seconds: float) -> None:
    """Pictures evenly apart, fewer where one takes long; one at once where no time is given."""
    import numpy as np

    began = time.monotonic()
    for picture in range(PICTURES if seconds else 1):
        due = began + seconds * picture / (PICTURES - 1)
        if picture and time.monotonic() > began + seconds:
            break
        time.sleep(max(due - time.monotonic(), 0))
        table = region._range_table()  # pyright: ignore[reportPrivateUsage]
        rows = np.frombuffer(memoryview(table), np.dtype(list(table.DTYPE)))
        pids = {process.slot: process.pid for process in region.processes()}
        watch.add(time.monotonic() - began, rows, pids)
