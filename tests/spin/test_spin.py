# SPDX-License-Identifier: MIT
"""The protocol's models: spin visits every interleaving with death before any write.

Each model is exhausted at a small size, and each deliberate mistake in it must be found, so that a
model which can no longer fail is noticed. A model is compiled once; which mistake (`bug == n` in the
model), how large and how many deaths is read from the environment. To look at one by hand:

    spin -a llist.pml && gcc -DSAFETY -w -o pan pan.c
    BUG=3 SIZE=0 DEATHS=1 ./pan -m100000 && BUG=3 SIZE=0 DEATHS=1 ./pan -r
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = sorted(path.stem for path in HERE.glob("*.pml"))

pytestmark = [
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin not installed"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc not installed"),
]

#: (deaths, size) where (1, 0) is not enough for the mistake to show.
NEEDED = {
    "BUG_TAKER_STEALS": (2, 0),
    "BUG_CHECK_BEFORE_MARK": (1, 1),
    "BUG_TRUST_ENTRY": (1, 1),
    "BUG_REISSUE_CLEARS_DRAIN": (1, 1),
    "BUG_DRAIN_NO_WAIT": (1, 1),
    "BUG_FOREIGN_STORE": (1, 1),
    "BUG_RESET_AFTER": (2, 0),
    "BUG_SHARING_BY_BITS": (2, 0),
    "BUG_LEASES_FIRST": (0, 2),
    "BUG_MEND_NO_SCAN": (1, 1),
    "BUG_MEND_NO_DUE": (2, 0),
    "BUG_BY_INDEX": (0, 3),
    "BUG_ENTRY_FIRST": (1, 1),
    "BUG_LOCK_THIEF_NO_SCAN": (1, 2),
    "BUG_SCAN_FIRST": (1, 2),
    "BUG_CLEARED_LAST": (1, 2),
    "BUG_NAME_LEAVES": (1, 1),
    "BUG_LEFT_UNMENDED": (1, 1),
    "BUG_LINK_UNLISTED": (0, 2),
    "BUG_REBUILD_NO_SCAN": (0, 1),
    "BUG_FORGET_MOVING": (1, 1),
}

#: (deaths, size) that are exhausted, and what `make soak` adds.
SMALL = {
    "share": [(1, 0), (2, 0), (1, 1)],
    "lease": [(1, 0), (2, 0), (0, 1), (0, 3)],
    "leave": [(1, 0), (2, 0), (1, 1), (0, 2)],
    "fork": [(1, 0), (2, 0)],
    "lazy_purge": [(1, 0), (0, 1), (0, 2)],
}
SOAK = {
    "share": [(2, 1), (1, 2)],
    "lease": [(1, 1), (0, 2), (1, 3)],
    "leave": [(2, 1), (1, 2)],
    "fork": [(1, 1)],
    "lazy_purge": [(1, 1), (1, 2), (2, 0)],
}


def cases(
    sizes: dict[str, list[tuple[int, int]]], others: list[tuple[int, int]]
) -> list[tuple[str, int, int]]:
    return [(model, *size) for model in MODELS for size in sizes.get(model, others)]


def bugs(model: str) -> dict[str, int]:
    text = (HERE / f"{model}.pml").read_text()
    return {name: int(number) for name, number in re.findall(r"#define (BUG_\w+) \(bug == (\d+)\)", text)}


Search = Callable[..., str]


def searcher(tmp_path_factory: pytest.TempPathFactory, *defines: str) -> Search:
    built: dict[str, Path] = {}

    def build(model: str) -> Path:
        folder = tmp_path_factory.mktemp(model)
        for command in (
            ["spin", "-a", str(HERE / f"{model}.pml")],
            # -O0: the verifier is one huge function, optimising it takes longer than running it
            ["gcc", "-O0", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=8000", *defines, "-o", "pan", "pan.c"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        return folder

    def run(model: str, deaths: int = 1, size: int = 0, bug: int = 0) -> str:
        folder = built[model] = built.get(model) or build(model)
        env = os.environ | {"BUG": str(bug), "SIZE": str(size), "DEATHS": str(deaths)}
        command = ["./pan", "-m100000", "-w20"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert "errors:" in done.stdout, (done.returncode, done.stdout, done.stderr)
        for trouble in ("max search depth too small", "out of memory", "reached -DMEMLIM"):
            assert trouble not in done.stdout, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """search(model, deaths, size, bug): the report of a complete search."""
    return searcher(tmp_path_factory)


@pytest.fixture(scope="session")
def search_all(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """As search(), without partial-order reduction."""
    return searcher(tmp_path_factory, "-DNOREDUCE")


def assert_holds(report: str) -> None:
    assert "errors: 0" in report, report
    assert "Search not completed" not in report, report
    states = re.search(r"(\d+) states, stored", report)
    assert states, report
    assert int(states[1]) > 20_000, report  # a model that stops early proves nothing


def test_every_model_has_deliberate_mistakes_with_numbers_of_their_own():
    for model in MODELS:
        numbers = list(bugs(model).values())
        assert numbers, model
        assert numbers == list(range(1, len(numbers) + 1)), model
        assert len(numbers) == len(set(re.findall(r"\bBUG_\w+", (HERE / f"{model}.pml").read_text()))), model


@pytest.mark.parametrize(("model", "deaths", "size"), cases(SMALL, [(1, 0)]))
def test_no_interleaving_with_a_death_breaks_the_protocol(
    model: str, deaths: int, size: int, search: Search
) -> None:
    assert_holds(search(model, deaths, size))


#: Small enough for a search that leaves out no order of independent steps.
@pytest.mark.parametrize(("model", "deaths", "size"), [("share", 1, 0), ("lease", 1, 0), ("fork", 1, 0)])
def test_the_verdict_does_not_rest_on_leaving_out_interleavings(
    model: str, deaths: int, size: int, search_all: Search
) -> None:
    assert_holds(search_all(model, deaths, size))


@pytest.mark.parametrize(("model", "bug"), [(model, bug) for model in MODELS for bug in bugs(model)])
def test_a_deliberate_mistake_is_found(model: str, bug: str, search: Search) -> None:
    deaths, size = NEEDED.get(bug, (1, 0))
    assert "errors: 1" in search(model, deaths, size, bugs(model)[bug])


@pytest.mark.soak
@pytest.mark.parametrize(("model", "deaths", "size"), cases(SOAK, [(1, 1), (2, 0)]))
def test_nor_at_larger_sizes_or_with_two_deaths(model: str, deaths: int, size: int, search: Search) -> None:
    assert_holds(search(model, deaths, size))
