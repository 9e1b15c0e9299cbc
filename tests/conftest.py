# SPDX-License-Identifier: MIT
"""What every test gets. `make test` puts the build with hooks and assertions first on the path."""

from __future__ import annotations

import gc
import importlib.util
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from vmalloc.facts import POOLS

PAGE = resource.getpagesize()

DESIGNS = [pytest.param({"pools": name}, id=name) for name in POOLS]


def pytest_report_header() -> str:
    spec = importlib.util.find_spec("vmalloc")
    return f"vmalloc: {spec.origin if spec else 'not found; run `make test`'}"


def assert_at_rest(region: Any) -> None:
    """The invariants hold, and whatever was released can be had again."""
    region.helper = False  # at rest means its, too
    region.check(at_rest=True)
    gc.collect()
    region.shrink()
    region.check(at_rest=True)
    s = region.stats()
    assert s.free_pages + s.busy_pages == s.nr_pages
    assert s.cached_pages == s.pooled_pages == s.lazy_pages == s.moving_pages == 0


@pytest.fixture(params=DESIGNS)
def design(request: pytest.FixtureRequest) -> dict[str, str]:
    """Options of Region and AddressSpace that choose a design."""
    return dict(request.param)


@pytest.fixture
def region(design: dict[str, str]) -> Iterator[Any]:
    """64 MiB of every design, at rest again when the test is over and its blocks are gone."""
    from vmalloc import Region

    region = Region("64M", nodes=1, **design)  # type: ignore[arg-type]
    yield region
    assert_at_rest(region)
    assert region.stats().busy_pages == 0
    region.close()
