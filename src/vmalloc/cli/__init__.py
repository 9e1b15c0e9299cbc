# SPDX-License-Identifier: MIT
"""The `vmalloc` command: one file per subcommand, loaded only when it is called.

Each module `vmalloc.cli.<name>` holds one click command called `command`; its docstring is its help. What it
says in the list of commands stands here, so that the list needs none of them.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from vmalloc.cli.manners import one_line, open_standard_streams, usage_in_one_line

COMMANDS = {
    "suite": "Run the kernel's vmalloc test suite on every pool design.",
    "bench": "Measure this allocator beside its peers.",
    "ps": "List the regions of this machine and who holds them.",
    "top": "Show a region at work, on the whole screen.",
    "info": "Show the ranges of a region, or of the kernel.",
    "doctor": "Say what on this machine will hurt, and what helps.",
    "check": "Check a live region or an image of one.",
    "hold": "Keep a region alive while its users restart.",
    "record": "Record what an allocator does, for `vmalloc replay`.",
    "replay": "Replay a recording: predict its addresses, or serve its requests.",
    "report": "Make a page of a recording, a replay or a live region.",
    "simulate": "Simulate the kernel's test suite on virtual CPUs.",
    "compare": "Compare designs in simulation, with the uncertainty over seeds.",
    "calibrate": "Measure the costs of this machine.",
    "completion": "Print what makes a shell complete this command.",
}


class _LazyGroup(click.Group):
    """A click group that imports a subcommand's module only when it is used, and ends in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(n, help=h) for n, h in COMMANDS.items() if n.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def main(self, *args: Any, **more: Any) -> Any:
        open_standard_streams()
        return super().main(*args, **more)

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with usage_in_one_line():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line(), usage_in_one_line():
            return super().invoke(ctx)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmalloc")
def main() -> None:
    """Shared page ranges for Python: use, test and study the kernel's per-node vmalloc design.

    \b
    Examples:
      vmalloc doctor
      vmalloc ps
      vmalloc suite run_test_mask=7 nr_threads=8
    """
