# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False
"""The compiled part of the predictor: ledger.py's two sets, and the events that come as forecast.

Both are what the Python beside them is: `Ledger` answers as LedgerSpace does, and `run` does what
`Predictor.advance` would do for events that need no thought. It stops at the first that does. What a start
state that nobody showed adds is in _taught.pxi.
tests/lab/test_predict_compiled.py holds them equal. It needs nothing of the core.
"""

from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from vmalloc.model import NO_NODE, Area


cdef extern from "ranges.h" nogil:
    ctypedef struct ranges:
        uint64_t *longest
        uint32_t nr_leaves
        uint64_t nr
    ctypedef struct ranges_place:
        uint32_t leaf, at
    int ranges_init(ranges *r)
    void ranges_free(ranges *r)
    int ranges_copy(ranges *to, const ranges *source)
    ranges_place ranges_from(const ranges *r, uint64_t address)
    bint ranges_at(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size)
    bint ranges_before(const ranges *r, ranges_place place, uint64_t *start, uint64_t *size)
    bint ranges_covering(const ranges *r, uint64_t address, uint64_t *start, uint64_t *size)
    bint ranges_fit(const ranges *r, uint64_t size, uint64_t align, uint64_t low, uint64_t length, uint64_t *fit)
    const int RANGES_WRONG
    int ranges_cut(ranges *r, uint64_t start, uint64_t size)
    int ranges_join(ranges *r, uint64_t start, uint64_t size)
    int ranges_set(ranges *r, uint64_t start, uint64_t size)
    uint64_t ranges_pop(ranges *r, uint64_t start)

cdef object WORD = 1 << 64
cdef object NEVER = 1 << 65
cdef uint64_t LAST = <uint64_t>-1
cdef enum:
    PAGE = 4096
    # the fields of an Event, by place
    CPU = 1
    KIND = 4
    ADDR = 5
    SIZE = 6
    ALIGN = 7
    VSTART = 8
    VEND = 9
    FAILED = 10
    NR_LAZY = 11


