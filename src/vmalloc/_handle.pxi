# SPDX-License-Identifier: MIT
# Part of _core.pyx: RegionHandle, the base of a region's classes. It has the mapping, waits for the core, and
# makes errors of results.

STATES = ("free", "busy", "cached", "pooled", "lazy", "moving", "purging", "freeing")

def _versions(int fd):
    """What made the region behind a descriptor, and what this is: offsets of the header that every format keeps."""
    head = os.pread(fd, 48, 0)
    form, page_bytes = (int.from_bytes(head[at:at + 4], "little") for at in (8, 12))
    made_by = head[32:48].rstrip(b"\0").decode("ascii", "replace") if form >= 3 else ""
    return (f"it has format {form}{made_by and ', of vmalloc ' + made_by}, and pages of {page_bytes} bytes; this is vmalloc "
            f"{VM_VERSION.decode()}, which reads format {FORMAT}, and pages of {os.sysconf('SC_PAGESIZE')} bytes. "
            "Use the version that made it, or make the region anew")


cdef object attach_error(int rc, int fd):
    """The error for a descriptor that vm_attach() refused."""
    cdef vm_region *r = NULL
    cdef vm_info info
    if rc != -ENOLCK or vm_attach_readonly(fd, &r) != 0:
        return error_of(-rc, "attach", what=f"descriptor {fd}", versions=_versions(fd) if rc == -EPROTO else "",
                        processes="its")
    vm_describe(r, &info)
    vm_detach(r)
    return error_of(-rc, "attach", what=f"descriptor {fd}", processes=info.nr_processes)


