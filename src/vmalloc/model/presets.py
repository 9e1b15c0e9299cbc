# SPDX-License-Identifier: MIT
"""Presets: every allocator that the model has, by name, and how one is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vmalloc.model.allocator import WINDOW, Allocator
from vmalloc.model.caching import MEMORY_BYTES, CachingAllocator, CachingDesign
from vmalloc.model.design import KERNEL_DESIGNS, Design
from vmalloc.model.kernel import Kernel

KERNEL_PRESETS: Mapping[str, Design] = MappingProxyType({design.name: design for design in KERNEL_DESIGNS})
"""The kernel's versions: what a kernel trace can be compared with."""
PRESETS: Mapping[str, Design | CachingDesign] = MappingProxyType(
    {**KERNEL_PRESETS, "vmalloc": CachingDesign("vmalloc")}
)
"""And ours, as `vmalloc`."""


def allocator_of(
    design: Design | CachingDesign,
    cpus: int = 1,
    window: tuple[int, int] = WINDOW,
    free: Iterable[tuple[int, int]] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Allocator:
    """The allocator of a design on a machine with `cpus` CPUs.

    `free` lists the free ranges at the start, by default the whole window. `memory_bytes` is the machine's
    memory, 0 for an address space with none behind it; only ours asks.
    """
    if isinstance(design, Design):
        return Kernel(design, cpus, window, free)
    return CachingAllocator(design, cpus, window, free, memory_bytes)
