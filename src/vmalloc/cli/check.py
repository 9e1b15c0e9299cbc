"""`vmalloc check`: walk the invariants of a live region."""

from __future__ import annotations

import json

import click

from vmalloc.errors import VmallocError
from vmalloc.find import attach_by_pid_or_name


@click.command("check")
@click.argument("which")
@click.option(
    "--at-rest", is_flag=True, help="Nobody else works: compare lists and counters with the words too."
)
@click.option("--repair", is_flag=True, help="Rebuild every hint from the words first.")
@click.option("--json", "as_json", is_flag=True, help="An object with the findings and the statistics.")
def command(which: str, at_rest: bool, repair: bool, as_json: bool) -> None:
    """Check the region of process WHICH, or the one called WHICH. Exit status 1 if something is wrong.

    \b
    Example:
      vmalloc check 4711
    """
    try:
        region = attach_by_pid_or_name(which)
        found = region._check(at_rest, repair)
        stats = region.stats()
    except VmallocError as e:
        raise click.ClickException(str(e)) from None
    if as_json:
        click.echo(json.dumps({"findings": found, "stats": stats.as_dict()}, indent=2))
    else:
        for finding in found:
            click.echo(finding)
        click.echo(
            f"{len(found)} findings; {stats.nr_ranges} ranges tile {stats.nr_pages} pages, "
            f"{stats.busy_pages} busy, {stats.free_pages} free"
        )
    raise SystemExit(1 if found else 0)
