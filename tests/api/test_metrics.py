# SPDX-License-Identifier: MIT
"""Regions as Prometheus metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.conftest import PAGE

import vmalloc
from vmalloc import metrics


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    with vmalloc.Region("16M", name=f"metrics-{os.getpid()}", limit="8M", helper=False) as region:
        yield region


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, region: vmalloc.Region, **labels: str) -> float | None:
    where = {"region": region.name or region.id, "id": region.id}
    return registry.get_sample_value(f"vmalloc_{name}", where | labels)


def test_a_scrape_tells_of_a_region(region: vmalloc.Region, registry: CollectorRegistry) -> None:
    block = region.alloc(5 * PAGE)
    metrics.export(region, registry=registry)
    assert value(registry, "size_bytes", region) == 16 << 20
    assert value(registry, "limit_bytes", region) == 8 << 20
    assert value(registry, "state_bytes", region, state="busy") == 5 * PAGE
    assert value(registry, "processes", region) == 1
    assert value(registry, "failed_requests_total", region) == 0
    held = value(registry, "held_bytes", region, pid=str(os.getpid()))
    assert held is not None
    assert held >= 5 * PAGE  # and what is ready in its magazines
    block.release()


def test_states_are_the_whole_region(region: vmalloc.Region, registry: CollectorRegistry) -> None:
    metrics.export(region, registry=registry)
    states = ("busy", "cached", "pooled", "lazy", "moving", "free")
    told = [value(registry, "state_bytes", region, state=state) for state in states]
    assert sum(nbytes or 0 for nbytes in told) == region.size


def test_requests_count_up_by_level(region: vmalloc.Region, registry: CollectorRegistry) -> None:
    region.alloc(PAGE).release()
    metrics.export(region, registry=registry)
    before = value(registry, "requests_total", region, level="magazine")
    assert before == 0
    for _ in range(3):
        region.alloc(PAGE).release()
        region.alloc(PAGE).release()
        before += 2
        assert value(registry, "requests_total", region, level="magazine") == before


def test_a_failure_is_counted(region: vmalloc.Region, registry: CollectorRegistry) -> None:
    metrics.export(region, registry=registry)
    with pytest.raises(vmalloc.OutOfPages):
        region.alloc(12 << 20)
    assert value(registry, "failed_requests_total", region) == 1


def test_without_regions_it_tells_of_all_that_are_attached(registry: CollectorRegistry) -> None:
    metrics.export(registry=registry)
    with vmalloc.Region("1M", helper=False) as one, vmalloc.Region("1M", helper=False) as two:
        assert value(registry, "size_bytes", one) == value(registry, "size_bytes", two) == 1 << 20
        ids = one.id.encode(), two.id.encode()
    told = generate_latest(registry)
    assert not any(id in told for id in ids)


def test_a_closed_region_is_told_no_more(registry: CollectorRegistry) -> None:
    region = vmalloc.Region("1M", helper=False)
    metrics.export(region, registry=registry)
    assert value(registry, "size_bytes", region) == 1 << 20
    id = region.id
    region.close()
    assert id.encode() not in generate_latest(registry)


def test_a_hostile_name_is_one_label(registry: CollectorRegistry) -> None:
    with vmalloc.Region("1M", name='a"b', helper=False) as region:
        metrics.export(region, registry=registry)
        lines = generate_latest(registry).decode().splitlines()
        assert any(line.startswith('vmalloc_size_bytes{id="') and 'region="a\\"b"' in line for line in lines)


def test_it_is_not_loaded_unless_it_is_asked_for() -> None:
    code = "import vmalloc, sys; vmalloc.Region('1M'); print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
