# SPDX-License-Identifier: MIT
# Declarations of core/vmalloc.h, and of the classes of _core.pyx, which are in its parts.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "stdbool.h":
    ctypedef bint c_bool "bool"


cdef extern from "vmalloc.h" nogil:
    ctypedef struct vm_region:
        pass

    ctypedef struct vm_range:
        uint64_t page
        uint64_t nr_pages
        uint64_t id
        c_bool zeroed

    ctypedef int vm_pools  # a row of vmalloc.facts.POOL_DESIGNS

    enum:
        VM_NO_WAIT
        VM_NO_PURGE
        VM_HIT_ONLY
        VM_INHERITED

    ctypedef struct vm_options:
        uint64_t nr_pages
        uint64_t granule_bytes
        uint64_t base
        uint64_t limit_pages
        uint64_t lazy_pages_max
        uint32_t nr_nodes
        uint32_t nr_threads
        uint32_t nr_processes
        vm_pools pools
        c_bool keep_on_death
        c_bool huge
        c_bool hardened
        double lease_ttl_s
        const char *name

    ctypedef struct vm_info:
        uint8_t id[16]
        uint64_t nr_pages, page_bytes, granule_bytes, base, total_bytes, limit_pages, lazy_pages_max, floor_pages
        uint32_t nr_nodes, nr_processes, nr_threads, process_slot, format, flags
        int huge_error
        c_bool huge, hardened
        vm_pools pools

    ctypedef struct vm_stats:
        uint64_t nr_pages, free_pages, busy_pages, cached_pages, pooled_pages, lazy_pages, moving_pages
        uint64_t nr_ranges, nr_busy, nr_shared, nr_free_ranges, largest_free_pages
        uint64_t resident_bytes
        uint64_t nr_processes, nr_thread_slots
        uint64_t nr_alloc, nr_magazine_hit, nr_slab_hit, nr_pool_hit, nr_neighbour_hit, nr_lazy_hit, nr_space_hit
        uint64_t nr_failed, lock_wait_ns
        uint64_t nr_purges, nr_purged_pages, nr_discards, nr_splits, nr_merges, nr_recovered
        uint64_t nr_leases
        uint64_t nr_ticks, nr_decayed_pages
        uint32_t helper_pid, pressure, pressure_sources
        int per_cpu

    ctypedef struct vm_limits:
        uint64_t limit_pages, soft_limit_pages, quota_pages, floor_pages

    ctypedef struct vm_holding:
        uint32_t process, pid
        uint64_t nr_pages, nr_pages_once

    ctypedef struct vm_shortage:
        uint64_t free_pages, largest_free_pages, busy_pages, lazy_pages, headroom_pages
        vm_limits limits
        int cause

    ctypedef struct vm_range_info:
        uint64_t page, nr_pages, id
        uint32_t state, owner
        c_bool shared, dirty

    int vm_create(const vm_options *options, vm_region **out)
    int vm_attach(int fd, vm_region **out)
    int vm_attach_readonly(int fd, vm_region **out)
    int vm_attach_given(int fd, c_bool readonly, vm_region **out)
    int vm_detach(vm_region *r)
    int vm_fd(const vm_region *r)
    void *vm_pointer(const vm_region *r, uint64_t page)
    void vm_describe(const vm_region *r, vm_info *out)
    int vm_alloc(vm_region *r, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
    int vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
    int vm_free_kept(vm_region *r, uint64_t page, uint64_t id, unsigned flags, vm_range *out)
    int vm_alloc_cold(vm_region *r, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
    int vm_populate(vm_region *r, uint64_t page, uint64_t nr_pages)
    int vm_keep_warm(vm_region *r, uint64_t nr_pages)
    int vm_zero(vm_region *r, uint64_t page, uint64_t bytes)
    int vm_alloc_bulk(vm_region *r, uint64_t nr_pages, uint64_t align_pages, size_t count, vm_range *out)
    int vm_lookup(vm_region *r, uint64_t page, vm_range *out)
    enum:
        VM_NOTED_PAGES
    int vm_find(vm_region *r, const void *address, vm_range *out)
    void vm_note(vm_region *r, const vm_range *range)
    int vm_share(vm_region *r, uint64_t page, uint64_t id)
    int vm_adopt(vm_region *r, uint64_t page, uint64_t id, vm_range *out)
    int vm_lease(vm_region *r, uint64_t page, uint64_t id, uint64_t *lease)
    int vm_lease_message(vm_region *r, uint64_t page, uint64_t id, uint64_t channel, uint64_t *lease)
    uint64_t vm_channel_of(int fd)
    ctypedef struct vm_lease_name:
        uint64_t page, id, lease

    ctypedef enum vm_move:
        VM_MOVE_SENDING
        VM_MOVE_SENT
        VM_MOVE_RECEIVED
        VM_MOVE_LOST

    bint vm_has_leases(const vm_region *r)
    bint vm_are_being_sent(vm_region *r, const vm_lease_name *leases, size_t nr, uint64_t channel)
    int vm_move_leases(vm_region *r, const vm_lease_name *leases, size_t nr, vm_move move, uint64_t channel)
    void vm_mark_reads(vm_region *r, c_bool marks)
    int vm_end_oldest(vm_region *r, uint64_t nr_pages, uint64_t *nr_ended)
    int vm_claim(vm_region *r, uint64_t page, uint64_t id, uint64_t lease, vm_range *out)
    int vm_drop_lease(vm_region *r, uint64_t lease)
    int vm_expire_leases(vm_region *r, uint64_t older_than_ns, uint64_t *nr)
    uint64_t vm_nr_inherited(const vm_region *r)
    int vm_drop_inherited(vm_region *r, uint64_t *nr)
    ctypedef struct vm_window:
        pass
    int vm_window_open(int fd, c_bool is_given, vm_window **out)
    int vm_window_fd(const vm_window *w)
    int vm_window_read(const vm_window *w, uint64_t page, uint64_t id, uint64_t at, uint64_t nbytes, void *out)
    void vm_window_done(const vm_window *w, uint64_t lease)
    void vm_window_keep(const vm_window *w, uint64_t lease)
    void vm_window_close(vm_window *w)
    int vm_name_set(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
    int vm_name_new(vm_region *r, const char *name, uint64_t page, uint64_t id, const void *meta, size_t bytes)
    int vm_name_get(vm_region *r, const char *name, vm_range *out, void *meta, size_t *bytes)
    int vm_name_delete(vm_region *r, const char *name)
    int vm_name_list(vm_region *r, int (*each)(void *, const char *, uint64_t) noexcept nogil, void *arg)
    int vm_purge(vm_region *r, uint64_t *pages)
    int vm_shrink(vm_region *r, uint64_t *pages)
    int vm_recover(vm_region *r, uint64_t *pages)
    int vm_get_stats(vm_region *r, vm_stats *out)
    ctypedef struct vm_glance:
        uint64_t free_pages, lazy_pages, pooled_pages, nr_leases, nr_processes

    void vm_get_glance(const vm_region *r, vm_glance *out)
    enum:
        VM_POOL_PAGES_MAX
        VM_PROCESSES_MAX

    ctypedef struct vm_monitored:
        vm_stats counters
        uint32_t *in_magazines

    ctypedef struct vm_survey:
        vm_stats stats
        vm_holding *holdings
        vm_range_info *largest
        uint32_t nr_holdings, nr_largest
        c_bool is_whole

    void vm_monitor_look(const vm_region *r, vm_monitored *out)
    void vm_monitor_pools(const vm_region *r, uint32_t node, uint32_t *nr_ranges)
    void vm_survey_look(const vm_region *r, vm_survey *out)
    enum:
        VM_EVENT_RING

    ctypedef struct vm_recorder:
        pass
    int vm_record_start(vm_region *r, c_bool exact, vm_recorder **out)
    void vm_record_clock(uint64_t *ns, uint64_t *ticks)
    uint32_t vm_record_slots(const vm_recorder *rec)
    uint32_t vm_record_pid(const vm_recorder *rec, uint32_t slot)
    uint32_t vm_record_read(vm_recorder *rec, uint32_t slot, uint32_t room, uint64_t *out, uint64_t *lost)
    void vm_record_stop(vm_recorder *rec)
    void vm_record_end(vm_recorder *rec)
    int vm_record_watch(vm_region *r, vm_recorder **out)
    c_bool vm_record_is_on(const vm_recorder *rec)
    int vm_walk(vm_region *r, int (*each)(void *, const vm_range_info *) noexcept nogil, void *arg)
    int vm_check(vm_region *r, c_bool at_rest, void (*say)(void *, const char *) noexcept nogil, void *arg)
    int vm_repair(vm_region *r, void (*say)(void *, const char *) noexcept nogil, void *arg)
    ctypedef struct vm_wait:
        uint64_t timeout_ns
        c_bool in_slices
        uint64_t since_ns

    void vm_wait_begin(vm_wait *wait)
    void vm_wait_end()
    int vm_tick(vm_region *r)
    int vm_helper_start(vm_region *r)
    void vm_helper_stop(vm_region *r)
    void vm_helpers_resume()
    int vm_get_limits(vm_region *r, vm_limits *out)
    ctypedef enum vm_limit:
        pass
    int vm_set_limit(vm_region *r, vm_limit which, uint64_t nr_pages)
    int vm_holdings(vm_region *r, size_t room, vm_holding *out)
    int vm_processes(vm_region *r, size_t room, vm_holding *out)
    uint64_t vm_cgroup_limit()
    int vm_explain(vm_region *r, uint64_t nr_pages, int error, vm_shortage *out)
    void vm_set_lock_timeout(vm_region *r, double seconds)
    uint32_t vm_busy_pid(const vm_region *r)
    uint64_t vm_lock_wait_ns(vm_region *r)
    uint64_t vm_pages_of(const vm_region *r, uint64_t bytes)
    void vm_fail_every(vm_region *r, uint64_t nth)


# ---- calls that may wait ----

# What the core found, one thing after the other.
cdef struct Found:
    char *data
    size_t nbytes, room
    size_t nr
    bint is_short  # of memory: not all is there

# What a call is given, and where its result goes. Each kind of call has its fields; the others are not set.
cdef struct Call:
    uint64_t page, id, lease, channel
    uint64_t nr_pages, align_pages
    uint64_t older_than_ns
    uint64_t nr  # result: pages or things, as the call counts
    size_t count  # of ranges
    unsigned flags
    vm_range *out
    uint64_t *new_lease
    const char *name
    const void *meta
    void *meta_out
    size_t meta_bytes
    bint must_be_new, at_rest, is_message
    vm_stats *stats
    vm_shortage *shortage
    int error  # that the shortage is about
    vm_holding *holdings
    Found *found

ctypedef int (*Work)(vm_region *, Call *) noexcept nogil
ctypedef list (*ListOf)(Found *)


# ---- a region: one class for each thing that it does, each the base of the next ----

cdef class RegionHandle:
    cdef vm_region *r
    cdef readonly bint closed
    cdef readonly bint readonly
    cdef bint has_pages  # open, and no address space
    cdef uint64_t granule, nr_pages_
    cdef uint64_t guard_bytes  # behind each block and array of a hardened region; else 0
    cdef readonly object _guard  # a vmalloc.hardened.Guard, or None
    cdef double timeout_s
    cdef bint has_helper
    cdef void *numpy_ranges  # of arrays that numpy_arrays() made, by page
    cdef public str _limited_by  # why a default region is smaller than the machine's memory
    cdef uint8_t id_[16]
    cdef object __weakref__
    cdef int remember(self) except -1
    cdef int open_check(self) except -1
    cdef int pages_check(self) except -1
    cdef int result_of(self, Work work, Call *call) except? -1
    cdef int run(self, Work work, Call *call, object what, object nr_pages=*) except -1
    cdef object fail(self, int rc, object what, object nr_pages=*, str call=*, dict told=*)
    cdef object error(self, int rc, object what, object nr_pages, str call, dict told)
    cdef object out_of_pages(self, int rc, object nr_pages, str call)


cdef class RegionUpkeep(RegionHandle):
    cdef object upkeep(self, Work work, str what)
    cdef list findings(self, Work work, bint at_rest, str what)
    cdef list collected(self, Work work, Call *call, ListOf list_of, str what, bint may_be_corrupt)
    cdef int collect(self, Work work, Call *call, Found *found, str what, bint may_be_corrupt) except -1


cdef class Holding


cdef class RegionReferences(RegionUpkeep):
    cdef public object _where  # what attach.py says of this region in messages; None: nothing yet
    cdef object where_told
    cdef bytes where_packed
    cdef int lease_of(self, Holding holding, uint64_t *lease, bint is_message) except -1
    cdef int adopt(self, uint64_t page, uint64_t id, uint64_t lease, vm_range *out, object what) except -1


cdef class CoreRegion(RegionReferences):
    cdef int take(self, uint64_t nbytes, uint64_t align, object timeout, vm_range *out) except -1
    cdef int take_slowly(self, uint64_t nr_pages, uint64_t align_pages, unsigned flags, object timeout,
                         vm_range *out) except -1
    cdef int take_later(self, Call *c, double seconds) except? -1
    cdef bint end_oldest(self, object nr_pages) except -1
    cdef vm_range *take_bulk(self, uint64_t nr_pages, uint64_t align_pages, size_t n) except NULL
    cdef int guard_new(self, vm_range *got, Py_ssize_t nbytes) except -1
    cdef int guard_bulk(self, vm_range *got, size_t i, size_t n, Py_ssize_t nbytes) except -1
    cdef int free_guarded(self, uint64_t page, uint64_t id, bint inherited, object freeing) except? -1
    cdef object new_array(self, object shape, object dtype, object order, bint zero, object timeout)


# ---- what holds a range ----

cdef class Holding:
    cdef CoreRegion _region
    cdef uint64_t page, nr_pages, id
    cdef readonly Py_ssize_t nbytes
    cdef Py_ssize_t nr_exports
    cdef unsigned long fork_epoch
    cdef bint held
    cdef readonly bint zeroed
    cdef object __weakref__
    cdef void bind(self, CoreRegion region, vm_range *range, Py_ssize_t nbytes) noexcept
    cdef int let_go(self) except -1
    cdef int let_go_slowly(self) except -1
    cdef int let_go_guarded(self) except -1
    cdef int finalize_guarded(self) except -1
    cdef int free_quietly(self) noexcept
    cdef int alive_check(self, RegionHandle region) except -1
    cdef str released_text(self)


cdef class ArrayOwner(Holding):
    pass


cdef class Block(Holding):
    pass
