# SPDX-License-Identifier: MIT
"""Every command and every option says in its help what it does; test_names.py: those in documents exist."""

from __future__ import annotations

import click
import pytest
from tests.docs.checker import commands


@pytest.mark.parametrize("name", commands())
def test_a_command_and_each_of_its_options_say_what_they_do(name: str) -> None:
    command = commands()[name]
    silent = [
        p.opts[0] for p in command.params if isinstance(p, click.Option) and not p.help and not p.hidden
    ]
    assert command.help
    assert not silent, f"vmalloc {name}: no help for {', '.join(silent)}"
