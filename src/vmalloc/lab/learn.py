# SPDX-License-Identifier: MIT
"""Learn: what a trace gives away about a start state that nobody showed.

At first nothing is known: neither which ranges are free, nor what the pools hold, nor who is in use. Every
answer of the kernel is evidence, and three inferences carry most of the weight:

* The space is lowest-address first fit. A request served from the space at A proves that nothing unseen below
  A can hold so much: the *frontier* of that length is A.
* A pool whose size was served from the space although nothing was misaligned is empty: it is *drained*, and
  from then on its whole content is known.
* A pool's decay depends on its length, and a length that includes unseen entries is larger than ours. So the
  kernel may have given back more from the head than we did; when it passes over our head, what lies above the
  entry that it took has gone to the space. If it gives out one of them after all, before the next purge, that
  was an error: what lay below it is in the pool still.

What was unseen and turned out to come from the space is assumed to be the beginning of a free range that
reaches to the next known area. Every assumption is counted, and dropped when the kernel passes over it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter

from vmalloc.lab.events import Event
from vmalloc.lab.ledger import ledger_of
from vmalloc.lab.orders import Forecast, World
from vmalloc.lab.reconcile import Origin, claim, evict
from vmalloc.model import PAGE, Area, Kernel, Level, Space
from vmalloc.model.space import search_length

Key = tuple[int, int]
"""A pool: its node, the pages of its areas."""


class Frontiers:
    """For each length, the highest address at which the space served a request of it, or of a shorter one.

    A longer length with a lower address says nothing that a shorter one does not. So both lists ascend.
    """

    __slots__ = ("addresses", "lengths")

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.addresses: list[int] = []

    def of(self, length: int) -> int:
        at = bisect_right(self.lengths, length)
        return self.addresses[at - 1] if at else 0

    def raise_to(self, length: int, address: int) -> None:
        """A request of this length was served here."""
        if address <= self.of(length):
            return
        at = bisect_left(self.lengths, length)
        end = bisect_right(self.addresses, address, at)
        self.lengths[at:end] = [length]
        self.addresses[at:end] = [address]

    def lower_to(self, address: int) -> None:
        """None of them is higher than this."""
        at = bisect_left(self.addresses, address)
        if at < len(self.addresses):
            self.addresses[at:] = [address]
            del self.lengths[at + 1 :]


class Learner:
    """Knowledge about an unseen start state, and the forecasts that follow from it."""

    def __init__(self, assumed: Counter[str], nothing: Space) -> None:
        """`nothing` is an empty space, of a kind that has `discard`, `add` and `covering`."""
        self.assumed = assumed
        self.frontiers = Frontiers()
        self.drained: set[Key] = set()
        self.passed: dict[Key, int] = {}  # pool: its head when it was last passed over
        self.decayed_unseen: set[int] = set()  # entries of pools that an unseen length has decayed
        self.doubtful = nothing  # assumed free, not seen
        self.walks: dict[Key, tuple[int, int]] = {}  # pool: last address, steps up in a row
        self.deep: set[Key] = set()  # pools last seen to give out unseen entries
        self.misjudged: set[Key] = set()  # pools of which something was taken back
        self.dropped: dict[Key, list[Area]] = {}  # pool: what seems given back since a purge

    def forecast(self, world: World, event: Event) -> Forecast:
        """The model's forecast; "pool" with no address while a pool keeps giving out what was never seen."""
        forecast = world.forecast(event)
        if not has_pools(world.kernel):
            return forecast
        if forecast.level != "pool" and self._key(world, event) in self.deep:
            return Forecast(None, "pool")
        return forecast

    def sure(self, world: World, event: Event, forecast: Forecast) -> bool:
        """Whether all that this forecast rests on has been seen: the end of the warm-up for this request."""
        if forecast.start is None:
            return False
        drained = self._key(world, event) in self.drained
        if forecast.level == "pool":
            return drained or forecast.start not in self.decayed_unseen
        return (
            drained
            and forecast.start <= self.frontiers.of(_length(event))
            and self.doubtful.covering(forecast.start) is None
        )

    def purge_begins(self, world: World) -> None:
        """What the pools hold now will be decayed by a length that may include unseen entries.

        Unseen entries decay too: there may be unseen free ranges anywhere again.
        """
        self.frontiers = Frontiers()
        self.dropped.clear()
        self.decayed_unseen = {
            area.start
            for node in world.kernel.nodes
            for pages, pool in node.pools.items()
            if (node.id, pages) not in self.drained
            for area in pool.areas
        }

    def purge_told_otherwise(self) -> None:
        """A purge took another number of areas than we did: unseen ones, which may be in pools now.

        Most pools are known well enough all the same, but not those that were misjudged before.
        """
        self.drained -= self.misjudged

    def right(self, world: World, event: Event, level: Level) -> None:
        """The forecast came true."""
        key = self._key(world, event)
        self._walk(key, event)
        self.doubtful.discard(event.addr, event.size)
        if level == "space":
            length = _length(event)
            self._from_space(key, event, length)
            self.frontiers.raise_to(length, event.addr)
            if event.align <= PAGE:
                self.drained.add(key)

    def wrong(self, world: World, event: Event, forecast: Forecast) -> tuple[Origin, Level | None]:
        """The forecast failed: put the model right; returns where it had the range, and the level."""
        key = self._key(world, event)
        if key in self.dropped:
            self._take_back(world, event, key)
        offered = world.kernel.find_space(event.size, event.align, event.vstart, event.vend)
        place = _place(world, event)
        level = self._served_by(world, event, key, place, offered)
        self._walk(key, event)
        self._drop_pool_head(world, event, key, place, level)
        self.doubtful.discard(event.addr, event.size)
        origin = claim(world, event)
        if level == "pool":
            if origin.place == "unseen":
                self.drained.discard(key)
                self.deep.add(key)
                self.assumed["pool entry never seen before"] += 1
        elif level == "space":
            self._drop_passed_over(world, event, offered)
            self._from_space(key, event, _length(event))
            if origin.place == "unseen":
                self._assume_hole(world, event)
        return origin, level

    def _served_by(
        self, world: World, event: Event, key: Key, where: tuple[str, int | None], offered: int | None
    ) -> Level | None:
        """Pool or space? None if the evidence does not tell."""
        if not has_pools(world.kernel):
            return "space"
        place, node = where
        if place == "pool":
            below_all = offered is None or event.addr < offered
            own = node == key[0]
            return "pool" if own or not below_all else "space"
        passed_over = offered is not None and offered < event.addr
        if (place == "space" or key in self.drained) and not passed_over:
            return "space"
        return self._by_direction(key, event, passed_over)

    def _by_direction(self, key: tuple[int, int], event: Event, passed_over: bool) -> Level | None:
        """A pool filled in address order gives its areas out downwards, first fit goes upwards.

        Two steps up in a row are the space. One step up may also be a pool's next, older batch: that is
        decided by whether first fit would have passed over a lower range.
        """
        last, ups = self.walks.get(key, (None, 0))
        if last is not None and event.addr < last:
            return "pool"
        if passed_over and ups < 1:
            return "pool"
        return None if last is None else "space"

    def _walk(self, key: Key, event: Event) -> None:
        last, ups = self.walks.get(key, (event.addr, 0))
        self.walks[key] = (event.addr, ups + 1 if event.addr > last else 0)

    def _drop_pool_head(
        self, world: World, event: Event, key: Key, where: tuple[str, int | None], level: Level | None
    ) -> None:
        """The kernel passed over our pool's head: what lies above its choice had been given back."""
        kernel, (node, pages) = world.kernel, key
        pool = kernel.nodes[node].pools.get(pages)
        if pool is None or not pool.areas or level is None or pool.peek(event.align) is None:
            return
        if where[0] == "pool" and where[1] != node and level == "pool":
            return  # the task moved to another CPU: our head is untouched
        head = pool.areas[-1].start
        if where != ("pool", node) and self.passed.get(key) != head:
            self.passed[key] = head  # once may be chance: wait for a second time
            return
        while pool.areas and pool.areas[-1].start != event.addr:
            gone = pool.areas[-1]
            evict(world, gone.start, gone.size)
            self._doubt(gone.start, gone.size)
            self.dropped.setdefault(key, []).append(gone)
            self.assumed["pool entry given back unseen"] += 1

    def _take_back(self, world: World, event: Event, key: Key) -> None:
        """The kernel gives out what was taken for given back: it was in the pool, and what lay below it is.

        So what it had passed our head over for was an entry that nobody had seen. Upwards it is first fit.
        """
        entries, (last, _) = self.dropped[key], self.walks.get(key, (0, 0))
        at = next((at for at, area in enumerate(entries) if area.start == event.addr < last), None)
        if at is None:
            return
        space, pool = ledger_of(world.kernel), world.kernel.nodes[key[0]].pool(key[1])
        for area in reversed(entries[at:]):
            free = space.covering(area.start)
            if free is not None and area.end <= free[1]:
                space.take(area.start, area.size)
                self.doubtful.discard(area.start, area.size)
                pool.push(area)
                self.decayed_unseen.add(area.start)
                self.assumed["pool entry taken back"] += 1
        self.drained.discard(key)  # between them there may be more that nobody has seen
        self.misjudged.add(key)
        del self.dropped[key]

    def _drop_passed_over(self, world: World, event: Event, offered: int | None) -> None:
        """The kernel passed over a free range: it was not free."""
        if offered is not None and offered < event.addr:
            free = world.kernel.space.covering(offered)
            assert free is not None
            world.kernel.space.discard(free[0], min(free[1], event.addr) - free[0])
            self.assumed["free range taken back"] += 1

    def _from_space(self, key: Key, event: Event, length: int) -> None:
        """The pool was passed by; and a surprise below the frontier shows that the frontier was wrong."""
        self.deep.discard(key)
        if event.addr < self.frontiers.of(length):
            self.frontiers.lower_to(event.addr)

    def _assume_hole(self, world: World, event: Event) -> None:
        """What follows an unseen area from the space is free up to the next known area."""
        space = ledger_of(world.kernel)
        start = event.addr + event.size
        end = space.next_known(start, event.vend & -PAGE)
        if end > start:
            space.add(start, end - start)
            self._doubt(start, end - start)
            self.assumed["rest of a free range"] += 1

    def _doubt(self, start: int, size: int) -> None:
        self.doubtful.discard(start, size)
        self.doubtful.add(start, size)

    @staticmethod
    def _key(world: World, event: Event) -> Key:
        return event.cpu % world.kernel.nr_nodes, event.size // PAGE


def has_pools(kernel: Kernel) -> bool:
    """Whether anything can be in a pool: a kernel with one node has none, whatever its version."""
    return kernel.nr_nodes > 1 and kernel.design.pool_pages_max > 0


def _length(event: Event) -> int:
    return search_length(event.size, event.align, event.vstart, event.vend)


def _place(world: World, event: Event) -> tuple[str, int | None]:
    """Where the model has the event's range, untouched: pool (and its node), space, or elsewhere."""
    pages, is_out = event.size // PAGE, ledger_of(world.kernel).is_out(event.addr)
    for node in world.kernel.nodes if is_out and event.addr not in world.kernel.busy.areas else ():
        pool = node.pools.get(pages)
        for area in pool.areas if pool is not None else ():
            if area.start == event.addr:
                return "pool", node.id
    free = world.kernel.space.covering(event.addr)
    if free is not None and event.addr + event.size <= free[1]:
        return "space", None
    return "elsewhere", None
