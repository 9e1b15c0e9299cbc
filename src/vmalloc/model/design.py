# SPDX-License-Identifier: MIT
"""Design: every choice in which two versions of the kernel can differ.

A preset is one frozen Design. `differences()` is the table of docs/kernel-model.md: one row per choice that
is not the same in all of them, one column per preset, so that nothing about a version is stated twice. What
all versions do alike is in kernel.py and in the stations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from vmalloc.model.area import PAGE
from vmalloc.model.pool import Discipline

Rounding = Literal["down", "down, but 1 to 3 are emptied"]


@dataclass(frozen=True, slots=True)
class Design:
    """The choices of one version. Sizes in pages unless the name says otherwise."""

    name: str
    generation: str
    """Versions of one generation decide alike on every trace; a trace can only name the generation."""

    # nodes
    nodes_max: int = 128
    """Nodes = clamp(CPUs, 1, nodes_max); 1 means one global space and no pools."""
    lookup_descending: bool = False
    """Direction of the walk over the nodes when an inner address is looked up."""

    # pools
    pool_pages_max: int = 256
    """The largest size that a purge puts into pools."""
    pool_discipline: Discipline = "list"
    """What a taker does to the entries that it does not get: pool.py."""
    pool_ranges_max: int = 0
    """A purge puts no more areas into one pool; 0: no limit. No kernel has one; a draft of February 2024
    had."""
    decay_shift: int = 2
    """An ordinary purge gives back pool length >> decay_shift ..."""
    decay_rounding: Rounding = "down"

    # lazy
    lazy_bytes_per_log2_cpu: int = 32 << 20
    """Threshold = fls(CPUs) times this."""
    lazy_merges: bool = False
    """Lazily freed neighbours are merged at once (one global lazy tree); purges then count merged ranges."""

    def nodes(self, cpus: int) -> int:
        """How many nodes a machine with so many possible CPUs has."""
        return max(1, min(cpus, self.nodes_max))

    def lazy_pages_max(self, cpus: int) -> int:
        """The lazy backlog above which a free asks for a purge."""
        return cpus.bit_length() * self.lazy_bytes_per_log2_cpu // PAGE

    def decay_quota(self, length: int) -> int:
        """How many of a pool's entries an ordinary purge gives back."""
        quota = length >> self.decay_shift
        if quota == 0 and self.decay_rounding != "down":
            return length
        return quota


KERNEL_DESIGNS = (
    Design("linux-6.8", "to 6.8", nodes_max=1, pool_pages_max=0, lazy_merges=True),
    Design("patch-v3", "6.9 to 6.15", decay_rounding="down, but 1 to 3 are emptied"),
    Design("linux-6.9", "6.9 to 6.15", decay_rounding="down, but 1 to 3 are emptied"),
    Design("linux-6.16", "6.16 and later", lookup_descending=True),
    Design("llist", "llist", pool_discipline="llist", lookup_descending=True),
)


def differences() -> list[tuple[str, list[str]]]:
    """(choice, value in each kernel preset) for every choice that is not the same in all of them."""
    rows = []
    for field in fields(Design):
        values = [str(getattr(design, field.name)) for design in KERNEL_DESIGNS]
        if field.name != "name" and len(set(values)) > 1:
            rows.append((field.name, values))
    return rows
