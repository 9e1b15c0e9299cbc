# SPDX-License-Identifier: MIT
"""Design: every choice in which two versions of the kernel, or the kernel and ours, can differ.

A preset is one frozen Design. `differences()` is the table of docs/kernel-model.md: one row per choice that
is not the same in all presets, one column per preset, so that nothing about a version is stated twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

from vmalloc.model.area import PAGE

Discipline = Literal["list", "llist"]
PutBack = Literal["kept", "reversed"]
Rounding = Literal["down", "down, but 1 to 3 are emptied", "up"]
End = Literal["hot", "cold"]
Station = Literal["lazy", "pool", "magazine"]


@dataclass(frozen=True, slots=True)
class Design:
    """The choices of one version. Sizes in pages unless the name says otherwise."""

    name: str
    generation: str
    """Versions of one generation decide alike on every trace; a trace can only name the generation."""

    # nodes
    nodes_max: int = 128
    """Nodes = clamp(CPUs, 1, nodes_max); 1 means one global space and no pools."""
    zone_pages: int = 16
    """Busy areas are sharded by (start / zone) mod nodes."""
    lookup_descending: bool = False
    """Direction of the walk over the nodes when an inner address is looked up."""

    # pools
    pool_pages_max: int = 256
    pool_discipline: Discipline = "list"
    """"list": only the head is tried, a misaligned head goes to the tail. "llist": the whole chain is
    detached, one is taken, the rest is put back as a batch."""
    pool_rotates: bool = True
    """Whether the misaligned head of a list moves to its tail, or stays."""
    pool_put_back: PutBack = "kept"
    """Order of an llist's batch: "reversed" if the taker reverses the chain to find its last entry."""
    pool_cap_pages: int | None = None
    """Pages one pool keeps; above them freed ranges go to lazy. The kernel has no cap."""
    pool_cap_ranges_min: int = 0
    """... but so many ranges in any case."""
    pool_neighbours: int = 0
    """How many following nodes are asked when the own pool is empty."""
    stamp_from_space: bool = True
    """Areas from the global space are stamped with the CPU's node too ("a cache miss fills later")."""
    freed_to: Station = "lazy"
    """Where a freed range of a pooled size goes first."""
    purge_fills_pools: bool = True
    """A purge puts lazy areas into pools; else all of them go to the space."""
    skip_populate_when_full: bool = True
    """A full purge puts nothing into pools."""

    # decay
    decay_shift: int = 2
    """An ordinary purge gives back pool length >> decay_shift ..."""
    decay_rounding: Rounding = "down"
    decay_end: End = "hot"
    """... from the hot end (last added) or the cold end."""

    # lazy and purge
    lazy_bytes_per_log2_cpu: int = 32 << 20
    """Threshold = fls(CPUs) times this."""
    lazy_live_share: float = 0.0
    """The threshold is at least this share of the recent live peak."""
    lazy_merges: bool = False
    """Lazily freed neighbours are merged at once (one global lazy tree); purges then count merged ranges."""
    shelf_ranges: int = 0
    """So many lazily freed ranges above pool_pages_max stand on a shelf, where a request finds them warm."""
    shelf_slack_shift: int = 0
    """A request takes a shelf range, whole, of at most size + (size >> this)."""
    purge_pushes_ascending: bool = True
    """A purge fills pools in address order, so the head is the highest address just added."""
    rescue_purges: int = 1
    """Full purges a failing request runs, one after the other, until there is room. Ours repeats it, since
    neighbours go on meanwhile."""
    rescue_gently: bool = False
    """An ordinary purge comes before the full ones."""
    rescue_asks_all: bool = False
    """After each of them every level is asked again, not only the space."""
    shrink_rotates: bool = False
    """Shrinking starts at a rotating node."""
    shrink_purges: bool = False
    """Shrinking is a full purge, lazy ranges included; else only pools are emptied."""

    # space
    fit_is_exact: bool = False
    """An alignment above a page takes the lowest place that fits; else one in a range of size + align - 1."""

    # ours: a magazine per thread in front of the pools
    magazine_ranges_max: int = 0
    """Most ranges of one size in a thread's magazine. Its cap starts at one and doubles at an overflow."""
    magazine_budget_pages: int = 0
    """By so many pages all caps of one thread may grow."""
    magazine_refill_max: int = 0
    """Most ranges a miss takes from a pool; half the cap plus one, if that is less."""
    magazine_stock_pages: int = 0
    """A miss that comes to the space takes twice as many ranges as the last of its size did, up to this."""

    # vmalloc-level
    guard_pages: int = 1

    def nodes(self, cpus: int) -> int:
        """How many nodes a machine with so many possible CPUs has."""
        return max(1, min(cpus, self.nodes_max))

    def lazy_pages_max(self, cpus: int, peak_pages: int = 0) -> int:
        """The lazy backlog above which a free asks for a purge."""
        fixed = cpus.bit_length() * self.lazy_bytes_per_log2_cpu // PAGE
        return max(fixed, int(peak_pages * self.lazy_live_share))

    def pool_capacity(self, pages: int) -> int | None:
        """How many ranges of so many pages one pool keeps; None: any number."""
        if self.pool_cap_pages is None:
            return None
        return max(self.pool_cap_pages // pages, self.pool_cap_ranges_min)

    def decay_quota(self, length: int) -> int:
        """How many of a pool's entries an ordinary purge gives back."""
        if self.decay_rounding == "up":
            return -(-length >> self.decay_shift)
        quota = length >> self.decay_shift
        if quota == 0 and self.decay_rounding != "down":
            return length
        return quota


_LINUX_68 = Design(
    "linux-6.8",
    "to 6.8",
    nodes_max=1,
    pool_pages_max=0,
    stamp_from_space=False,
    lazy_merges=True,
    decay_shift=0,
)
_PATCH_V3 = Design("patch-v3", "6.9 to 6.15", decay_rounding="down, but 1 to 3 are emptied")
_LINUX_69 = Design("linux-6.9", "6.9 to 6.15", decay_rounding="down, but 1 to 3 are emptied")
_LINUX_616 = Design("linux-6.16", "6.16 and later", lookup_descending=True)
_LLIST = Design(
    "llist",
    "llist",
    pool_discipline="llist",
    pool_put_back="reversed",
    lookup_descending=True,
)
_VMALLOC = Design(
    "vmalloc",
    "vmalloc",
    lookup_descending=True,
    pool_rotates=False,
    pool_cap_pages=8192,
    pool_cap_ranges_min=16,
    pool_neighbours=127,
    stamp_from_space=False,
    freed_to="magazine",
    purge_fills_pools=False,
    decay_rounding="up",
    decay_end="cold",
    lazy_live_share=0.25,
    shelf_ranges=64,
    shelf_slack_shift=3,
    rescue_purges=5,
    rescue_gently=True,
    rescue_asks_all=True,
    shrink_rotates=True,
    shrink_purges=True,
    fit_is_exact=True,
    magazine_ranges_max=30,
    magazine_budget_pages=(64 << 20) // PAGE,
    magazine_refill_max=16,
    magazine_stock_pages=256,
    guard_pages=0,
)

PRESETS: Mapping[str, Design] = MappingProxyType(
    {design.name: design for design in (_LINUX_68, _PATCH_V3, _LINUX_69, _LINUX_616, _LLIST, _VMALLOC)}
)
KERNEL_PRESETS = ("linux-6.8", "patch-v3", "linux-6.9", "linux-6.16", "llist")
"""The presets a kernel trace can be compared with."""


def differences() -> list[tuple[str, list[str]]]:
    """(choice, value in each preset) for every choice that is not the same in all presets."""
    rows = []
    for field in fields(Design):
        values = [str(getattr(design, field.name)) for design in PRESETS.values()]
        if field.name != "name" and len(set(values)) > 1:
            rows.append((field.name, values))
    return rows
