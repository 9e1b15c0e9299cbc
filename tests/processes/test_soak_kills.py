# SPDX-License-Identifier: MIT
"""Random kills: processes do everything at once and die at any moment, yet no page is lost or owned twice.

The program is tests/core/soak_kills.c, in two builds: with hooks and assertions, where processes also die
right before a write, and the core as shipped. `make soak` runs each until 100,000 were killed, or as many as
VM_SOAK_KILLS says; with hooks once more with workers who hesitate before writes of who references a range.
What it prints, the seed first, is kept in build/soak; if it fails, an image of the region's metadata too.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.core.test_c import ROOT, build_of, build_program

from vmalloc.facts import POOLS

BUILDS = ["soak_kills", "soak_kills_released"]
KEPT = ROOT / "build" / "soak"
LONG = int(os.environ.get("VM_SOAK_KILLS", "100000"))
SHORT = 100
UNTIL_NOTICED = 5000


def soak(build: str, kills: int, *options: str, keep: Path = KEPT) -> tuple[int, str]:
    """Its exit status and what it said, once so many processes were killed."""
    program: Path = build_program(build_of("plain"), build)
    keep.mkdir(parents=True, exist_ok=True)
    log = keep / f"{build}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    with open(log, "w") as out:
        command = [str(program), "-k", str(kills), "-d", str(keep), *options]
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
    return status, log.read_text(errors="replace")


def killed(said: str) -> int:
    """How many it killed, if it found nothing."""
    done = re.search(r"^(\d+) kills in .* 0 lost, 0 duplicated, 0 hung$", said, re.MULTILINE)
    assert done, said
    return int(done[1])


@pytest.mark.timeout(600)  # the first case compiles
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("design", POOLS)
def test_processes_killed_at_random_lose_nothing(design: str, build: str) -> None:
    status, said = soak(build, SHORT, "-p", design)
    assert status == 0, said
    assert killed(said) >= SHORT


@pytest.mark.timeout(600)
def test_workers_who_hesitate_between_their_writes_lose_nothing_either() -> None:
    status, said = soak("soak_kills", SHORT, "-y")
    assert status == 0, said
    assert killed(said) >= SHORT


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [("1", r"lost: pages|which does not know"), ("2", r"but page \d+ bears the stamp of 1 |should be zeros")],
    ids=["a range that nobody claims", "a write to a page that was freed"],
)
def test_the_soak_notices(mistake: str, complaint: str, tmp_path: Path) -> None:
    status, said = soak("soak_kills_released", UNTIL_NOTICED, "-m", mistake, keep=tmp_path)
    assert status == 1, said
    assert re.search(rf"after \d+ kills, design \w+: .*(?:{complaint})", said), said
    assert re.search(r"^the region's metadata: .*\.image$", said, re.MULTILINE), said


@pytest.mark.soak
@pytest.mark.parametrize(
    ("build", "options"), [("soak_kills", []), ("soak_kills", ["-y"]), ("soak_kills_released", [])]
)
def test_a_hundred_thousand_random_kills_lose_nothing(build: str, options: list[str]) -> None:
    status, said = soak(build, LONG, *options)
    assert status == 0, said
    assert killed(said) >= LONG
