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
  entry that it took has gone to the space.

What was unseen and turned out to come from the space is assumed to be the beginning of a free range that
reaches to the next known area. Every assumption is counted, and dropped when the kernel passes over it.
"""

from __future__ import annotations

from collections import Counter

from vmalloc.lab.events import Event
from vmalloc.lab.ledger import ledger_of
from vmalloc.lab.orders import Forecast, World
from vmalloc.lab.reconcile import Origin, claim, evict
from vmalloc.model import PAGE, Kernel, Level, Space
from vmalloc.model.space import search_length


class Learner:
    """Knowledge about an unseen start state, and the forecasts that follow from it."""

    def __init__(self, assumed: Counter[str], nothing: Space) -> None:
        """`nothing` is an empty space, of a kind that has `discard`, `add` and `covering`."""
        self.assumed = assumed
        self.frontiers: dict[int, int] = {}
        self.drained: set[tuple[int, int]] = set()
        self.passed: dict[tuple[int, int], int] = {}  # pool: its head when it was last passed over
        self.decayed_unseen: set[int] = set()  # entries of pools that an unseen length has decayed
        self.doubtful = nothing  # assumed free, not seen
        self.walks: dict[tuple[int, int], tuple[int, int]] = {}  # pool: last address, steps up in a row
        self.deep: set[tuple[int, int]] = set()  # pools last seen to give out unseen entries

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
            and forecast.start <= self._frontier(_length(event))
            and self.doubtful.covering(forecast.start) is None
        )

    def purge_begins(self, world: World) -> None:
        """What the pools hold now will be decayed by a length that may include unseen entries.

        Unseen entries decay too: there may be unseen free ranges anywhere again.
        """
        self.frontiers = {}
        self.decayed_unseen = {
            area.start
            for node in world.kernel.nodes
            for pages, pool in node.pools.items()
            if (node.id, pages) not in self.drained
            for area in pool.areas
        }

    def right(self, world: World, event: Event, level: Level) -> None:
        """The forecast came true."""
        self._walk(world, event)
        self.doubtful.discard(event.addr, event.size)
        if level == "space":
            self._from_space(world, event)
            length = _length(event)
            self.frontiers[length] = max(self.frontiers.get(length, 0), event.addr)
            if event.align <= PAGE:
                self.drained.add(self._key(world, event))

    def wrong(self, world: World, event: Event, forecast: Forecast) -> tuple[Origin, Level | None]:
        """The forecast failed: put the model right; returns where it had the range, and the level."""
        offered = world.kernel.find_space(event.size, event.align, event.vstart, event.vend)
        level = self._served_by(world, event, offered)
        self._walk(world, event)
        self._drop_pool_head(world, event, level)
        self.doubtful.discard(event.addr, event.size)
        origin = claim(world, event)
        if level == "pool":
            if origin.place == "unseen":
                self.drained.discard(self._key(world, event))
                self.deep.add(self._key(world, event))
                self.assumed["pool entry never seen before"] += 1
        elif level == "space":
            self._drop_passed_over(world, event, offered)
            self._from_space(world, event)
            if origin.place == "unseen":
                self._assume_hole(world, event)
        return origin, level

    def _served_by(self, world: World, event: Event, offered: int | None) -> Level | None:
        """Pool or space? None if the evidence does not tell."""
        if not has_pools(world.kernel):
            return "space"
        key = self._key(world, event)
        place, node = _place(world, event)
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

    def _walk(self, world: World, event: Event) -> None:
        key = self._key(world, event)
        last, ups = self.walks.get(key, (event.addr, 0))
        self.walks[key] = (event.addr, ups + 1 if event.addr > last else 0)

    def _drop_pool_head(self, world: World, event: Event, level: Level | None) -> None:
        """The kernel passed over our pool's head: what lies above its choice had been given back."""
        kernel = world.kernel
        node, pages = self._key(world, event)
        pool = kernel.nodes[node].pools.get(pages)
        if pool is None or not pool.areas or level is None or pool.peek(event.align) is None:
            return
        place, where = _place(world, event)
        if place == "pool" and where != node and level == "pool":
            return  # the task moved to another CPU: our head is untouched
        head = pool.areas[-1].start
        if (place, where) != ("pool", node) and self.passed.get((node, pages)) != head:
            self.passed[node, pages] = head  # once may be chance: wait for a second time
            return
        while pool.areas and pool.areas[-1].start != event.addr:
            gone = pool.areas[-1]
            evict(world, gone.start, gone.size)
            self._doubt(gone.start, gone.size)
            self.assumed["pool entry given back unseen"] += 1

    def _drop_passed_over(self, world: World, event: Event, offered: int | None) -> None:
        """The kernel passed over a free range: it was not free."""
        if offered is not None and offered < event.addr:
            free = world.kernel.space.covering(offered)
            assert free is not None
            world.kernel.space.discard(free[0], min(free[1], event.addr) - free[0])
            self.assumed["free range taken back"] += 1

    def _from_space(self, world: World, event: Event) -> None:
        """The pool was passed by; and a surprise below the frontier shows that the frontier was wrong."""
        self.deep.discard(self._key(world, event))
        if event.addr < self._frontier(_length(event)):
            self.frontiers = {length: min(at, event.addr) for length, at in self.frontiers.items()}

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

    def _frontier(self, length: int) -> int:
        return max((at for known, at in self.frontiers.items() if known <= length), default=0)

    @staticmethod
    def _key(world: World, event: Event) -> tuple[int, int]:
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
        if pool is not None and any(area.start == event.addr for area in pool.areas):
            return "pool", node.id
    free = world.kernel.space.covering(event.addr)
    if free is not None and event.addr + event.size <= free[1]:
        return "space", None
    return "elsewhere", None
