# SPDX-License-Identifier: MIT
"""`vmalloc suite`: what it prints, writes and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vmalloc.cli import main
from vmalloc.facts import POOLS

KEYS = {"pools", "workers", "test", "passed", "failed", "xfailed", "usec", "lock_wait_share"}
SMALL = ("nr_threads=2", "run_test_mask=9", "test_loop_count=50")
PROGRAM = [sys.executable, "-c", "from vmalloc.cli import main; main()", "suite"]


def suite(*words: str) -> Result:
    return CliRunner().invoke(main, ["suite", *words])


def test_help_has_an_example_every_test_and_every_parameter() -> None:
    text = suite("--help").output
    assert "vmalloc suite nr_threads=64 run_test_mask=7" in text
    assert "4096 vrealloc" in text
    assert "sequential_test_order" in text


def test_it_prints_a_table_and_exits_with_0() -> None:
    done = suite(*SMALL)
    assert done.exit_code == 0, done.output
    assert done.output.count("magazine") == 3  # two tests and all
    assert "same at" in done.output


def test_json_has_a_line_per_design_and_test_and_one_for_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert (
        suite(*SMALL, "--pools", "off,magazine", "--workers", "processes", "--json", str(path)).exit_code == 0
    )
    lines = json.loads(path.read_text())
    assert [set(line) for line in lines] == [KEYS] * 6
    assert [(line["pools"], line["test"]) for line in lines][:3] == [
        ("off", "fix_size_alloc"), ("off", "random_size_alloc"), ("off", "all"),
    ]  # fmt: skip
    assert all(line["passed"] and not line["failed"] and line["workers"] == 2 for line in lines)


def test_dmesg_replaces_the_table() -> None:
    lines = suite(*SMALL, "--pools", "llist", "--dmesg").output.splitlines()
    counts = "passed: 1 failed: 0 xfailed: 0 repeat: 1 loops: 50 avg: "
    assert lines[1].startswith(f"Summary: fix_size_alloc_test {counts}")
    assert lines[-1].startswith("All test took worker1=")


def test_an_expected_failure_exits_with_0() -> None:
    done = suite("run_test_mask=64", "--pools", "magazine")
    assert done.exit_code == 0
    assert "1 xfailed" in done.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nr_threads=0"], "nr_threads=0: the value must be a number from 1 to 65535"),
        (["nr_pages=1", "speed=9"], "'speed' is no parameter; the parameters are nr_threads, "),
        (["quick"], "'quick' is neither a mode (performance, smoke, stress)"),
        (["--pools", "rbtree"], f"no pool design; the designs are {', '.join(POOLS)}, off-mutex"),
        (["--region", "much"], "'much' is no size"),
        (["--json", "/nowhere/out.json"], "there is no directory /nowhere"),
    ],
)
def test_an_error_is_one_line_and_names_what_is_allowed(words: list[str], says: str) -> None:
    done = suite(*words)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_ctrl_c_ends_it_soon_and_leaves_no_worker(workers: str) -> None:
    words = [
        "nr_threads=3",
        "run_test_mask=1",
        f"test_loop_count={1 << 40}",
        "--workers",
        workers,
        "--no-single",
    ]
    child = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(2)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: every process of the group hears it
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err.strip() == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_it_works_without_numpy() -> None:
    script = "import sys; sys.modules['numpy'] = None\nfrom vmalloc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "suite", *SMALL], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
