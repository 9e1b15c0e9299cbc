# SPDX-License-Identifier: MIT
"""`vmalloc completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import os

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def command(shell: str | None) -> None:
    """Print what makes SHELL (bash, zsh or fish; by default yours) complete this command.

    \b
    Example:
      eval "$(vmalloc completion bash)"      in ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    from vmalloc.cli import main

    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    completes = get_completion_class(shell)
    if completes is None:
        raise click.UsageError(f"say which shell: {', '.join(SHELLS)}")
    click.echo(completes(main, {}, "vmalloc", "_VMALLOC_COMPLETE").source())
