# SPDX-License-Identifier: MIT
"""Designs that can be simulated: every preset of the model, and ours with each pool design in front of space.

A design here is the model's, as numbers for the compiled twin. Names: those of KERNEL_PRESETS, and for ours
"vmalloc", or "vmalloc/" and the name of one of SIMULATED_POOLS.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vmalloc.facts import LAZY_BYTES_PER_CPU_BIT, POOL_PAGES_MAX, POOLS, POOLS_DEFAULT
from vmalloc.model.area import PAGE
from vmalloc.model.caching import CachingDesign
from vmalloc.model.design import Design
from vmalloc.model.presets import KERNEL_PRESETS

__all__ = ["DESIGNS", "OURS", "SIMULATED_POOLS", "design_named", "twin_design"]

SIMULATED_POOLS = POOLS
"""All of them."""
OURS = {f"vmalloc/{pools}": CachingDesign(f"vmalloc/{pools}", pools) for pools in SIMULATED_POOLS}
DESIGNS: dict[str, Design | CachingDesign] = {**KERNEL_PRESETS, **OURS}
WINDOW_PAGES = 1 << 31
"""8 TiB: never used up by a workload that anybody waits for."""
MEMORY_BYTES = 1 << 40


def design_named(name: str) -> Design | CachingDesign:
    """A design by name, `name,key=value,…` to change choices of it. Raises ValueError, one line."""
    base, *changes = name.split(",")
    if base == "vmalloc":
        base = f"vmalloc/{POOLS_DEFAULT}"
    if base not in DESIGNS:
        raise ValueError(f"there is no design {base!r}; there are {', '.join(DESIGNS)}")
    design = DESIGNS[base]
    values: dict[str, Any] = dict(_change(design, name, change) for change in changes)
    return dataclasses.replace(design, name=name, **values) if values else design


def _change(design: Design | CachingDesign, name: str, change: str) -> tuple[str, int]:
    key, _, text = change.partition("=")
    known = {f.name for f in dataclasses.fields(design) if isinstance(getattr(design, f.name), int)}
    if key not in known:
        raise ValueError(f"{name}: {key!r} is no choice of it; there are {', '.join(sorted(known))}")
    if not text.isdigit():
        raise ValueError(f"{name}: {key}={text}: a number is wanted")
    return key, int(text)


def twin_design(
    design: Design | CachingDesign,
    cpus: int,
    *,
    window_pages: int = WINDOW_PAGES,
    memory_bytes: int = MEMORY_BYTES,
    lazy_pages_fixed: int = 0,
) -> dict[str, Any]:
    """The design as the compiled twin takes it."""
    common = {"cpus": cpus, "nr_nodes": design.nodes(cpus), "window_pages": window_pages}
    if isinstance(design, Design):
        return {
            **common,
            "is_caching": 0,
            "discipline": design.pool_discipline,
            "lazy_pages_max": design.lazy_pages_max(cpus),
            "pool_pages_max": design.pool_pages_max,
            "pool_ranges_max": design.pool_ranges_max,
            "decay_shift": design.decay_shift,
            "decay_empties_small": design.decay_rounding != "down",
            "lazy_merges": design.lazy_merges,
            "has_pools": 0,
            "has_magazines": 0,
            "has_slabs": 0,
            "lazy_is_fixed": 0,
            "memory_pages": 0,
        }
    fixed = cpus.bit_length() * LAZY_BYTES_PER_CPU_BIT // PAGE
    return {
        **common,
        "is_caching": 1,
        "discipline": design.row.pools if design.row.pools in ("llist", "tagged") else "in place",
        "lazy_pages_max": lazy_pages_fixed or fixed,
        "pool_pages_max": POOL_PAGES_MAX,
        "pool_ranges_max": 0,
        "decay_shift": 2,
        "decay_empties_small": 0,
        "lazy_merges": 0,
        "has_pools": bool(design.row.pools),
        "has_magazines": design.row.magazines,
        "has_slabs": design.row.pools == "percpu",
        "lazy_is_fixed": bool(lazy_pages_fixed),
        "memory_pages": memory_bytes // PAGE,
    }
