# SPDX-License-Identifier: MIT
"""Busy: areas in use, sharded by address.

A node's busy set holds the areas whose start lies in its zones. An area is found by its start with one look.
An inner address may lie further than a zone from its start and then hashes to another node, so a lookup
walks the ring of nodes until one of them holds an area that contains the address: ascending up to 6.15,
descending since 6.16 (the start lies at a lower address).

After: Linux mm/vmalloc.c, find_vmap_area(), find_unlink_vmap_area() and addr_to_node_id().
"""

from __future__ import annotations

from bisect import bisect_right

from vmalloc.model.area import Area

ZONE_PAGES = 16
"""A node's zones are so long; the node of an address is (address / zone) mod nodes."""


class Busy:
    """Busy areas by start; the node of an address; the walk that finds the area around an address."""

    __slots__ = ("_ordered", "areas", "descending", "nr_nodes", "zone_bytes")

    def __init__(self, nr_nodes: int, zone_bytes: int, descending: bool) -> None:
        self.areas: dict[int, Area] = {}
        self.nr_nodes = nr_nodes
        self.zone_bytes = zone_bytes
        self.descending = descending
        self._ordered: list[list[int]] | None = None

    def copy(self) -> Busy:
        other = Busy(self.nr_nodes, self.zone_bytes, self.descending)
        other.areas = self.areas.copy()
        return other

    def node_of(self, address: int) -> int:
        """The node whose busy set would hold an area starting here."""
        return address // self.zone_bytes % self.nr_nodes

    def insert(self, area: Area) -> None:
        self.areas[area.start] = area
        self._ordered = None

    def changed(self) -> None:
        """Say that `areas` was changed directly."""
        self._ordered = None

    def unlink(self, start: int) -> Area | None:
        """Remove and return the area that starts here, or None."""
        self._ordered = None
        return self.areas.pop(start, None)

    def find(self, address: int) -> tuple[Area | None, int]:
        """The area that contains `address`, and how many nodes were asked."""
        order = self._by_node()
        step = -1 if self.descending else 1
        first = self.node_of(address)
        for asked in range(self.nr_nodes):
            starts = order[(first + step * asked) % self.nr_nodes]
            place = bisect_right(starts, address) - 1
            if place >= 0 and address < self.areas[starts[place]].end:
                return self.areas[starts[place]], asked + 1
        return None, self.nr_nodes

    def _by_node(self) -> list[list[int]]:
        """The starts in each node, in order; kept until the next change."""
        if self._ordered is None:
            self._ordered = [[] for _ in range(self.nr_nodes)]
            for start in sorted(self.areas):
                self._ordered[self.node_of(start)].append(start)
        return self._ordered
