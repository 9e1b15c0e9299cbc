# SPDX-License-Identifier: MIT
"""A neighbour that scribbles over the region's metadata: errors and wrong data, but no crash and no hang.

`tests/core/test_hostile.c` does it to the core, in builds with hooks and sanitizers; here it does it to the
core as shipped, and a like neighbour to Python. A failure names its seed; what runs in parallel is never
quite the same again, so a seed that failed is worth some more runs.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import random
import struct
import time
from typing import Any

import pytest
from tests.core.test_c import build_of, build_program, run
from tests.processes.workers import WAIT_S

import vmalloc
from vmalloc.facts import POOL_DESIGNS

PAGES = 3000
NR_WORKERS = 2

#: What a call may raise in such company.
ALLOWED = (vmalloc.VmallocError, KeyError, BufferError)

EDGES = [0, 1, 255, 256, 257, PAGES - 1, PAGES, PAGES + 1, (1 << 30) - 1, 1 << 32, (1 << 64) - 1]


def work_once(region: vmalloc.Region, held: list[Any], dice: random.Random) -> None:
    """One call, whichever it is. What it hands out is written to: it must lie in the mapping."""
    what = dice.randrange(13)
    if what <= 2:
        block = region.alloc(dice.randint(1, 400) * mmap.PAGESIZE)
        view = memoryview(block)
        view[0] = view[-1] = 1
        held[dice.randrange(len(held))] = block
    elif what == 3:
        a = region.zeros(dice.randint(1, 3000), "u1")
        a[:] = 3
        held[dice.randrange(len(held))] = a
    elif what == 4:
        held[dice.randrange(len(held))] = None
    elif what == 5:
        region["name"] = region.full(10, 5)
    elif what == 6:
        a = region["name"]
        a.flat[:1] = 0
    elif what == 7:
        dice.choice([region.purge, region.shrink, region.recover, region.names])()
    elif what == 8:
        region.check(at_rest=dice.random() < 0.5, repair=dice.random() < 0.5)
    elif what == 9:
        region.stats()
        region.ranges()
    elif what == 10:
        held[dice.randrange(len(held))] = vmalloc.ref(region.full(10, 7)).get()
    elif what == 11:
        look = vmalloc.Region.attach(region.fileno(), readonly=True)
        look.stats()
        look.close()
    else:
        region.expire_leases()


def work(region: vmalloc.Region, seed: int, ends: float) -> None:
    dice = random.Random(seed)
    held: list[Any] = [None] * 30
    region.lock_timeout_s = 0.01
    while time.monotonic() < ends:
        with contextlib.suppress(ALLOWED):
            work_once(region, held, dice)


def scribble(memory: mmap.mmap, nr_bytes: int, dice: random.Random) -> None:
    # most of what matters is in front, and where the first pages' words and holders are
    at = dice.randrange(dice.choice([1 << 13, nr_bytes // 4, nr_bytes]) // 8) * 8
    if dice.random() < 0.5:  # only where somebody wrote before: there are few such places
        for _ in range(50):
            if memory[at : at + 8] != bytes(8):
                break
            at = dice.randrange(nr_bytes // 8) * 8
    old = struct.unpack_from("Q", memory, at)[0]
    value = dice.choice(
        [0, old ^ 1 << dice.randrange(64), dice.getrandbits(64), dice.choice(EDGES), old + 1, old - 1]
    )
    struct.pack_into("Q", memory, at, value & (1 << 64) - 1)


def neighbourhood(seed: int, seconds: float) -> None:
    """A region, who works in it, and who scribbles over it: all of one process tree."""
    dice = random.Random(seed)
    region = vmalloc.Region(
        PAGES * mmap.PAGESIZE,
        nodes=2,
        max_threads=8,
        pools=dice.choice([row.name for row in POOL_DESIGNS if row.pools]),
    )
    ends = time.monotonic() + seconds
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(region, seed + i, ends)) for i in range(NR_WORKERS)]
    info = region._info()  # pyright: ignore[reportPrivateUsage]
    nr_bytes = info["total_bytes"] - PAGES * mmap.PAGESIZE
    for worker in workers:
        worker.start()
    with mmap.mmap(region.fileno(), nr_bytes) as memory:
        while time.monotonic() < ends:
            for _ in range(20):
                scribble(memory, nr_bytes, dice)
            time.sleep(0.002)
    for worker in workers:
        worker.join(WAIT_S)
        assert worker.exitcode == 0, f"seed {seed}: a worker ended with {worker.exitcode}"
    os._exit(0)  # the region is beyond repair; its detach was tried by the workers


def survive(seed: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMALLOC_ASSERTIONS", "0")  # some compare what a neighbour may have written
    process = multiprocessing.get_context("spawn").Process(target=neighbourhood, args=(seed, seconds))
    process.start()
    process.join(WAIT_S + seconds)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, f"seed {seed}: ended with {process.exitcode}"


@pytest.mark.parametrize("seed", [1, 2])
def test_python_survives_a_neighbour_that_scribbles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    survive(seed, 1.0, monkeypatch)


@pytest.mark.timeout(1200)  # the first program of the build compiles everything
def test_the_core_as_shipped_survives_a_neighbour_that_scribbles() -> None:
    finished = run([build_program(build_of("plain"), "hostile_released"), "4"])
    assert finished.returncode == 0, finished.stdout


@pytest.mark.soak
def test_python_survives_thousands_of_seconds_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = int(os.environ.get("VM_HOSTILE_SEED", "1000"))
    for seed in range(first, first + 100):
        survive(seed, 5.0, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("flavour", ["plain", "asan"])
@pytest.mark.parametrize("program", ["test_hostile", "hostile_released"])
def test_the_core_survives_it_for_minutes(program: str, flavour: str) -> None:
    if flavour == "asan" and program == "hostile_released":
        pytest.skip("there is no such build: a sanitizer has the hooks too")
    seconds = os.environ.get("VM_HOSTILE_SECONDS", "600")
    finished = run([build_program(build_of(flavour), program), seconds], timeout_s=float(seconds) * 2 + 300)
    assert finished.returncode == 0, finished.stdout
