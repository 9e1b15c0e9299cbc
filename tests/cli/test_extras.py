# SPDX-License-Identifier: MIT
"""The command without its extras: one line that says what to install, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmalloc.cli import COMMANDS
from vmalloc.cli.manners import EXTRAS

WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
sys.argv = ["vmalloc", *{arguments!r}]
from vmalloc.cli import main
main()
"""


LESS_WORK = {"compare": ["--seeds", "1", "--designs", "llist"]}  # has all it needs, and works long


def run(missing: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(missing=missing, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("missing", [*EXTRAS, "all of them"])
def test_the_help_lists_every_command_whatever_is_missing(missing: str) -> None:
    done = run(list(EXTRAS) if missing == "all of them" else [missing], "--help")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "--json"])
def test_a_command_without_what_it_needs_says_what_to_install(name: str, option: str) -> None:
    done = run(list(EXTRAS), name, *LESS_WORK.get(name, []), option)
    assert "Traceback" not in done.stderr
    if option == "--help":
        assert (done.returncode, done.stderr) == (0, "")
    elif done.returncode and "needs" in done.stderr:
        assert "pip install 'vmalloc[" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_replay_needs_the_lab() -> None:
    done = run(["sortedcontainers"], "replay", __file__)
    assert done.returncode == 2
    assert done.stderr == "Error: this needs sortedcontainers: pip install 'vmalloc[lab]'\n"


@pytest.mark.parametrize("missing", ["numpy", "pyarrow"])
@pytest.mark.parametrize("words", [["no-such-region"], ["--kernel", "-o", "x.parquet"]])
def test_recording_columns_needs_the_lab_whatever_of_it_is_missing(missing: str, words: list[str]) -> None:
    if "--kernel" in words and os.geteuid() != 0:
        pytest.skip("recording the kernel needs root")
    done = run([missing], "record", *words)
    assert (done.returncode, done.stderr) == (
        2,
        f"Error: this needs {missing}: pip install 'vmalloc[lab]'\n",
    )
