# SPDX-License-Identifier: MIT
"""vmalloc record: write down what an allocator does."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
from click.core import ParameterSource

from vmalloc.cli.manners import Command, Output, Refusal, json_option, safe, told, what_to_install

OUTPUT_HELP = """Default: kernel-DATE.trace.gz. The name says the format: ftrace text (.gz, .xz, .zst or
plain) or columns (.parquet). Of a region: NAME-DATE.parquet, columns only."""


class RecordCommand(Command):
    """Of a kernel, all that follows a program's name is that program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--kernel" not in args
        return super().parse_args(ctx, args)


@click.command("record", cls=RecordCommand)
@click.option("--kernel", is_flag=True, help="Record the running kernel's vmalloc events. Needs root.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after this time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help=OUTPUT_HELP)
@click.option(
    "--buffer-kb", type=click.IntRange(min=64), default=8192, show_default=True, help="Ring of each CPU."
)
@click.option(
    "--snapshots/--no-snapshots", default=True, help="/proc/vmallocinfo before and after. On by default."
)
@click.option(
    "--real-addresses", is_flag=True, help="Set kernel.kptr_restrict to 1 while a snapshot is read."
)
@click.option("--exact", is_flag=True, help="Of a region: each event with its own time, not its batch's.")
@click.option(
    "--perfetto", type=click.Path(path_type=Path), help="Also a .json or .json.gz for ui.perfetto.dev."
)
@json_option
@click.argument("command", metavar="[NAME | -- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(
    ctx: click.Context,
    kernel: bool,
    seconds: float | None,
    output: Path | None,
    buffer_kb: int,
    snapshots: bool,
    real_addresses: bool,
    exact: bool,
    perfetto: Path | None,
    json_path: str | None,
    command: tuple[str, ...],
) -> None:
    """Record what an allocator does, for `vmalloc replay`.

    \b
    Examples:
      vmalloc record --kernel --seconds 10
      vmalloc record --kernel -o build.trace.gz -- make -j8
      vmalloc record --kernel                       until Ctrl-C
      vmalloc record frames --seconds 10 -o run.parquet
      vmalloc record frames --seconds 1 --perfetto run.json.gz

    With NAME: what all processes do in the region of that name, or that the process of that pid has.

    Of a kernel: tracing is used through a private instance, so other users of it are not disturbed, and it
    is left as it was found, however the recorder ends.
    """
    from vmalloc.lab.record_kernel import RecordError, record_kernel

    _check_perfetto(perfetto, output)
    if not kernel:
        if len(command) != 1:
            raise click.UsageError("say what to record: --kernel, or the name of a region")
        if (
            real_addresses
            or not snapshots
            or ctx.get_parameter_source("buffer_kb") is ParameterSource.COMMANDLINE
        ):
            raise click.UsageError("--buffer-kb, --no-snapshots and --real-addresses go with --kernel")
        _record_region(command[0], output, seconds, exact, perfetto, Output(json_path))
        return
    if exact:
        raise click.UsageError("--exact goes with the name of a region")
    results = Output(json_path)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    trace = output or Path(time.strftime("kernel-%Y%m%d-%H%M%S.trace.gz"))
    try:
        with _columns_needed():
            done = record_kernel(
                trace,
                seconds=seconds,
                command=command,
                buffer_kb=buffer_kb,
                snapshots=snapshots,
                real_addresses=real_addresses,
            )
    except (RecordError, OSError) as error:
        raise click.ClickException(told(error)) from error
    click.echo(
        f"{done.nr_lines:,} lines in {done.seconds:.1f} s, {done.nr_lost:,} lost: {done.trace}", err=True
    )
    for snapshot in (done.before, done.after):
        if snapshot is not None:
            click.echo(f"snapshot: {snapshot}", err=True)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    results.json(done.as_json())
    is_written = _write_perfetto(done.trace, perfetto)
    if done.interrupted and (seconds is not None or command):
        sys.exit(128 + done.interrupted)
    status = done.status if done.status >= 0 else 128 - done.status
    sys.exit(status or not is_written)


@contextmanager
def _columns_needed() -> Iterator[None]:
    """Of all that columns need, numpy too, the extra is the lab's."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refusal(what_to_install(error.name, "lab")) from None


def _check_perfetto(path: Path | None, recording: Path | None) -> None:
    """Before anything is recorded."""
    from vmalloc.lab.perfetto import SUFFIXES

    if path is None:
        return
    if not path.name.endswith(SUFFIXES):
        raise Refusal(f"--perfetto {safe(str(path))}: name it .json or .json.gz")
    if recording is not None and path.absolute() == recording.absolute():
        raise Refusal(f"--perfetto {safe(str(path))}: the recording itself goes there")
    if not path.absolute().parent.is_dir():
        raise Refusal(f"--perfetto {safe(str(path))}: there is no directory {safe(str(path.parent))}")


def _write_perfetto(trace: str | Path, path: Path | None) -> bool:
    """What was recorded is there in any case, and so is the status of what ran meanwhile: no exception."""
    from vmalloc.lab.events import TraceError
    from vmalloc.lab.perfetto import write_perfetto

    if path is None:
        return True
    try:
        nr = write_perfetto(trace, path)
    except (TraceError, OSError) as error:
        click.ClickException(f"--perfetto {safe(str(path))}: {told(error)}").show()
        return False
    click.echo(f"{nr:,} entries for ui.perfetto.dev: {safe(str(path))}", err=True)
    return True


def _record_region(
    name: str,
    path: Path | None,
    seconds: float | None,
    exact: bool,
    perfetto: Path | None,
    results: Output,
) -> None:
    """Until the time is up or Ctrl-C; what was recorded by then is kept."""
    from vmalloc.errors import VmallocError

    path = path or Path(time.strftime(f"{name.replace('/', '_')}-%Y%m%d-%H%M%S.parquet"))
    if path.suffix != ".parquet":
        raise Refusal(f"-o {safe(str(path))}: events of a region are written as columns: name it .parquet")
    with _columns_needed():
        from vmalloc.lab.record_region import RegionRecorder
    from vmalloc.region import Region

    try:
        with Region.attach(name, helper=False) as region:
            with RegionRecorder(region, path, exact=exact) as recorder, suppress(KeyboardInterrupt):
                _wait(seconds)
            done = recorder.done
    except (VmallocError, OSError) as error:
        raise click.ClickException(told(error)) from error
    lost = f"{done.nr_lost:,} lost" + (f", {done.nr_damaged:,} damaged" if done.nr_damaged else "")
    click.echo(f"{done.nr_events:,} events in {done.seconds:.1f} s, {lost}: {safe(done.trace)}", err=True)
    results.json(done.as_json())
    if not _write_perfetto(done.trace, perfetto):
        sys.exit(1)


def _wait(seconds: float | None) -> None:
    if seconds is not None:
        time.sleep(seconds)
        return
    while True:
        time.sleep(3600)