cdef class Ledger:
    """The free ranges, and the areas that are out of them; LedgerSpace in C."""

    cdef ranges free, out

    def __cinit__(self):
        if ranges_init(&self.free) < 0 or ranges_init(&self.out) < 0:
            raise MemoryError

    def __dealloc__(self):
        ranges_free(&self.free)
        ranges_free(&self.out)

    def __init__(self, free=(), out=()):
        for start, end in free:
            _set(&self.free, start, end - start)
        for area in out:
            _set(&self.out, area.start, area.size)

    def copy(self):
        cdef Ledger other = Ledger.__new__(Ledger)
        ranges_free(&other.free)
        ranges_free(&other.out)
        if ranges_copy(&other.free, &self.free) < 0 or ranges_copy(&other.out, &self.out) < 0:
            raise MemoryError
        return other

    def __len__(self):
        return self.free.nr

    def __iter__(self):
        return iter([(start, start + size) for start, size in _list(&self.free)])

    @property
    def areas(self):
        """The (start, size) of all that is out, in order."""
        return _list(&self.out)

    @property
    def longest(self):
        return max([self.free.longest[leaf] for leaf in range(self.free.nr_leaves)])

    # ------------------------------------------------------------------ the search

    def find(self, size, align=1, vstart=0, length=None):
        cdef uint64_t fit
        want = size if length is None else length
        if want >= WORD or size >= WORD or align >= WORD or vstart >= WORD:
            return None
        return fit if ranges_fit(&self.free, size, align, vstart, want, &fit) else None

    def bounds(self, size, align, vstart, vend):
        exact = align <= PAGE or vend - vstart == size
        sure = self.find(size, align, vstart, size if exact else size + align - 1)
        return self.find(size, align, vstart), sure

    def covering(self, address):
        cdef uint64_t start, size
        if address >= WORD or not ranges_covering(&self.free, address, &start, &size):
            return None
        return start, <object>start + size

    def next_free(self, address):
        cdef uint64_t start, size
        if address < WORD and ranges_at(&self.free, ranges_from(&self.free, address), &start, &size):
            return start
        return NEVER

    # ------------------------------------------------------------------ changes

    def take(self, uint64_t start, uint64_t size):
        self.cut(start, size)

    cdef int cut(self, uint64_t start, uint64_t size) except -1:
        cdef int error = ranges_cut(&self.free, start, size)
        if error == RANGES_WRONG:
            raise ValueError(f"{start:#x}-{<object>start + size:#x} is not free as a whole")
        if error or ranges_set(&self.out, start, size):
            raise MemoryError
        return 0

    def add(self, uint64_t start, uint64_t size):
        cdef int error = ranges_join(&self.free, start, size)
        if error == RANGES_WRONG:
            raise ValueError(f"{start:#x}-{<object>start + size:#x} is free already")
        if error:
            raise MemoryError
        if ranges_pop(&self.out, start) != size:
            self.forget(start, size)

    cpdef uint64_t discard(self, uint64_t start, uint64_t size) except? 0:
        cdef uint64_t low, length, first, removed = 0, at = start
        cdef uint64_t last = start + size - 1 if size <= LAST - start else LAST
        while size and at <= last:
            if not ranges_covering(&self.free, at, &low, &length):
                if not ranges_at(&self.free, ranges_from(&self.free, at), &low, &length) or low > last:
                    break
            first = max(low, at)
            length = min(low + (length - 1), last) - first + 1
            self.cut(first, length)
            removed += length
            if first + (length - 1) == last:
                break
            at = first + length
        return removed

    # ------------------------------------------------------------------ what is out

    cdef void forget(self, uint64_t start, uint64_t size):
        cdef uint64_t at, length
        while ranges_at(&self.out, ranges_from(&self.out, start), &at, &length) and at - start < size:
            ranges_pop(&self.out, at)

    def is_out(self, start):
        return start < WORD and self.has_out(start)

    cdef bint has_out(self, uint64_t start):
        cdef uint64_t at, size
        return ranges_at(&self.out, ranges_from(&self.out, start), &at, &size) and at == start

    cpdef int rejoin(self, uint64_t start, uint64_t size) except -1:
        self.forget(start, size)
        return _set(&self.out, start, size)

    cpdef list overlapping(self, uint64_t start, uint64_t size):
        cdef uint64_t at, length
        cdef ranges_place place = ranges_from(&self.out, start)
        found = []
        if ranges_at(&self.out, place, &at, &length) and at == start:
            pass
        elif ranges_before(&self.out, place, &at, &length) and start - at < length:
            found.append((at, length))
        while ranges_at(&self.out, place, &at, &length) and at - start < size:
            found.append((at, length))
            if at == <uint64_t>-1:
                break
            place = ranges_from(&self.out, at + 1)
        return found

    def next_known(self, start, limit):
        cdef uint64_t at, size
        if start >= WORD:
            return limit
        taken = limit
        if ranges_at(&self.out, ranges_from(&self.out, start), &at, &size):
            taken = at
        if self.overlapping(start, 1) or self.covering(start) is not None:
            return start
        return min(taken, self.next_free(start), limit)


cdef int _set(ranges *r, uint64_t start, uint64_t size) except -1:
    if ranges_set(r, start, size):
        raise MemoryError
    return 0


cdef list _list(const ranges *r):
    cdef uint64_t start, size
    cdef ranges_place place = ranges_from(r, 0)
    found = []
    while ranges_at(r, place, &start, &size):
        found.append((start, size))
        if start == <uint64_t>-1:
            break
        place = ranges_from(r, start + 1)
    return found


# ---------------------------------------------------------------------- events that come as forecast

cdef object _tuple = tuple.__new__


def run(predictor, Py_ssize_t index, Py_ssize_t end):
    """Replay events from `index` on as long as they are plain; returns the first one that is not.

    Of that one nothing is done. Purges, what was moved, and frees that prove something about a purge under
    way are left to the caller too.
    """
    cdef Replay replay = Replay(predictor) if predictor.learner is None else Taught(predictor)
    try:
        while index < end and replay.one(index):
            index += 1
    finally:
        replay.give_back()
    return index


cdef struct Asked:
    # an allocation's event as C numbers; `length` is what the search of the space looks for
    Py_ssize_t index, node
    uint64_t addr, size, align, low, high, length, pages
    bint in_window


