# SPDX-License-Identifier: MIT
"""The simulator's compiled twin and the plain-Python model decide alike, on random histories."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vmalloc.facts import WARM_LOOK_RANGES, WARM_SORT_RANGES
from vmalloc.model import PAGE, CachingAllocator, Design, Kernel
from vmalloc.model.allocator import Allocator
from vmalloc.model.presets import KERNEL_PRESETS
from vmalloc.model.purge import Purge
from vmalloc.simulate._engine import Twin
from vmalloc.simulate.design import OURS, SIMULATED_POOLS, design_named, twin_design

BASE = 1 << 40  # of the model's window: aligned to whatever is asked for, as the twin's page 0 is
PAGES = 1 << 22
WINDOW = (BASE, BASE + PAGES * PAGE)
KERNELS = [
    *KERNEL_PRESETS,
    "linux-6.9,pool_ranges_max=3",
    "linux-6.16,decay_shift=1",
    "linux-6.9,nodes_max=2",
]


def free_ranges(model: Allocator) -> list[tuple[int, int]]:
    return [((start - BASE) // PAGE, (end - BASE) // PAGE) for start, end in model.space]


class Pair:
    """The model and the twin, asked the same; pages count from the start of both."""

    def __init__(self, model: Allocator, twin: Twin, ours: bool) -> None:
        self.model, self.twin, self.ours = model, twin, ours
        self.live: list[int] = []

    def alloc(self, pages: int, align: int, cpu: int) -> None:
        area, level = self.model.attempt(pages * PAGE, align * PAGE if align > 1 else 1, cpu)  # type: ignore[attr-defined]
        assert area is not None
        start = (area.start - BASE) // PAGE
        thread = {"thread": cpu} if self.ours else {}
        assert self.twin.alloc(pages, align, cpu, **thread) == (start, area.pages, level)
        self.live.append(start)

    def free(self, at: int, cpu: int) -> None:
        start = self.live.pop(at)
        assert self.model.free(BASE + start * PAGE, cpu) is not None
        thread = {"thread": cpu} if self.ours else {}
        assert self.twin.free(start, cpu, **thread)

    def check(self) -> None:
        assert self.twin.lazy_pages == self.model.lazy_pages
        assert self.twin.live_pages == self.model.live_pages
        assert self.twin.lazy_pages_max == self.model.lazy_pages_max
        assert self.twin.nr_pooled == sum(node.pooled for node in self.model.nodes)
        assert self.twin.nr_purged == self.model.nr_purged
        assert self.twin.served == self.model.served


def kernel_pair(name: str, cpus: int) -> Pair:
    design = design_named(name)
    assert isinstance(design, Design)
    twin = Twin(twin_design(design, cpus, window_pages=PAGES))
    return Pair(Kernel(design, cpus, WINDOW), twin, ours=False)


def ours_pair(name: str, cpus: int, memory_bytes: int, lazy_max: int) -> Pair:
    design = OURS[name]
    values = twin_design(
        design, cpus, window_pages=PAGES, memory_bytes=memory_bytes, lazy_pages_fixed=lazy_max
    )
    model = CachingAllocator(design, cpus, WINDOW, memory_bytes=memory_bytes, lazy_pages_fixed=lazy_max)
    return Pair(model, Twin(values, threads=cpus), ours=True)


def churn(pair: Pair, chance: random.Random, steps: int, cpus: int, sizes: Callable[[], int]) -> None:
    """Allocations and frees by any CPU, rising and falling."""
    for _ in range(steps):
        if pair.live and chance.random() < (0.35 if len(pair.live) < 300 else 0.6):
            pair.free(chance.randrange(len(pair.live)), chance.randrange(cpus))
        else:
            align = chance.choice([1, 1, 1, 1, 2, 8, 64])
            pair.alloc(sizes(), align, chance.randrange(cpus))


def purge_in_steps(pair: Pair, chance: random.Random, cpus: int, full: bool) -> None:
    """A purge whose steps other CPUs see, the nodes filled in any order."""
    model, twin = pair.model, pair.twin
    purge = Purge(model, full)
    twin.begin(full)
    while not purge.collected:
        step = purge.advance(model)
        twin.advance(step.op, step.node)
        churn(pair, chance, chance.randrange(3), cpus, lambda: chance.choice([1, 2, 3]))
    while not purge.done:
        lane = chance.choice([at for at, parts in enumerate(purge.lanes) if parts])
        step = purge.advance(model, lane)
        twin.advance(step.op, step.node, 1)
        churn(pair, chance, chance.randrange(2), cpus, lambda: chance.choice([1, 2, 3]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernels_twin_gives_the_models_addresses(name: str, seed: int) -> None:
    chance, cpus = random.Random(seed), (1, 2, 4, 7)[seed]
    pair = kernel_pair(name, cpus)
    for _ in range(12):
        sizes = chance.choice([[2], [1, 2, 3], [2, 101], [1, 255, 256, 257, 600]])
        churn(pair, chance, 250, cpus, lambda sizes=sizes: chance.choice(sizes))  # type: ignore[misc]
        if chance.random() < 0.7:
            purge_in_steps(pair, chance, cpus, full=chance.random() < 0.2)
            pair.model.nr_purged = pair.twin.nr_purged  # steps count nothing in either
        elif chance.random() < 0.5:
            assert pair.twin.purge() == pair.model.purge().nr_purged
        else:
            assert pair.twin.shrink() == pair.model.shrink()
        pair.check()
    assert pair.twin.free_ranges() == free_ranges(pair.model)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pools", SIMULATED_POOLS)
def test_our_twin_gives_the_models_addresses(pools: str, seed: int) -> None:
    chance, cpus = random.Random(seed), (1, 2, 4)[seed % 3]
    memory = (1 << 40, 0, 64 << 20)[seed // 2]
    pair = ours_pair(f"vmalloc/{pools}", cpus, memory, lazy_max=(0, 700, 5000)[seed % 3])
    for now in range(1, 30):
        assert isinstance(pair.model, CachingAllocator)
        pair.model.now_s = now
        pair.twin.pass_time(now)
        sizes = chance.choice([[1], [1, 2, 3], [2, 100], [1, 255, 256, 257, 290, 600], list(range(1, 700))])
        churn(pair, chance, 200, cpus, lambda sizes=sizes: chance.choice(sizes))  # type: ignore[misc]
        pair.check()
    assert pair.twin.free_ranges() == free_ranges(pair.model)


@pytest.mark.parametrize("pools", SIMULATED_POOLS)
def test_our_twin_sorts_and_joins_as_the_model_does(pools: str) -> None:
    """Many neighbours become lazy at once, more than are sorted in one go, then longer ones are asked for."""
    pair = ours_pair(f"vmalloc/{pools}", 2, 1 << 40, 0)
    many = 4 * WARM_SORT_RANGES + WARM_LOOK_RANGES
    for _ in range(many):
        pair.alloc(256, 1, 0)
    for at in reversed(range(many)):
        pair.free(at, 1)
    pair.check()
    for pages in (300, 700, 256, 257, 5, 90, 4000, 1):
        pair.alloc(pages, 1, 1)
        pair.check()
    assert pair.twin.free_ranges() == free_ranges(pair.model)
