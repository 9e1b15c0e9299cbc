# SPDX-License-Identifier: MIT
"""Vmap blocks: vm_map_ram's per-CPU block allocator, which sits on top of the areas.

A request of at most 64 pages is rounded up to a power of two and cut from a block: an area of `block_pages`
pages aligned to its own size, owned by the CPU that made it. A block hands out its pages once, front to back,
and never reuses a dirty page; when its last used page is returned the whole area is freed. Larger requests
are ordinary areas. So a CPU's blocks fragment when long and short mappings mix:

* fragmented: no page in use and not all dirty, that is free + dirty = block_pages > dirty;
* a full purge frees every fragmented block; vm_unmap_aliases only those with less than a quarter free.

After: Linux mm/vmalloc.c, vb_alloc(), vb_free(), purge_fragmented_block() and vm_map_ram().
"""

from __future__ import annotations

from vmalloc.model.area import BLOCK, PAGE, RAM
from vmalloc.model.kernel import Kernel

MAP_PAGES_MAX = 64


def block_pages(possible_cpus: int, vmalloc_bytes: int = 128 << 30) -> int:
    """Pages of a block: a sixteenth of a CPU's share of the window, between 128 and 1024."""
    share = vmalloc_bytes // PAGE // (1 << (possible_cpus - 1).bit_length()) // 16
    return min(1024, max(128, share))


class VmapBlock:
    """One block: `free` untouched pages at the end, `dirty` returned ones, the rest in use."""

    __slots__ = ("cpu", "dirty", "free", "pages", "start")

    def __init__(self, start: int, cpu: int, pages: int) -> None:
        self.start, self.cpu, self.pages = start, cpu, pages
        self.free, self.dirty = pages, 0

    @property
    def fragmented(self) -> bool:
        return self.free + self.dirty == self.pages != self.dirty


class VmapBlocks:
    """vm_map_ram and vm_unmap_ram over a Kernel."""

    def __init__(self, kernel: Kernel, pages: int | None = None) -> None:
        self.kernel = kernel
        self.pages = pages if pages is not None else block_pages(kernel.cpus)
        self.blocks: dict[int, VmapBlock] = {}
        self.queues: dict[int, list[VmapBlock]] = {}

    def map(self, pages: int, cpu: int = 0) -> int | None:
        """Map `pages` pages; returns the start, or None if there is no room."""
        if pages > MAP_PAGES_MAX:
            area = self.kernel.alloc(pages * PAGE, PAGE, cpu, flags=RAM)
            return None if area is None else area.start
        want = 1 << (pages - 1).bit_length()
        queue = self.queues.setdefault(cpu, [])
        block = next((b for b in queue if b.free >= want), None) or self._new_block(cpu)
        if block is None:
            return None
        start = block.start + (block.pages - block.free) * PAGE
        block.free -= want
        if block.free == 0:
            queue.remove(block)
        return start

    def unmap(self, start: int, pages: int) -> None:
        """Return a mapping made by `map` with the same page count."""
        if pages > MAP_PAGES_MAX:
            self.kernel.free(start)
            return
        block = self.blocks[start - start % (self.pages * PAGE)]
        block.dirty += 1 << (pages - 1).bit_length()
        if block.dirty == block.pages:
            self._free_block(block)

    def purge_fragmented(self, everything: bool) -> int:
        """Free fragmented blocks: all of them, or only those with less than a quarter free."""
        victims = [
            block
            for block in self.blocks.values()
            if block.fragmented and (everything or block.free < block.pages // 4)
        ]
        for block in victims:
            self.queues[block.cpu].remove(block)
            self._free_block(block)
        return len(victims)

    def _new_block(self, cpu: int) -> VmapBlock | None:
        size = self.pages * PAGE
        area = self.kernel.alloc(size, size, cpu, flags=RAM | BLOCK)
        if area is None:
            return None
        block = self.blocks[area.start] = VmapBlock(area.start, cpu, self.pages)
        self.queues.setdefault(cpu, []).append(block)
        return block

    def _free_block(self, block: VmapBlock) -> None:
        del self.blocks[block.start]
        self.kernel.free(block.start)
