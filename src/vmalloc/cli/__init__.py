# SPDX-License-Identifier: MIT
"""The `vmalloc` command: one file per subcommand, loaded only when it is called.

Each module `vmalloc.cli.<name>` holds one click command called `command`; its docstring is its help.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = ("suite", "bench", "ps", "check", "record", "replay", "simulate", "compare", "calibrate")
#: Which extra brings a module that a command needs.
EXTRAS = {
    "matplotlib": "bench",
    "numpy": "numpy",
    "pyarrow": "lab",
    "sortedcontainers": "lab",
    "zstandard": "lab",
}


def _without(cmd_name: str, missing: str) -> click.Command:
    """In place of a command whose module cannot be imported: it says in one line what to install."""
    text = f"needs {missing}: pip install 'vmalloc[{EXTRAS[missing]}]'"

    @click.command(
        cmd_name,
        help=text,
        short_help=text,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def command() -> None:
        raise click.ClickException(f"vmalloc {cmd_name} {text}")

    return command


class _LazyGroup(click.Group):
    """A click group that imports a subcommand's module only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"{__name__}.{cmd_name}")
        except ModuleNotFoundError as e:
            if e.name not in EXTRAS:
                raise
            return _without(cmd_name, e.name)
        command: click.Command = module.command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmalloc")
def main() -> None:
    """Shared page ranges for Python: use, test and study the kernel's per-node vmalloc design."""
