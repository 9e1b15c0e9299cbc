# SPDX-License-Identifier: MIT
"""Suite, record, replay and report of this machine's own kernel: the commands of docs/kernel.md in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.kernel_work import attach_filters

import vmalloc
from vmalloc.lab.record_kernel import RecordError
from vmalloc.lab.tracefs import KPTR_RESTRICT, Tracefs

PAGE = Path(__file__).parents[2] / "docs" / "kernel.md"
SHORTER = {
    "--seconds 60 -o kernel.trace.gz": f"-o kernel.trace.gz -- {shlex.join(attach_filters(60))}",
    " smoke ": " test_loop_count=10 test_repeat_count=1 ",
}


@pytest.fixture
def own_kernel() -> None:
    if os.geteuid() != 0:
        pytest.skip("recording the kernel needs root")
    if not os.access(KPTR_RESTRICT, os.W_OK):
        pytest.skip("kernel.kptr_restrict cannot be set here")
    try:
        Tracefs().close()
    except RecordError as error:
        pytest.skip(str(error))


def commands() -> list[list[str]]:
    lines = re.findall(r"(?m)^    vmalloc (.+)$", PAGE.read_text())
    for words, shorter in SHORTER.items():
        assert any(words in line for line in lines)
        lines = [line.replace(words, shorter) for line in lines]
    return [shlex.split(line) for line in lines]


def test_the_page_has_all_four_tasks() -> None:
    assert {words[0] for words in commands()} == {"suite", "record", "replay", "report", "info"}


@pytest.mark.usefixtures("own_kernel")
def test_its_commands_lead_from_the_running_kernel_to_a_page(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(vmalloc.__file__).parents[1])}
    for words in commands():
        done = subprocess.run(
            [sys.executable, "-m", "vmalloc.cli", *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        if words[0] == "report" and find_spec("plotly") is None:
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
            assert "pip install 'vmalloc[report]'" in done.stderr
        else:
            assert done.returncode == 0, (words, done.stderr)
    written = {path.name for path in tmp_path.iterdir()}
    assert {f"kernel.{when}.vmallocinfo.gz" for when in ("before", "after")} < written
    assert "kernel.trace.gz" in written
