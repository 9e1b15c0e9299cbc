# SPDX-License-Identifier: MIT
"""vmalloc suite: the kernel's vmalloc test suite on this allocator."""

from __future__ import annotations

import sys
from textwrap import wrap

import click

from vmalloc.cli.manners import INTERRUPTED, Command, Output, Refusal, Size, json_option, told
from vmalloc.facts import POOLS
from vmalloc.suite.parameters import MODES, TESTS, Parameters, SuiteTest

MEANING_AT, LINE = 33, 78  # columns of a terminal of 80; the help is set in by two


def _test(test: SuiteTest) -> str:
    first, *others = wrap(test.meaning, LINE - 2 - MEANING_AT)
    return "\n".join(
        [f"  {test.bit:5} {test.name:24} {first}", *(" " * MEANING_AT + line for line in others)]
    )


def _details() -> str:
    modes = "\n".join(
        f"  {name:12} " + " ".join(f"{k}={v}" for k, v in m.items()) for name, m in MODES.items()
    )
    tests = "\n".join(map(_test, TESTS))
    defaults = Parameters()
    return f"""\b
Modes, as in the kernel's test_vmalloc.sh:
{modes}

\b
Parameters, as the kernel's (default); values are numbers from 1:
  nr_threads ({defaults.nr_threads}) test_repeat_count ({defaults.test_repeat_count})
  test_loop_count ({defaults.test_loop_count}; the kernel's is 1000000) nr_pages (1) use_huge
  run_test_mask ({defaults.run_test_mask}) sequential_test_order nr_pcpu_objects ({defaults.nr_pcpu_objects})

\b
Tests, by their bit in run_test_mask:
{tests}

full_fit_alloc's L is the kernel's fls(CPUs) * 32 MiB in pages, but at most what lets the 2 L pages of all
workers fill a quarter of the region; the table says which it was.
"""


@click.command("suite", cls=Command, epilog=_details())
@click.option(
    "--pools", default=",".join(POOLS), show_default=True, help="Designs to compare. Also: off-mutex."
)
@click.option(
    "--workers", type=click.Choice(["threads", "processes"]), default="threads", show_default=True,
    help="What nr_threads counts.",
)  # fmt: skip
@click.option(
    "--start-method", type=click.Choice(["fork", "spawn", "forkserver"]), default="fork", show_default=True,
    help="How worker processes start.",
)  # fmt: skip
@click.option(
    "--region",
    type=Size(),
    help="Size, like 8G. Default: twice what all workers hold, at least 1G; untouched.",
)
@click.option("--touch", is_flag=True, help="Write the first byte of every area, as the kernel's tests do.")
@click.option("--no-single", is_flag=True, help="Skip the run with one worker beside the run with many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the test orders and random sizes.")
@click.option("--dmesg", is_flag=True, help="Print the kernel's own Summary lines instead of the table.")
@json_option
@click.argument("words", nargs=-1, metavar="[MODE] [KEY=VALUE]...")
def command(
    pools: str,
    workers: str,
    start_method: str,
    region: int | None,
    touch: bool,
    no_single: bool,
    seed: int,
    dmesg: bool,
    json_path: str | None,
    words: tuple[str, ...],
) -> None:
    """Run the kernel's vmalloc test suite on every pool design.

    \b
    Examples:
      vmalloc suite nr_threads=64 run_test_mask=7 test_loop_count=100000
      vmalloc suite smoke --pools magazine --workers processes
      vmalloc suite performance --pools off,off-mutex --dmesg

    The loops run in C, in threads or processes, on a region of their own. Every page has an owner stamp in
    a side array, so a page handed out twice fails the test. Designs are run in turn, round by round. The
    exit status is 0 if nothing failed that was not expected to.
    """
    try:
        from vmalloc.suite import Plan, parse, report, run
        from vmalloc.suite.progress import progress_bar

        plan = Plan(
            parse(words),
            tuple(name.strip() for name in pools.split(",") if name.strip()),
            workers,
            None if region is None else str(region),
            touch,
            not no_single,
            start_method,
            seed,
        )
    except (ValueError, ImportError) as error:
        raise Refusal(told(error)) from None
    output = Output(json_path)
    try:
        with progress_bar() as progress:
            result = run(plan, progress)
    except (OSError, RuntimeError, MemoryError) as error:
        raise click.ClickException(told(error)) from error
    if dmesg:
        click.echo("\n".join(report.dmesg(result)), err=output.json_is_alone)
    else:
        output.console.print(report.table(result))
    output.json(report.as_json(result))
    if result.is_interrupted:
        click.echo("interrupted: these are the rounds that ended", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(1 if result.failed else 0)
