# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""The compiled part of the simulator: the twin of the model, and the engine that drives it.

It needs nothing of the core but its numbers, so it is a module of its own (docs/decisions/0014).
"""

import os

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from vmalloc.facts import LEVELS as SERVED_BY


cdef extern from "space.h":
    const uint32_t SIM_NONE
    ctypedef struct sim_space:
        pass

cdef extern from "twin.h":
    ctypedef struct sim_design:
        uint32_t is_caching, cpus, nr_nodes, window_pages, discipline, lazy_pages_max
        uint32_t pool_pages_max, pool_ranges_max, decay_shift, decay_empties_small, lazy_merges
        uint32_t has_pools, has_magazines, has_slabs, lazy_is_fixed
        uint64_t memory_pages
    ctypedef struct sim_work:
        uint32_t level
    ctypedef struct sim_twin:
        sim_design design
        sim_space space
        uint32_t *pages
        uint64_t lazy_pages, live_pages, nr_purges, nr_purged
        uint32_t nr_pooled
        uint64_t served[7]
    sim_twin *sim_twin_new(const sim_design *design)
    void sim_twin_free(sim_twin *t)
    uint32_t sim_kernel_pool(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align)
    uint32_t sim_kernel_space(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align)
    int sim_kernel_free(sim_twin *t, uint32_t start)
    void sim_purge_begin(sim_twin *t, bint is_full)
    uint32_t sim_purge_decay(sim_twin *t, uint32_t node)
    uint32_t sim_purge_reclaim(sim_twin *t)
    uint32_t sim_purge_detach(sim_twin *t, uint32_t node)
    uint32_t sim_purge_fill(sim_twin *t, uint32_t node, uint32_t most)
    uint32_t sim_purge_settle(sim_twin *t, uint32_t node)
    uint32_t sim_purge_give_back(sim_twin *t, uint32_t node)
    uint64_t sim_purge(sim_twin *t, bint is_full)
    uint64_t sim_shrink(sim_twin *t)
    void sim_caching_init(sim_twin *t, uint32_t threads)
    uint32_t sim_caching_alloc(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t pages, uint32_t align,
                               sim_work *did)
    bint sim_caching_release(sim_twin *t, uint32_t cpu, uint32_t thread, uint32_t start, sim_work *did)
    void sim_caching_time(sim_twin *t, uint32_t now_s)
    uint64_t sim_caching_lazy_max(const sim_twin *t)
    uint32_t sim_space_end_of(const sim_space *s, uint32_t page)

cdef extern from "costs.h":
    const int SIM_NR_COSTS

cdef extern from *:
    """
    #include "costs.h"
    #define SIM_COST_NAME(name, unit) #name,
    #define SIM_COST_UNIT(name, unit) unit,
    static const char *const sim_cost_names[] = {SIM_COSTS(SIM_COST_NAME)};
    static const char *const sim_cost_units[] = {SIM_COSTS(SIM_COST_UNIT)};
    """
    const char *sim_cost_names[]
    const char *sim_cost_units[]

cdef extern from "engine.h":
    const int SIM_TESTS, SIM_HISTOGRAM, SIM_LOCKS
    ctypedef struct sim_topology:
        uint32_t sockets, clusters, cores, smt
    ctypedef struct sim_plan:
        sim_design design
        sim_topology topology
        int64_t cost[1]
        uint32_t threads, mask, loops, nr_pages, lookups, looked_at, full_fit, long_busy, shrunk, in_order, guard_pages
        uint32_t setup_twice, atomic_per_area, shrink_every_us, shrink_nodes, shrink_rotates, purge_is_full, log_calls, warm_purges
        int64_t request_ps
        uint64_t seed
    ctypedef struct sim_lock_stats:
        uint64_t visits, contended
        int64_t wait_ps, hold_ps
    ctypedef struct sim_result:
        int64_t end_ps, warm_ps, thread_ps, thread_end_min_ps
        uint64_t pairs, warm_pairs
        sim_lock_stats lock[1]
        uint64_t alloc_ps[1]
        uint64_t free_ps[1]
        uint64_t served[7]
        uint64_t quarter_calls[4]
        uint64_t quarter_hits[4]
        uint64_t purges, purged, helped, node_purges
        int64_t node_purge_ps, node_purge_max_ps
        int64_t test_ps[1]
        uint64_t calls[1]
        uint64_t lazy_max, pooled_max, top_pages, live_max, ranges_max, events
        double pooled_mean, lazy_mean
        int error
    ctypedef struct sim_sim:
        pass
    sim_sim *sim_new(const sim_plan *plan)
    bint sim_run(sim_sim *s, uint64_t events) nogil
    double sim_progress(const sim_sim *s)
    const sim_result *sim_results(sim_sim *s)
    const uint32_t *sim_log(const sim_sim *s, uint32_t *nr)
    void sim_delete(sim_sim *s)


cdef extern from "measure.h":
    int sim_measure_locked(double *add_ns, double *cas_ns) nogil
    int sim_measure_line(int cpu_a, int cpu_b, double *ns) nogil
    int sim_measure_wake(int cpu_a, int cpu_b, double *ns) nogil
    int sim_measure_pages(double *touch_ns, double *hot_ns, double *cold_ns) nogil
    int sim_measure_unmap(int threads, double *ns) nogil


COSTS = {sim_cost_names[i].decode(): sim_cost_units[i].decode() for i in range(SIM_NR_COSTS)}
LOCKS = ("space", "busy", "lazy", "pool", "zone", "counter", "upkeep")
LEVELS = (*SERVED_BY, "none")  # the order of enum sim_level
CALLS = ("alloc", "free", "begin", "decay", "reclaim", "detach", "fill", "settle", "give back", "shrink", "miss")
PS_PER_NS = 1000
EVENTS_AT_ONCE = 1 << 18


cdef sim_design design_of(dict values) except *:
    cdef sim_design d
    d.is_caching = values["is_caching"]
    d.cpus = values["cpus"]
    d.nr_nodes = values["nr_nodes"]
    d.window_pages = values["window_pages"]
    d.discipline = ("list", "llist", "in place", "tagged").index(values["discipline"])
    d.lazy_pages_max = values["lazy_pages_max"]
    d.pool_pages_max = values["pool_pages_max"]
    d.pool_ranges_max = values["pool_ranges_max"]
    d.decay_shift = values["decay_shift"]
    d.decay_empties_small = values["decay_empties_small"]
    d.lazy_merges = values["lazy_merges"]
    d.has_pools = values["has_pools"]
    d.has_magazines = values["has_magazines"]
    d.has_slabs = values["has_slabs"]
    d.lazy_is_fixed = values["lazy_is_fixed"]
    d.memory_pages = values["memory_pages"]
    return d


cdef object page_or_none(uint32_t start):
    return None if start == SIM_NONE else start


cdef class Twin:
    """The decisions of one allocator. Pages count from the start of the window."""

    cdef sim_twin *t
    cdef uint32_t threads

    def __cinit__(self, dict design, uint32_t threads=1):
        cdef sim_design d = design_of(design)
        self.threads = threads
        self.t = sim_twin_new(&d)
        if self.t is NULL:
            raise MemoryError
        if d.is_caching:
            sim_caching_init(self.t, threads)

    def __dealloc__(self):
        if self.t is not NULL:
            sim_twin_free(self.t)

    def alloc(self, uint32_t pages, uint32_t align=1, uint32_t cpu=0, uint32_t thread=0):
        """(first page or None, pages, level) of one attempt."""
        cdef sim_work did
        cdef uint32_t start
        if thread >= self.threads or not 0 < pages < self.t.design.window_pages:
            raise ValueError(f"thread {thread}, {pages} pages")
        if self.t.design.is_caching:
            start = sim_caching_alloc(self.t, cpu, thread, pages, align, &did)
            level = LEVELS[did.level]
        else:
            start, level = sim_kernel_pool(self.t, cpu, pages, align), "pool"
            if start == SIM_NONE:
                start, level = sim_kernel_space(self.t, cpu, pages, align), "space"
        if start == SIM_NONE:
            return None, 0, "none"
        return start, self.t.pages[start], level

    def free(self, uint32_t start, uint32_t cpu=0, uint32_t thread=0):
        """Whether something busy started here."""
        cdef sim_work did
        if thread >= self.threads:
            raise ValueError(f"thread {thread}")
        if self.t.design.is_caching:
            return sim_caching_release(self.t, cpu, thread, start, &did)
        return sim_kernel_free(self.t, start) >= 0

    def pass_time(self, uint32_t now_s):
        sim_caching_time(self.t, now_s)

    def purge(self, bint full=False):
        return sim_purge(self.t, full)

    def shrink(self):
        return sim_shrink(self.t)

    def begin(self, bint full):
        sim_purge_begin(self.t, full)

    def advance(self, str step, uint32_t node, uint32_t most=1):
        """One step of a purge; how many ranges it moved."""
        if node >= self.t.design.nr_nodes:
            raise ValueError(f"node {node}")
        if step == "decay":
            return sim_purge_decay(self.t, node)
        if step == "reclaim":
            return sim_purge_reclaim(self.t)
        if step == "detach":
            return sim_purge_detach(self.t, node)
        if step == "fill":
            return sim_purge_fill(self.t, node, most)
        if step == "settle":
            return sim_purge_settle(self.t, node)
        if step == "give back":
            return sim_purge_give_back(self.t, node)
        raise ValueError(step)

    def free_ranges(self):
        """[first, end) of every free range, by looking at each page; for tests of small windows."""
        found, page = [], 0
        while page < self.t.design.window_pages:
            end = sim_space_end_of(&self.t.space, page)
            if end:
                found.append((page, end))
                page = end
            else:
                page += 1
        return found

    @property
    def lazy_pages(self):
        return self.t.lazy_pages

    @property
    def lazy_pages_max(self):
        return sim_caching_lazy_max(self.t) if self.t.design.is_caching else self.t.design.lazy_pages_max

    @property
    def live_pages(self):
        return self.t.live_pages

    @property
    def nr_pooled(self):
        return self.t.nr_pooled

    @property
    def nr_purged(self):
        return self.t.nr_purged

    @property
    def served(self):
        return {level: self.t.served[i] for i, level in enumerate(LEVELS)}


cdef list histogram(const uint64_t *counts):
    """(ps, how many) of each bucket that has any; ps is the bucket's middle."""
    cdef int i
    found = []
    for i in range(SIM_HISTOGRAM):
        if counts[i]:
            if i < 16:
                middle = <double>i
            else:
                middle = (16 + i % 16 + 0.5) * 2.0 ** (i // 16 - 1)
            found.append((middle, counts[i]))
    return found


cdef class Simulation:
    """One run of the suite by threads on virtual CPUs."""

    cdef sim_sim *s

    def __cinit__(self, dict plan):
        cdef sim_plan p
        cdef int64_t *cost = p.cost
        p.design = design_of(plan["design"])
        p.topology.sockets, p.topology.clusters, p.topology.cores, p.topology.smt = plan["topology"]
        for i, name in enumerate(COSTS):
            scale = PS_PER_NS if COSTS[name] == "ns" else 1
            cost[i] = <int64_t>(plan["costs"][name] * scale + 0.5)
        p.threads = plan["threads"]
        p.mask = plan["mask"]
        p.loops = plan["loops"]
        p.nr_pages = plan["nr_pages"]
        p.full_fit = plan["full_fit"]
        p.lookups = plan["lookups"]
        p.looked_at = plan["looked_at"]
        p.request_ps = <int64_t>(plan["request_us"] * 1e6 + 0.5)
        p.long_busy = plan["long_busy"]
        p.shrunk = plan["shrunk"]
        p.in_order = plan["in_order"]
        p.guard_pages = plan["guard_pages"]
        p.setup_twice = plan["setup_twice"]
        p.atomic_per_area = plan["atomic_per_area"]
        p.shrink_every_us = plan["shrink_every_us"]
        p.shrink_nodes, p.shrink_rotates = plan["shrink_nodes"], plan["shrink_rotates"]
        p.purge_is_full = plan["purge_is_full"]
        p.log_calls = plan["log_calls"]
        p.warm_purges = plan["warm_purges"]
        p.seed = plan["seed"]
        self.s = sim_new(&p)
        if self.s is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.s is not NULL:
            sim_delete(self.s)

    def run(self, progress=None):
        """Run to the end; `progress` is called with the share done. Signals are seen in between."""
        cdef bint more = True
        cdef uint64_t events = EVENTS_AT_ONCE
        while more:
            with nogil:
                more = sim_run(self.s, events)
            PyErr_CheckSignals()  # without `progress` nothing of Python runs here, and nothing else looks
            if progress is not None:
                progress(sim_progress(self.s))
        return self.results()

    def results(self):
        """What was measured, as a dictionary; times in ns."""
        cdef const sim_result *r = sim_results(self.s)
        locks = {
            name: {
                "visits": r.lock[i].visits,
                "contended": r.lock[i].contended,
                "wait_ns": r.lock[i].wait_ps / PS_PER_NS,
                "hold_ns": r.lock[i].hold_ps / PS_PER_NS,
            }
            for i, name in enumerate(LOCKS)
        }
        return {
            "end_ns": r.end_ps / PS_PER_NS,
            "warm_ns": r.warm_ps / PS_PER_NS,
            "thread_ns": r.thread_ps / PS_PER_NS,
            "first_end_ns": r.thread_end_min_ps / PS_PER_NS,
            "pairs": r.pairs,
            "warm_pairs": r.warm_pairs,
            "locks": locks,
            "alloc": histogram(r.alloc_ps),
            "free": histogram(r.free_ps),
            "quarters": [(r.quarter_hits[i], r.quarter_calls[i]) for i in range(4)],
            "served": {level: r.served[i] for i, level in enumerate(LEVELS)},
            "purges": r.purges,
            "purged": r.purged,
            "helped": r.helped,
            "node_purges": r.node_purges,
            "node_purge_ns": r.node_purge_ps / PS_PER_NS,
            "node_purge_max_ns": r.node_purge_max_ps / PS_PER_NS,
            "test_ns": [r.test_ps[i] / PS_PER_NS for i in range(SIM_TESTS)],
            "calls": [r.calls[i] for i in range(SIM_TESTS)],
            "lazy_max_pages": r.lazy_max,
            "lazy_mean_pages": r.lazy_mean,
            "pooled_max_pages": r.pooled_max,
            "pooled_mean_pages": r.pooled_mean,
            "top_pages": r.top_pages,
            "live_max_pages": r.live_max,
            "ranges_max": r.ranges_max,
            "events": r.events,
            "error": r.error,
        }

    def calls(self):
        """The calls of the twin: (call, cpu or node, pages, align or thread, first page or None)."""
        cdef uint32_t nr
        cdef uint32_t i
        cdef const uint32_t *log = sim_log(self.s, &nr)
        return [
            (CALLS[log[5 * i]], log[5 * i + 1], log[5 * i + 2], log[5 * i + 3], page_or_none(log[5 * i + 4]))
            for i in range(nr)
        ]


cdef checked(int rc):
    if rc:
        raise OSError(-rc, os.strerror(-rc))


def measure_locked():
    """(ns of a locked add, ns of a compare-exchange)."""
    cdef double add, cas
    with nogil:
        sim_measure_locked(&add, &cas)
    return add, cas


def measure_line(int cpu_a, int cpu_b):
    """ns that a line takes from one CPU to the other."""
    cdef double ns = 0
    cdef int rc
    with nogil:
        rc = sim_measure_line(cpu_a, cpu_b, &ns)
    checked(rc)
    return ns


def measure_wake(int cpu_a, int cpu_b):
    """ns from waking a thread to its running, on another CPU."""
    cdef double ns = 0
    cdef int rc
    with nogil:
        rc = sim_measure_wake(cpu_a, cpu_b, &ns)
    checked(rc)
    return ns


def measure_pages():
    """(ns of a first touch, of 4 KiB cleared in the cache, of 4 KiB cleared out of it)."""
    cdef double touch, hot, cold
    cdef int rc
    with nogil:
        rc = sim_measure_pages(&touch, &hot, &cold)
    checked(rc)
    return touch, hot, cold


def measure_unmap(int threads):
    """ns to give one page back while so many other threads run."""
    cdef double ns = 0
    cdef int rc
    with nogil:
        rc = sim_measure_unmap(threads, &ns)
    checked(rc)
    return ns
