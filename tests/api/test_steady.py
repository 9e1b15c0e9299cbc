# SPDX-License-Identifier: MIT
"""The same work, done again and again, stays as warm and as small as once."""

from __future__ import annotations

import resource

import pytest
from tests.conftest import PAGE

import vmalloc
from vmalloc import facts

KIB, MIB = 1 << 10, 1 << 20

SHAPES = {
    "fits the magazines": [32 * KIB] * 20,
    "at the cap of a pool": [32 * KIB] * (facts.POOL_CAP_PAGES // 8),
    "past the cap of a pool": [32 * KIB] * 3200,
    "one page, far past the cap": [PAGE] * 12_000,
    "128 KiB": [128 * KIB] * 400,
    "the largest pooled size": [facts.POOL_PAGES_MAX * PAGE] * 80,
    "a page more": [(facts.POOL_PAGES_MAX + 1) * PAGE] * 80,
    "2 MiB": [2 * MIB] * 50,
    "16 MiB": [16 * MIB] * 8,
    "sizes of all kinds": [PAGE * (1 + 37 * i % 3000) for i in range(60)],
}


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def epoch(region: vmalloc.Region, sizes: list[int]) -> None:
    arrays = [region.empty(n, "u1") for n in sizes]
    for a in arrays:
        a[::PAGE] = 1


@pytest.mark.parametrize("prelude", [False, True], ids=["", "after an odd prelude"])
@pytest.mark.parametrize("shape", SHAPES)
def test_from_the_second_time_on_nothing_faults_and_nothing_grows(shape, prelude):
    sizes = SHAPES[shape]
    pages = sum(-(-n // PAGE) for n in sizes)
    with vmalloc.Region("2G") as region:
        if prelude:
            epoch(region, [4 * MIB + 43_000 * i for i in range(40)])
        for _ in range(2):
            epoch(region, sizes)
        resident, from_space, before = region.stats().resident_bytes, region.stats().nr_space_hit, faults()
        for _ in range(3):
            epoch(region, sizes)
        interpreters_own = 60 + 3 * len(sizes) // 10
        assert faults() - before <= 3 * pages // 100 + interpreters_own
        assert region.stats().nr_space_hit == from_space
        assert region.stats().resident_bytes <= resident + pages * PAGE // 100 + MIB
        region.check(at_rest=True)


def test_one_free_gives_back_at_most_one_step():
    with vmalloc.Region("1G", lazy_max="1M", pools="locked") as region:
        kept, freed = [], []
        for i in range(6000):
            (kept if i % 2 else freed).append(region.empty(300 * PAGE if i % 100 == 0 else PAGE, "u1"))
        most = 0
        while freed:
            before = region.stats().nr_purged_pages
            freed.pop()
            most = max(most, region.stats().nr_purged_pages - before)
        assert 0 < most <= 2 * 300
        assert region.stats().nr_purges == 0
        region.check(at_rest=True)


def test_what_is_lazy_does_not_raise_its_own_threshold():
    with vmalloc.Region("4G") as region:
        for _ in range(6):
            epoch(region, [300 * PAGE + 40_000 * i for i in range(100)])
        live = sum(-(-(300 * PAGE + 40_000 * i) // PAGE) for i in range(100))
        assert region._info()["lazy_pages_max"] <= max(2 * live, 64 * MIB // PAGE)