cdef class RegionHandle:
    """A region's mapping in this process."""

    def __cinit__(self):
        self.r = NULL
        self.closed = False
        self.has_pages = False
        self.timeout_s = 10.0
        self._limited_by = ""
        self.guard_bytes = 0

    def __dealloc__(self):
        if self.r != NULL:
            _attached.forget(self.id_[:16])
            with nogil:
                vm_detach(self.r)
            self.r = NULL
        if self.numpy_ranges != NULL:
            munmap(self.numpy_ranges, self.nr_pages_ * sizeof(NumpyRange))

    # ---- made, attached, closed ----

    def _create(self, uint64_t nr_pages, *, str name, str pools, uint64_t granule, uint64_t base,
                uint64_t limit_pages, uint64_t lazy_pages_max, uint32_t nr_nodes, uint32_t nr_threads,
                uint32_t nr_processes,
                bint keep_on_death, double lease_ttl_s, bint huge, bint hardened):
        cdef vm_options o
        cdef bytes encoded = name.encode()
        cdef int rc
        memset(&o, 0, sizeof(o))
        o.nr_pages = nr_pages
        o.granule_bytes = granule
        o.base = base
        o.limit_pages = limit_pages
        o.lazy_pages_max = lazy_pages_max
        o.nr_nodes = nr_nodes
        o.nr_threads = nr_threads
        o.nr_processes = nr_processes
        o.pools = <vm_pools>POOLS.index(pools)
        o.keep_on_death = keep_on_death
        o.lease_ttl_s = lease_ttl_s
        o.huge = huge
        o.hardened = hardened
        o.name = encoded
        with nogil:
            rc = vm_create(&o, &self.r)
        if rc:
            self.closed = True
            raise error_of(-rc, "create", what=f"cannot create a region of {nr_pages} pages")
        self.remember()

    def _attach(self, int fd, bint readonly=False, bint is_given=False):
        cdef int rc
        self.readonly = readonly
        with nogil:
            if is_given:
                rc = vm_attach_given(fd, readonly, &self.r)
            else:
                rc = vm_attach_readonly(fd, &self.r) if readonly else vm_attach(fd, &self.r)
        if rc:
            self.closed = True
            raise attach_error(rc, fd)
        self.remember()

    cdef int remember(self) except -1:
        cdef vm_info info
        vm_describe(self.r, &info)
        self.granule = info.granule_bytes
        self.nr_pages_ = info.nr_pages
        self.has_pages = vm_pointer(self.r, 0) != NULL
        vm_set_lock_timeout(self.r, self.timeout_s)
        vm_mark_reads(self.r, notes_reads())
        self.id_ = info.id
        if self.has_pages:
            note_bounds(self)
        if info.hardened and self.has_pages and not self.readonly:
            from vmalloc.hardened import GUARD_BYTES, Guard
            self.guard_bytes = GUARD_BYTES
            self._guard = Guard(self.nr_pages_, self.granule)
        return 0

    def close(self):
        """Refuse further requests; the mapping stays until the last array or block of it is gone."""
        self.closed = True
        self.has_pages = False

    def _unmap(self):
        """In a forked child that has nothing of it: close, and give the address space back. False: it has."""
        cdef vm_info info
        if self.r == NULL or self.closed or vm_nr_inherited(self.r):
            return False
        vm_describe(self.r, &info)
        if info.process_slot >= info.nr_processes or any(
                h[0] == info.process_slot for h in self._holdings(PROCESSES_MAX + 1)):
            return False
        self.close()
        _attached.pop(self.id_[:16])
        with nogil:
            vm_detach(self.r)
        self.r = NULL
        return True

    cdef int open_check(self) except -1:
        if self.closed or self.r == NULL:
            raise errors.RegionClosed("the region was closed in this process; attach it again or make a new one")
        return 0

    cdef int pages_check(self) except -1:
        self.open_check()
        if not self.has_pages:
            raise TypeError("an AddressSpace has no memory behind its numbers: use its alloc() and free()")
        return 0

    # ---- waiting and failing ----

    cdef int result_of(self, Work work, Call *call) except? -1:
        """The core's result: 0 or more, or a negative errno. The one place where Python waits for the core.

        The interpreter lock is not held meanwhile. After each slice of waiting signals are looked at; what a
        handler raises ends the call, of which nothing was done then. Handlers and finalizers that run between
        the slices may call the core themselves, so nothing of this wait may be in force there.
        """
        cdef int rc
        cdef vm_wait wait
        memset(&wait, 0, sizeof(wait))
        wait.in_slices = True
        while True:
            with nogil:
                vm_wait_begin(&wait)
                rc = work(self.r, call)
                vm_wait_end()
            if rc != -EINTR:
                return rc
            PyErr_CheckSignals()

    cdef int run(self, Work work, Call *call, object what, object nr_pages=0) except -1:
        """result_of(), its error raised; `nr_pages` is what was asked for."""
        cdef int rc = self.result_of(work, call)
        if rc < 0:
            raise self.fail(rc, what, nr_pages)
        return rc

    cdef object fail(self, int rc, object what, object nr_pages=0, str call="", dict told={}):
        """The error that belongs to a result of the core; `call` and `told` as for error_of()."""
        return log_refusal(self.error(rc, what, nr_pages, call, told))

    cdef object error(self, int rc, object what, object nr_pages, str call, dict told):
        cdef vm_info info
        if rc == -ENOSPC or rc == -EDQUOT:
            return self.out_of_pages(rc, nr_pages, call)
        if rc == -EBUSY:
            return error_of(EBUSY, call, what=what, pid=vm_busy_pid(self.r), timeout_s=self.timeout_s)
        if rc == -ENOLCK:
            vm_describe(self.r, &info)
            return error_of(ENOLCK, call, what=what, processes=info.nr_processes)
        return error_of(-rc, call, what=what, **told)

    cdef object out_of_pages(self, int rc, object nr_pages, str call):
        """OutOfPages with all that is known of why."""
        cdef vm_shortage s
        cdef Call c
        c.shortage, c.error, c.nr_pages = &s, rc, min(nr_pages, PAGES_MAX)
        if self.result_of(call_explain, &c) != 0:
            return error_of(ENOSPC, call, room=f"{nr_pages} pages requested")
        return shortage_error(
            self.granule, nr_pages, self.nr_pages_, s.free_pages, s.largest_free_pages, s.busy_pages, s.lazy_pages,
            s.headroom_pages, s.limits.limit_pages, s.limits.quota_pages, s.cause, self._holdings(5),
            self._limited_by or "",
        )

    def _holdings(self, size_t most, bint idle_too=False, bint once=False):
        """(process slot, pid, bytes) of the processes that hold most, the most first.

        `once`: what several processes share counts for one of them only.
        """
        cdef Call c
        cdef vm_holding *held = <vm_holding *>c_malloc(max(most, 1) * sizeof(vm_holding))
        if held == NULL:
            raise MemoryError
        try:
            self.open_check()
            c.count, c.holdings = most, held
            nr = self.result_of(call_processes if idle_too else call_holdings, &c)
            return [(held[i].process, held[i].pid,
                     (held[i].nr_pages_once if once else held[i].nr_pages) * self.granule) for i in range(nr)]
        finally:
            c_free(held)

    def _held_once(self):
        """(process slot, pid, bytes): what several processes share counts for one of them only."""
        return self._holdings(PROCESSES_MAX + 1, once=True)

    @property
    def lock_timeout_s(self):
        """How long a request waits for a lock whose owner is alive; then RegionBusy."""
        return self.timeout_s

    @lock_timeout_s.setter
    def lock_timeout_s(self, double seconds):
        if not seconds > 0:
            raise ValueError(f"lock_timeout_s must be positive, not {seconds}")
        self.timeout_s = seconds = min(seconds, 1e9)
        if self.r != NULL:
            vm_set_lock_timeout(self.r, seconds)

    def fail_every(self, uint64_t nth):
        """Fault injection: every nth request of this process raises OutOfPages; 0 turns it off."""
        self.open_check()
        vm_fail_every(self.r, nth)

    # ---- looked at ----

    def fileno(self):
        """The memfd's descriptor: pass it to another process to attach there."""
        self.open_check()
        cdef int fd = vm_fd(self.r)
        if fd < 0:
            raise self.fail(fd, "fileno")
        return fd

    def _info(self):
        cdef vm_info info
        self.open_check()
        vm_describe(self.r, &info)
        return {"id": info.id[:16], "nr_pages": info.nr_pages, "page_size": info.page_bytes,
                "granule": info.granule_bytes, "base": info.base, "total_bytes": info.total_bytes,
                "limit_pages": info.limit_pages, "lazy_pages_max": info.lazy_pages_max,
                "nr_nodes": info.nr_nodes, "nr_processes": info.nr_processes, "nr_threads": info.nr_threads,
                "process_slot": info.process_slot,
                "floor_pages": info.floor_pages, "huge": info.huge, "huge_error": info.huge_error,
                "hardened": info.hardened, "format": info.format, "has_pages": vm_pointer(self.r, 0) != NULL,
                "pools": POOLS[info.pools]}
