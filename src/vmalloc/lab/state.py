# SPDX-License-Identifier: MIT
"""Start and end states: what an allocator looked like at one moment.

A guest's dump (`NAME.state0`, format in the data folder's README) shows everything: busy and lazy areas,
every pool in order, the free ranges. `/proc/vmallocinfo` shows busy and lazy areas only. Either becomes a
model kernel to start a replay from; a dump taken at the end is compared with the kernel the replay ended in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from vmalloc.facts import NODES_MAX
from vmalloc.lab.files import StrPath, chunks, open_bytes
from vmalloc.lab.restore import ADDRESSES
from vmalloc.lab.vmallocinfo import Area as Shown
from vmalloc.lab.vmallocinfo import VmallocInfo
from vmalloc.model import PAGE, Area, Design, Kernel, Space
from vmalloc.model.area import NO_NODE, RAM, decode_flags

TAGS = {"B": "busy", "L": "lazy", "P": "pool", "F": "free"}


class StateError(ValueError):
    """The file is not a state dump; the message names the line."""


@dataclass
class State:
    """An allocator at rest. Pools list their areas head first; an area's node is its stamp."""

    nr_nodes: int = 1
    zone_bytes: int = 16 * PAGE
    lazy_pages: int = 0
    busy: list[Area] = field(default_factory=list)
    lazy: list[tuple[int, Area]] = field(default_factory=list)
    pools: dict[tuple[int, int], list[Area]] = field(default_factory=dict)
    free: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, kernel: Kernel) -> State:
        """The state a model kernel is in."""
        return cls(
            kernel.nr_nodes,
            kernel.busy.zone_bytes,
            kernel.lazy_pages,
            sorted(kernel.busy.areas.values()),
            [(node.id, area) for node in kernel.nodes for area in sorted(node.lazy.areas.values())],
            {
                (node.id, pages): list(reversed(pool.areas))
                for node in kernel.nodes
                for pages, pool in sorted(node.pools.items())
                if pool.areas
            },
            list(kernel.space),
        )

    def kernel(self, design: Design, window: tuple[int, int], cpus: int | None = None) -> Kernel:
        """A model kernel in this state. A design without pools gets pooled areas as free ranges.

        Where the model has fewer nodes than the dump, stamps go round; with one node there are none.
        """
        kernel = Kernel(design, cpus or self.nr_nodes, window, self.free)
        for area in self.busy:
            kernel.busy.insert(_stamped(area, kernel.nr_nodes))
            kernel.live_pages += area.pages
        for node, area in self.lazy:
            kernel.nodes[node % kernel.nr_nodes].lazy.add(_stamped(area, kernel.nr_nodes))
        for (node, pages), areas in self.pools.items():
            if kernel.nr_nodes == 1:
                kernel.reclaim(areas)
            else:
                for area in reversed(areas):
                    pool = kernel.nodes[node % kernel.nr_nodes].pool(pages)
                    pool.push(_stamped(area, kernel.nr_nodes))
        kernel.lazy_pages = self.lazy_pages
        return kernel


def _stamped(area: Area, nr_nodes: int) -> Area:
    """The area with a stamp that a machine with so many nodes may have."""
    if area.node == NO_NODE or (nr_nodes > 1 and area.node < nr_nodes):
        return area
    return area._replace(node=NO_NODE if nr_nodes == 1 else area.node % nr_nodes)


def read_state(path: StrPath) -> State:
    """Read a guest's dump, compressed or not.

    Raises StateError if it is not one, or says what cannot be: what is left out would be missed later.
    """
    state = State()
    shown: list[tuple[int, int, int]] = []  # of each area: start, end, line
    damage: list[str] = []
    with open_bytes(path) as stream:
        lines = b"".join(chunks(stream, damage)).decode("ascii", "replace").split("\n")
    if damage:
        raise StateError(f"{path}: {damage[0].partition(';')[0]}")
    for number, text in enumerate(lines, 1):
        line = text.strip()
        try:
            if line.startswith("# nr_vmap_nodes"):
                _read_header(state, line)
            elif line and not line.startswith("#"):
                shown.append((*_read_line(state, line), number))
        except (KeyError, ValueError):
            raise StateError(f"{path}: line {number}: not a line of a state dump: {line[:60]!r}") from None
    if not state.free and not state.busy:
        raise StateError(f"{path}: no area in it: not a state dump")
    for (_, end, first), (start, _, second) in pairwise(sorted(shown)):
        if start < end:
            raise StateError(f"{path}: damaged: the areas of lines {first} and {second} overlap")
    return state


