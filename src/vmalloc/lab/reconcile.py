# SPDX-License-Identifier: MIT
"""Reconcile: after a miss, put the model where the kernel provably is.

The kernel has handed out `[start, start + size)`, so nothing else can be there. Whatever the model has in the
way leaves its pool, its lazy set or the purge in flight; of an area that sticks out the rest becomes free.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vmalloc.lab.events import Event
from vmalloc.lab.ledger import ledger_of
from vmalloc.lab.orders import World
from vmalloc.model import PAGE

Place = Literal["pool", "lazy", "busy", "purging", "space", "unseen"]


class Origin(NamedTuple):
    """Where the model had the range, and the node if that is a pool or a lazy set."""

    place: Place
    node: int | None = None


def claim(world: World, event: Event) -> Origin:
    """Take the event's range from wherever the model has it and make it busy."""
    space = ledger_of(world.kernel)
    start, size = event.addr, event.size
    overlapped = space.overlapping(start, size)
    origins = [evict(world, at, length) for at, length in overlapped]
    assert not overlapped or not space.overlapping(start, size)
    removed = space.discard(start, size)
    world.hold(event, origins[0].node if origins and origins[0].place == "pool" else None)
    space.rejoin(start, size)  # discard cut it out in pieces
    if origins:
        return origins[0]
    return Origin("space") if removed == size else Origin("unseen")


def evict(world: World, start: int, size: int) -> Origin:
    """Remove an area that is out of the space from its place; the space gets it back."""
    origin = _unlink(world, start, size)
    world.kernel.space.add(start, size)
    return origin


def _unlink(world: World, start: int, size: int) -> Origin:
    kernel, pages = world.kernel, size // PAGE
    if kernel.busy.unlink(start) is not None:
        kernel.live_pages -= pages
        return Origin("busy")
    for node in kernel.nodes:
        lazy = node.lazy.remove(start)
        if lazy is not None:
            kernel.lazy_pages -= pages
            return Origin("lazy", node.id)
        pool = node.pools.get(pages)
        for area in pool.areas if pool is not None else ():
            if area.start == start:
                assert pool is not None
                pool.areas.remove(area)
                return Origin("pool", node.id)
    if world.purge is not None and world.purge.drop(kernel, start):
        return Origin("purging")
    return Origin("unseen")
