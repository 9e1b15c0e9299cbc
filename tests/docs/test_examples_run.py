# SPDX-License-Identifier: MIT
"""Every block of the README and of the user documents is tried, in a process and a folder of its own.

Python runs as it stands. So does a line `vmalloc ...`; a `pip install` names extras that exist, a `make` a
target.
A fenced block without a language is a picture. What needs PyTorch or Dask is tried by tests/api/test_torch.py
and test_dask.py, what needs the running kernel by tests/cli/test_own_kernel.py, command after command.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.sources import ROOT, text, tracked

import vmalloc
from vmalloc.cli import main

FOR_MAINTAINERS = (
    "design", "glossary", "kernel-map", "kernel-model", "recovery", "region-format", "trace-format",
    "walkthrough",
)  # fmt: skip
USER_DOCUMENTS = [
    path
    for path in tracked()
    if re.fullmatch(r"README\.md|docs/[\w-]+\.md", path) and Path(path).stem not in FOR_MAINTAINERS
]
TRIED_ELSEWHERE = ("docs/pytorch.md", "docs/dask.md", "docs/ray.md")
ITS_COMMANDS_IN_ORDER = "docs/kernel.md"
LANGUAGES = ("python", "ini", "")
SHORT = {"top": ["--once"], "suite": ["test_loop_count=10", "test_repeat_count=1"], "record": ["--seconds=0"]}
"""What is added to a command that would take minutes."""


def fenced() -> Iterator[tuple[str, str, str]]:
    """Of every fenced block: where it begins, its language, what it says."""
    for path in USER_DOCUMENTS:
        document = text(path)
        for found in re.finditer(r"(?ms)^```([^\n]*)\n(.*?)^```$", document):
            yield f"{path}:{document.count(chr(10), 0, found.start(2)) + 1}", found[1], found[2]


def lines(program: str) -> Iterator[tuple[str, list[str]]]:
    """Of every line that calls `program`, in blocks without a fence: where it stands, its words."""
    for path in USER_DOCUMENTS:
        outside = re.sub(
            r"(?ms)^```.*?^```$", lambda found: "\n" * found[0].count("\n"), text(path)
        ).splitlines()
        for number, line in enumerate(outside, 1):
            if line.startswith(f"    {program} "):
                yield f"{path}:{number}", shlex.split(line, comments=True)[1:]


def each(found: Iterator[tuple[str, Any]]) -> pytest.MarkDecorator:
    places, what = zip(*found, strict=True)
    return pytest.mark.parametrize("what", what, ids=places)


def fenced_as(language: str) -> Iterator[tuple[str, str]]:
    return ((where, code) for where, its, code in fenced() if its == language)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(vmalloc.__file__).parents[1])}


def test_every_block_has_a_language_that_is_tried() -> None:
    assert [(where, language) for where, language, _ in fenced() if language not in LANGUAGES] == []


def python_for_everybody() -> Iterator[tuple[str, str]]:
    return ((where, code) for where, code in fenced_as("python") if not where.startswith(TRIED_ELSEWHERE))


@each(python_for_everybody())
def test_python_runs(what: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(what)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def command_lines() -> Iterator[tuple[str, list[str]]]:
    return (
        (where, words) for where, words in lines("vmalloc") if not where.startswith(ITS_COMMANDS_IN_ORDER)
    )


@each(command_lines())
def test_a_command_runs(what: list[str], tmp_path: Path) -> None:
    name = f"documents-{os.getpid()}"
    command, *words = [name if word in ("NAME", "frames") else word for word in what]
    with vmalloc.Region("1M", name=name) as region:
        if command != "record" and "run.parquet" in words:
            with region.record(tmp_path / "run.parquet"):
                region.alloc(4096).release()
        process = subprocess.Popen(
            [sys.executable, "-m", "vmalloc.cli", command, *words, *SHORT.get(command, [])],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if command == "hold":
            assert process.stdout is not None
            assert process.stdout.readline().startswith("holding")
            process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=120)[1]
    assert "Traceback" not in errors
    assert process.returncode == 0 or command == "doctor"  # which may find something here


@each(lines("pip"))
def test_what_pip_installs_exists(what: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert what[0] == "install"
    for asked in re.findall(r"\[(.*?)\]", what[1]):
        assert set(asked.split(",")) <= set(extras)


@each(lines("make"))
def test_what_make_is_asked_for_exists(what: list[str]) -> None:
    assert re.search(rf"(?m)^{what[0]}:.*## ", text("Makefile"))


@each(fenced_as("ini"))
def test_a_systemd_unit_starts_a_command_that_exists(what: str) -> None:
    unit = configparser.ConfigParser(strict=True)
    unit.read_string(what)
    env, program, name, *words = shlex.split(unit["Service"]["ExecStart"])
    assert (env, program) == ("/usr/bin/env", "vmalloc")
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    command.make_context(name, words)