def _read_header(state: State, line: str) -> None:
    values = dict(word.split("=", 1) for word in line.split() if "=" in word)
    state.nr_nodes = _within(int(values["nr_vmap_nodes"]), 1, NODES_MAX)
    state.zone_bytes = _within(int(values["zone"]), 1, ADDRESSES)
    state.lazy_pages = _within(int(values["lazy_nr"]), 0, ADDRESSES // PAGE)


def _read_line(state: State, line: str) -> tuple[int, int]:
    """Add what the line shows, and return where it lies. KeyError or ValueError: it cannot be."""
    tag, *words = line.split()
    if len(words) != 5:
        raise ValueError
    node, pages, start, end = int(words[0]), int(words[1]), int(words[2], 16), int(words[3], 16)
    _within(end, _within(start, 0, ADDRESSES) + 1, ADDRESSES)
    stamp, flags = decode_flags(_within(int(words[4], 16), 0, ADDRESSES))
    area = Area(start, end - start, stamp, flags)
    if TAGS[tag] == "free":
        state.free.append((start, end))
        return start, end
    _within(node, 0, state.nr_nodes - 1)
    if (start | area.size) % PAGE or (tag == "P" and area.pages != pages):
        raise ValueError
    if tag == "B":
        state.busy.append(area)
    elif tag == "L":
        state.lazy.append((node, area))
    else:
        state.pools.setdefault((node, pages), []).append(area)
    return start, end


def _within(number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise ValueError
    return number


def state_of_vmallocinfo(info: VmallocInfo, window: tuple[int, int], nr_nodes: int) -> State:
    """What a snapshot tells: what is busy and what is lazy. What lies between is unknown: free, or in a pool.

    Stamps are not shown; areas that are in use or lazy belong to no node until they are seen again.
    """
    state = State(nr_nodes)
    shown = list(_apart(sorted((a for a in info if a.start), key=lambda area: area.start)))
    state.busy = [
        Area(a.start, a.size, flags=RAM if a.kind == "vm_map_ram" else 0)
        for a in shown
        if a.kind != "unpurged"
    ]
    state.lazy = [
        (a.start // state.zone_bytes % nr_nodes, Area(a.start, a.size)) for a in shown if a.kind == "unpurged"
    ]
    state.lazy_pages = sum(area.pages for _, area in state.lazy)
    return state


def _apart(areas: list[Shown]) -> Iterator[Shown]:
    """The areas of a snapshot that can be true: as long as their sizes say, and none within another."""
    end = 0
    for area in areas:
        if area.end - area.start == area.size > 0 and area.start % PAGE == 0 and area.start >= end:
            yield area
            end = area.end


@dataclass(frozen=True)
class EndDifference:
    """How a replay's end differs from the kernel's dump: per part, entries only here and only there.

    `untraced` are areas that are busy in the dump although no event ever named them (per-CPU areas have no
    alloc event); the trace cannot show them, and they are left out of `busy` and `free`.
    """

    busy: tuple[int, int]
    lazy: tuple[int, int]
    pooled: tuple[int, int]
    pools_in_other_order: int
    free: tuple[int, int]
    lazy_pages: int
    stamps: int
    untraced: int

    @property
    def equal(self) -> bool:
        """Whether everything that the trace can show is the same, pools in order."""
        parts = (self.busy, self.lazy, self.pooled, self.free)
        return not any(map(any, parts)) and not (self.pools_in_other_order or self.lazy_pages or self.stamps)


def compare(ours: State, theirs: State, named: Collection[int] = ()) -> EndDifference:
    """Compare a replay's end with a dump. `named` are the starts that some event named."""
    known = {area.start for area in ours.busy} | set(named)
    untraced = {area.start: area for area in theirs.busy if area.start not in known}
    free = Space(ours.free)
    for area in untraced.values():
        free.discard(area.start, area.size)
    stamps = {area.start: area.node for area in theirs.busy}
    return EndDifference(
        _both(_places(ours.busy), _places(a for a in theirs.busy if a.start not in untraced)),
        _both(_lazy_places(ours), _lazy_places(theirs)),
        _both(_pool_places(ours), _pool_places(theirs)),
        _in_other_order(ours, theirs),
        _both(free, theirs.free),
        ours.lazy_pages - theirs.lazy_pages,
        sum(stamps.get(area.start, area.node) != area.node for area in ours.busy),
        len(untraced),
    )


def _both(left: Iterable[Hashable], right: Iterable[Hashable]) -> tuple[int, int]:
    ours, theirs = Counter(left), Counter(right)
    return (ours - theirs).total(), (theirs - ours).total()


def _places(areas: Iterable[Area]) -> list[tuple[int, int]]:
    return [(area.start, area.size) for area in areas]


def _lazy_places(state: State) -> list[tuple[int, int, int]]:
    return [(node, area.start, area.size) for node, area in state.lazy]


def _pool_places(state: State) -> list[tuple[int, int, int]]:
    return [(node, area.start, area.size) for (node, _), areas in state.pools.items() for area in areas]


def _in_other_order(ours: State, theirs: State) -> int:
    """Pools that hold the same areas in another order."""
    pairs = [(_places(areas), _places(theirs.pools.get(key, []))) for key, areas in ours.pools.items()]
    return sum(left != right and sorted(left) == sorted(right) for left, right in pairs)
