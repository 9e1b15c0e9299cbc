# SPDX-License-Identifier: MIT
"""Long random histories against an oracle that is a dict of intervals."""

from __future__ import annotations

import gc

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from tests.conftest import PAGE

import vmalloc
from vmalloc.facts import POOLS

NR_PAGES = 1024
SIZES = st.one_of(st.integers(1, 6), st.sampled_from([16, 100, 255, 256, 257, 300, 600]))
NAMES = st.sampled_from(["a", "b", "ü"])
FEW = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def stamp_of(number):
    return number % 251 + 1


class RegionHistory(RuleBasedStateMachine):
    """live: what holds pages -> (first page, pages, stamp)."""

    pools = "magazine"
    things = Bundle("things")

    def __init__(self):
        super().__init__()
        self.region = vmalloc.Region(
            NR_PAGES * PAGE, pools=self.pools, nodes=1, lazy_max=500 * PAGE, helper=False
        )
        self.live = {}
        self.named = {}
        self.count = 0

    def keep(self, offset, nr_pages):
        start, end = offset // PAGE, offset // PAGE + nr_pages
        assert offset % PAGE == 0
        assert end <= NR_PAGES
        for other, pages, _ in (*self.live.values(), *self.named.values()):
            assert end <= other or other + pages <= start, "two owners of a page"
        self.count += 1
        self.live[self.count] = (start, nr_pages, stamp_of(self.count))
        return stamp_of(self.count)

    def has_room(self, nr_pages, align):
        """Whether the linear scan finds a place: everything that is not held can be had."""
        start = 0
        for held, pages, _ in sorted((*self.live.values(), *self.named.values(), (NR_PAGES, 0, 0))):
            if -(-start // align) * align + nr_pages <= held:
                return True
            start = max(start, held + pages)
        return False

    def pages_held(self):
        starts = {s: n for s, n, _ in (*self.live.values(), *self.named.values())}
        return sum(starts.values())

    @rule(target=things, nr_pages=SIZES, align=st.sampled_from([1, 1, 1, 16]))
    def alloc(self, nr_pages, align):
        try:
            block = self.region.alloc(nr_pages * PAGE, align=align * PAGE)
        except vmalloc.OutOfPages:
            assert not self.has_room(nr_pages, align)
            return None
        given = block._range[1]
        assert nr_pages <= given <= nr_pages + nr_pages // 8
        assert block.offset % (align * PAGE) == 0
        memoryview(block)[:] = bytes([self.keep(block.offset, given)]) * block.nbytes
        return self.count, [block]

    @rule(target=things, nr_pages=SIZES, zero=st.booleans())
    def array(self, nr_pages, zero):
        try:
            a = (self.region.zeros if zero else self.region.empty)((nr_pages, PAGE), "u1")
        except vmalloc.OutOfPages:
            assert not self.has_room(nr_pages, 1)
            return None
        assert not zero or not a.any()
        a[:] = self.keep(a.base.offset, a.base._range[1])
        return self.count, [a]

    @rule(nr_pages=st.integers(1, 4), count=st.integers(0, 20))
    def bulk(self, nr_pages, count):
        before = self.region.stats().busy_pages
        try:
            blocks = self.region.alloc_bulk(nr_pages * PAGE, count)
        except vmalloc.OutOfPages:
            assert self.region.stats().busy_pages == before
            return
        for block in blocks:
            self.keep(block.offset, nr_pages)
            del self.live[self.count]
        self.region.free_bulk(blocks)

    @rule(thing=consumes(things))
    def release(self, thing):
        if thing is None:
            return
        number, cell = thing
        value = cell.pop()  # the bundle keeps the cell
        _, _, stamp = self.live.pop(number)
        a = np.frombuffer(value, "u1") if isinstance(value, vmalloc.Block) else value
        assert (a == stamp).all(), "contents changed"
        del a
        if isinstance(value, vmalloc.Block):
            value.release()

    @rule(thing=things)
    def a_view_holds_a_block(self, thing):
        if thing is not None and thing[1] and isinstance(thing[1][0], vmalloc.Block):
            view = memoryview(thing[1][0])
            try:
                thing[1][0].release()
            except BufferError:
                view.release()
            else:
                raise AssertionError("released under a view")

    @rule(thing=things, name=NAMES)
    def name(self, thing, name):
        if thing is None or thing[0] not in self.live:
            return
        self.region[name] = thing[1][0]
        self.named[name] = self.live[thing[0]]

    @precondition(lambda self: self.named)
    @rule(name=NAMES)
    def read_name(self, name):
        assert (name in self.region) == (name in self.named)
        if name in self.named:
            assert (np.asarray(self.region[name]) == self.named[name][2]).all()

    @rule(name=NAMES)
    def delete_name(self, name):
        try:
            del self.region[name]
            del self.named[name]
        except KeyError:
            assert name not in self.named

    @rule()
    def purge(self):
        self.region.purge()

    @rule()
    def shrink(self):
        self.region.shrink()
        s = self.region.stats()
        assert s.free_pages == NR_PAGES - self.pages_held()
        assert s.cached_pages == s.pooled_pages == s.lazy_pages == 0

    @invariant()
    def agrees(self):
        gc.collect(0)
        s = self.region.stats()
        assert s.busy_pages == self.pages_held()
        busy = {r.start: r.nr_pages for r in self.region.ranges() if r.state == "busy"}
        assert busy == {start: n for start, n, _ in (*self.live.values(), *self.named.values())}
        self.region.check(at_rest=True)


class SpaceHistory(RuleBasedStateMachine):
    starts = Bundle("starts")

    def __init__(self):
        super().__init__()
        self.space = vmalloc.AddressSpace(10 * 512, 10 * 512 + 2000 * 512, granule=512, nodes=1)
        self.live = {}

    @rule(target=starts, size=st.integers(1, 300 * 512))
    def alloc(self, size):
        try:
            start = self.space.alloc(size)
        except vmalloc.OutOfPages:
            return None
        end = start + self.space.size_of(start)
        assert self.space.start <= start
        assert start + size <= end <= self.space.stop
        assert all(end <= a or b <= start for a, b in self.live.items())
        self.live[start] = end
        return start

    @rule(start=consumes(starts))
    def free(self, start):
        if start is not None:
            del self.live[start]
            self.space.free(start)
            try:
                self.space.free(start)
            except vmalloc.NotAllocated:
                return
            raise AssertionError("freed twice")

    @rule(number=st.integers(0, 2100 * 512))
    def free_anything_else(self, number):
        if number not in self.live:
            try:
                self.space.free(number)
            except vmalloc.NotAllocated:
                return
            raise AssertionError("freed what was never given")

    @rule()
    def shrink(self):
        self.space.shrink()

    @invariant()
    def agrees(self):
        assert self.space.stats().busy_bytes == sum(b - a for a, b in self.live.items())
        self.space.check(at_rest=True)


for pools in POOLS:
    history = type(f"{pools.title()}History", (RegionHistory,), {"pools": pools})
    globals()[f"Test{pools.title()}"] = history.TestCase
    history.TestCase.settings = FEW
TestAddressSpace = SpaceHistory.TestCase
TestAddressSpace.settings = FEW
