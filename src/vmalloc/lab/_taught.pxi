# SPDX-License-Identifier: MIT
# Part of _predict.pyx: a stretch of events whose start state nobody showed. What is learned is the Learner's of
# learn.py, method by method; besides what comes as forecast, misses that say nothing of orders are plain here: those
# whose forecast did not rest on what was seen.

from vmalloc.lab.reconcile import evict as _evict


cdef class Taught(Replay):
    """A stretch of plain events, and what they teach."""

    cdef object learner, result, assumed
    cdef dict walks, passed, dropped
    cdef set drained, deep, decayed_unseen
    cdef list lengths, addresses  # of the frontiers
    cdef Ledger doubtful
    cdef bint has_pools

    def __init__(self, predictor):
        super().__init__(predictor)
        self.learner = learner = predictor.learner
        self.result = predictor.result
        self.assumed = learner.assumed
        self.walks, self.passed, self.dropped = learner.walks, learner.passed, learner.dropped
        self.drained, self.deep, self.decayed_unseen = learner.drained, learner.deep, learner.decayed_unseen
        self.lengths, self.addresses = learner.frontiers.lengths, learner.frontiers.addresses
        self.doubtful = learner.doubtful
        self.has_pools = self.nr_nodes > 1 and self.kernel.design.pool_pages_max > 0

    # ------------------------------------------------------------------ as forecast

    cdef bint right_from_pool(self, Asked *asked, tuple event) except -1:
        key = asked.node, asked.pages
        cdef bint sure = key in self.drained or event[ADDR] not in self.decayed_unseen
        self.walk(key, event)
        self.doubtful.discard(asked.addr, asked.size)
        return sure

    cdef bint from_space(self, Asked *asked, tuple event, areas) except -1:
        if asked.length < asked.size:
            return False  # of a damaged line
        if self.has_pools and (asked.node, asked.pages) in self.deep:
            return self.missed(asked, event, "pool", None)
        return Replay.from_space(self, asked, event, areas)

    cdef bint right_from_space(self, Asked *asked, tuple event) except -1:
        key = asked.node, asked.pages
        cdef bint sure = self.is_sure(key, asked, "space", event[ADDR])
        self.walk(key, event)
        self.doubtful.discard(asked.addr, asked.size)
        self.served_by_space(key, asked)
        self.raise_frontier(asked.length, asked.addr)
        if asked.align <= PAGE:
            self.drained.add(key)
        return sure

    cdef bint is_sure(self, tuple key, Asked *asked, level, start) except -1:
        """Learner.sure"""
        cdef uint64_t low, length
        cdef bint drained = key in self.drained
        if level == "pool":
            return drained or start not in self.decayed_unseen
        return (
            drained
            and <uint64_t>start <= self.frontier_of(asked.length)
            and not ranges_covering(&self.doubtful.free, start, &low, &length)
        )

    cdef int walk(self, tuple key, tuple event) except -1:
        """Learner._walk"""
        cdef PyObject *found = PyDict_GetItem(self.walks, key)
        addr = event[ADDR]
        if found is NULL:
            self.walks[key] = addr, 0
        else:
            last = <tuple>found
            self.walks[key] = addr, last[1] + 1 if addr > last[0] else 0
        return 0

    cdef int served_by_space(self, tuple key, Asked *asked) except -1:
        """Learner._from_space"""
        self.deep.discard(key)
        if asked.addr < self.frontier_of(asked.length):
            self.learner.frontiers.lower_to(asked.addr)
        return 0

    cdef uint64_t frontier_of(self, uint64_t length) except? 0:
        """Frontiers.of"""
        cdef Py_ssize_t at = above(self.lengths, length)
        return self.addresses[at - 1] if at else 0

    cdef int raise_frontier(self, uint64_t length, uint64_t address) except -1:
        """Frontiers.raise_to"""
        cdef Py_ssize_t at = above(self.lengths, length)
        if at and address <= <uint64_t>self.addresses[at - 1]:
            return 0
        if at and <uint64_t>self.lengths[at - 1] == length:
            at -= 1
        cdef Py_ssize_t end = above(self.addresses, address)
        self.lengths[at:end] = [length]
        self.addresses[at:end] = [address]
        return 0

    # ------------------------------------------------------------------ against the forecast

    cdef bint missed(self, Asked *asked, tuple event, level, start) except -1:
        """`_look_closer` and `_lost`, where no order is looked for."""
        if self.result.first_miss is None:
            return False  # it is described
        if level != "pool" and asked.align > PAGE:
            return False  # it may be within a tree's bounds
        key = asked.node, asked.pages
        if asked.length < asked.size or start is not None and self.is_sure(key, asked, level, start):
            return False
        served, place, node = self.wrong(asked, event, key)
        self.note(asked, event, served, level == served, False, False)
        moved = place == "pool" and node != asked.node
        self.result.misses["migration between choice and event" if moved else "unknown start state"] += 1
        return True

    cdef tuple wrong(self, Asked *asked, tuple event, tuple key):
        """Learner.wrong; returns who served it, and where the model had it."""
        cdef uint64_t offered
        cdef bint passed_over = False
        below_all = True
        if key in self.dropped:
            self.give_back()
            self.learner._take_back(self.world, event, key)
            self.fetch()
        if self.offer(asked, &offered):
            below_all, passed_over = asked.addr < offered, offered < asked.addr
        where = self.place(asked, event)
        served = self.served_by(asked, key, where, below_all, passed_over)
        self.walk(key, event)
        if served is not None:
            self.drop_pool_head(asked, event, key, where, served)
        self.doubtful.discard(asked.addr, asked.size)
        place, node = self.claim(asked, event)
        if served == "pool" and place == "unseen":
            self.drained.discard(key)
            self.deep.add(key)
            self.assumed["pool entry never seen before"] += 1
        elif served == "space":
            if passed_over:
                self.drop_passed_over(asked, offered)
            self.served_by_space(key, asked)
            if place == "unseen":
                self.learner._assume_hole(self.world, event)
        return served, place, node

    cdef tuple place(self, Asked *asked, tuple event):
        """learn._place"""
        cdef uint64_t low, length
        cdef PyObject *pool
        if self.space.has_out(asked.addr) and event[ADDR] not in self.busy:
            for node in self.nodes:
                pool = PyDict_GetItem(node.pools, asked.pages)
                if pool is not NULL:
                    for area in (<object>pool).areas:
                        if <uint64_t>(<tuple>area)[0] == asked.addr:
                            return "pool", node.id
        if ranges_covering(&self.space.free, asked.addr, &low, &length):
            if asked.size <= length - (asked.addr - low):
                return "space", None
        return "elsewhere", None

    cdef object served_by(self, Asked *asked, tuple key, tuple where, bint below_all, bint passed_over):
        """Learner._served_by"""
        if not self.has_pools:
            return "space"
        if where[0] == "pool":
            return "pool" if where[1] == asked.node or not below_all else "space"
        if not passed_over and (where[0] == "space" or key in self.drained):
            return "space"
        cdef PyObject *found = PyDict_GetItem(self.walks, key)
        if found is not NULL and asked.addr < <uint64_t>(<tuple>found)[0]:
            return "pool"
        if passed_over and (found is NULL or (<tuple>found)[1] < 1):
            return "pool"
        return None if found is NULL else "space"

    cdef int drop_pool_head(self, Asked *asked, tuple event, tuple key, tuple where, served) except -1:
        """Learner._drop_pool_head, as far as it drops nothing yet"""
        areas = self.pool_of(asked)
        if not areas or <uint64_t>(<tuple>areas[-1])[0] & (asked.align - 1):
            return 0
        is_own = where[0] == "pool" and where[1] == asked.node
        if where[0] == "pool" and not is_own and served == "pool":
            return 0
        head = (<tuple>areas[-1])[0]
        if not is_own and self.passed.get(key) != head:
            self.passed[key] = head
            return 0
        self.give_back()
        self.learner._drop_pool_head(self.world, event, key, where, served)
        self.fetch()
        return 0

    cdef object claim(self, Asked *asked, tuple event):
        """reconcile.claim"""
        cdef list overlapped = self.space.overlapping(asked.addr, asked.size)
        origin = None
        if overlapped:
            self.give_back()
            for at, length in overlapped:
                evicted = _evict(self.world, at, length)
                origin = evicted if origin is None else origin
            self.fetch()
        cdef uint64_t removed = self.space.discard(asked.addr, asked.size)
        from_pool = origin is not None and origin[0] == "pool"
        self.hold(asked, event, origin[1] if from_pool else self.stamp(asked))
        self.space.rejoin(asked.addr, asked.size)
        if origin is None:
            return "space" if removed == asked.size else "unseen", None
        return origin

    cdef int drop_passed_over(self, Asked *asked, uint64_t offered) except -1:
        """Learner._drop_passed_over"""
        cdef uint64_t low, length
        if not ranges_covering(&self.space.free, offered, &low, &length):
            raise AssertionError(f"{offered:#x} was offered and is not free")
        self.space.discard(low, min(length, asked.addr - low))
        self.assumed["free range taken back"] += 1
        return 0


cdef Py_ssize_t above(list ascending, uint64_t value) except -1:
    """bisect_right"""
    cdef Py_ssize_t low = 0, high = len(ascending), middle
    while low < high:
        middle = (low + high) // 2
        if value < <uint64_t>ascending[middle]:
            high = middle
        else:
            low = middle + 1
    return low