cdef class Replay:
    """One stretch of plain events, those that come as forecast: what it looks at, fetched once."""

    cdef object predictor, world, kernel, purge
    cdef list events, nodes, purge_after
    cdef dict busy, moved, opens, scored, sized
    cdef Ledger space
    cdef bytearray verdicts
    cdef Py_ssize_t late_from, nr_events, nr_nodes
    cdef uint64_t window_start, window_end
    cdef long long live_pages, lazy_pages
    cdef bint takes_the_chain

    def __init__(self, predictor):
        self.predictor = predictor
        self.world = predictor.world
        self.kernel = kernel = self.world.kernel
        self.purge, self.moved = self.world.purge, self.world.moved
        line = predictor.line
        self.events, self.purge_after, self.opens = line.events, line.purge_after, line.opens
        self.nr_events = len(self.events)
        self.nodes, self.nr_nodes = kernel.nodes, kernel.nr_nodes
        self.busy, self.space = kernel.busy.areas, kernel.space
        self.window_start, self.window_end = kernel.window
        self.takes_the_chain = kernel.design.pool_discipline == "llist"
        self.verdicts, self.scored, self.sized = predictor.verdicts, predictor.scored, predictor.sized
        self.late_from = -(-3 * self.nr_events // 4)
        self.fetch()

    cdef int fetch(self) except -1:
        self.live_pages, self.lazy_pages = self.kernel.live_pages, self.kernel.lazy_pages
        return 0

    cdef int give_back(self) except -1:
        """Python may look at the kernel again."""
        self.kernel.live_pages, self.kernel.lazy_pages = self.live_pages, self.lazy_pages
        self.kernel.busy.changed()
        return 0

    cdef bint one(self, Py_ssize_t index) except -1:
        """Do event `index` if it is plain."""
        cdef tuple event = <tuple>self.events[index]
        cdef object kind = event[KIND]
        if kind == "alloc":
            return self.alloc(index, event)
        if kind == "free":
            return self.free(index, event)
        return kind != "purge"

    cdef bint may_purge(self, Py_ssize_t index) except -1:
        """Whether a purge is under way, or one is to be opened."""
        if self.purge is not None:
            return True
        upcoming = self.purge_after[index]
        return <Py_ssize_t>upcoming < self.nr_events and index >= <Py_ssize_t>self.opens[upcoming]

    # ------------------------------------------------------------------ free

    cdef bint free(self, Py_ssize_t index, tuple event) except -1:
        cdef PyObject *found = PyDict_GetItem(self.busy, event[ADDR])
        if found is NULL:
            return False
        cdef tuple area = <tuple>found
        cdef long long pages = <unsigned long long>area[1] // PAGE
        if self.may_purge(index) and not self.proves_nothing(event, pages):
            return False
        del self.busy[event[ADDR]]
        self.live_pages -= pages
        self.lazy_pages += pages
        cdef Py_ssize_t node = area[2]
        if node < 0:
            node = self.kernel.busy.node_of(event[ADDR])
        lazy = self.nodes[node].lazy
        if lazy.merged is None:
            (<dict>lazy.areas)[event[ADDR]] = area
        else:
            lazy.add(area)
        return True

    cdef bint proves_nothing(self, tuple event, long long pages) except -1:
        """Whether this free says nothing about the purge under way: `_purge_before_free` does nothing."""
        purge = self.purge
        if purge is None:
            return False
        if purge.collected:
            return <uint64_t>(self.lazy_pages + pages) <= <uint64_t>event[NR_LAZY]  # of 64 bits, in a damaged line
        return self.world.nr_lazy() + purge.nr_purged < self.events[self.world.purge_index].npurged

    # ------------------------------------------------------------------ alloc

    cdef bint alloc(self, Py_ssize_t index, tuple event) except -1:
        if self.moved and index in self.moved:
            return False
        if event[FAILED] or not event[VSTART] or not event[VEND]:
            return False
        if self.purge is None and self.may_purge(index):
            return False
        cdef Asked asked
        self.ask(&asked, index, event)
        cdef object areas = self.pool_of(&asked) if asked.in_window else None
        if not areas:
            return self.from_space(&asked, event, areas)
        head = areas[-1]
        if <uint64_t>(<tuple>head)[0] & (asked.align - 1):
            return self.from_space(&asked, event, areas)
        if <uint64_t>(<tuple>head)[0] == asked.addr:
            return self.from_pool(&asked, event, areas, head)
        return self.missed(&asked, event, "pool", (<tuple>head)[0])

    cdef int ask(self, Asked *asked, Py_ssize_t index, tuple event) except -1:
        asked.index, asked.node = index, <Py_ssize_t>event[CPU] % self.nr_nodes
        asked.addr, asked.size, asked.align = event[ADDR], event[SIZE], event[ALIGN]
        asked.low, asked.high, asked.pages = event[VSTART], event[VEND], asked.size // PAGE
        asked.in_window = asked.low == self.window_start and asked.high == self.window_end
        asked.length = asked.size
        if asked.align > PAGE and asked.high - asked.low != asked.size:
            asked.length += asked.align - 1
        return 0

    cdef object pool_of(self, Asked *asked):
        """What is in the pool that such a request looks into; None if there is none."""
        if self.nr_nodes == 1:
            return None
        cdef PyObject *pool = PyDict_GetItem(self.nodes[asked.node].pools, asked.pages)
        return None if pool is NULL else (<object>pool).areas

    cdef bint offer(self, Asked *asked, uint64_t *fit) noexcept:
        """Kernel.find_space"""
        return (
            asked.length >= asked.size
            and ranges_fit(&self.space.free, asked.size, asked.align, asked.low, asked.length, fit)
            and fit[0] <= asked.high
            and asked.high - fit[0] >= asked.size
        )

    cdef bint from_pool(self, Asked *asked, tuple event, areas, head) except -1:
        cdef bint sure = self.right_from_pool(asked, event)
        areas.pop()
        if self.takes_the_chain:
            areas.reverse()
        self.busy[event[ADDR]] = head if not (<tuple>head)[3] else head._replace(flags=0)
        self.live_pages += asked.pages
        return self.score(asked, event, "pool", sure)

    cdef bint from_space(self, Asked *asked, tuple event, areas) except -1:
        cdef uint64_t fit
        if not self.offer(asked, &fit):
            return self.missed(asked, event, "none", None)
        if fit != asked.addr:
            return self.missed(asked, event, "space", fit)
        cdef bint sure = self.right_from_space(asked, event)
        if areas:  # a misaligned head moves
            self.nodes[asked.node].pools[asked.pages].take(event[ALIGN], self.kernel.design.pool_discipline)
        self.space.cut(asked.addr, asked.size)
        self.hold(asked, event, self.stamp(asked))
        return self.score(asked, event, "space", sure)

    cdef object stamp(self, Asked *asked):
        """Kernel.stamp"""
        return asked.node if self.nr_nodes > 1 and asked.in_window else NO_NODE

    cdef int hold(self, Asked *asked, tuple event, node) except -1:
        """World.hold"""
        self.busy[event[ADDR]] = _tuple(Area, (event[ADDR], event[SIZE], node, 0))
        self.live_pages += asked.pages
        return 0

    cdef bint score(self, Asked *asked, tuple event, level, bint sure) except -1:
        """It came as forecast."""
        self.verdicts[asked.index] = 1
        self.note(asked, event, level, True, True, sure)
        return True

    cdef int note(self, Asked *asked, tuple event, level, bint is_right, bint exact, bint sure) except -1:
        """Predictor._score"""
        count(self.scored, (
            event[CPU], level, is_right, exact, False, sure, asked.index >= self.late_from, asked.align > PAGE,
            asked.in_window,
        ))
        count(self.sized, (event[SIZE], exact))
        return 0

    # ------------------------------------------------------------------ what Taught does besides

    cdef bint right_from_pool(self, Asked *asked, tuple event) except -1:
        """The pool's head is as forecast; returns whether all that the forecast rests on was seen."""
        return True

    cdef bint right_from_space(self, Asked *asked, tuple event) except -1:
        return True

    cdef bint missed(self, Asked *asked, tuple event, level, start) except -1:
        """The forecast failed, which was `start` of this level; returns whether that was all done."""
        return False


cdef int count(dict counts, key) except -1:
    cdef PyObject *found = PyDict_GetItem(counts, key)
    counts[key] = 1 if found is NULL else <object>found + 1
    return 0


include "_taught.pxi"
