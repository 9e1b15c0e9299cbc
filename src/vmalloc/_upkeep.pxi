# SPDX-License-Identifier: MIT
# Part of _core.pyx: RegionUpkeep, the second of a region's classes: what keeps a region in order, and what looks
# at all of it.

cdef class RegionUpkeep(RegionHandle):
    """Purge, shrink, recover, tick; check, repair; statistics."""

    def purge(self):
        """Discard lazily freed ranges and a quarter of each pool. Returns the bytes given back."""
        return self.upkeep(call_purge, "purge")

    def shrink(self):
        """Give everything back that is not in use, magazines and pools too. Returns the bytes."""
        return self.upkeep(call_shrink, "shrink")

    def recover(self):
        """Reclaim what dead processes left. Returns the bytes; 0 when nobody died."""
        nbytes = self.upkeep(call_recover, "recover")
        if nbytes:
            log(INFO, "recovered %s of processes that died", size_text(nbytes))
        return nbytes

    cdef object upkeep(self, Work work, str what):
        cdef Call c
        c.nr = 0
        self.open_check()
        self.run(work, &c, what)
        return c.nr * self.granule

    def tick(self):
        """One round of upkeep, for a program without a helper; returns None.

        What nobody used for a few seconds goes back to the system by and by, processes that died are recovered,
        leases that are due end. Does nothing when this process's last round was less than a fifth of a second
        ago. Waits for no neighbour. Raises RegionClosed.
        """
        cdef Call c
        self.open_check()
        self.run(call_tick, &c, "tick")

    @property
    def helper(self):
        """Whether a thread of this process ticks, as long as it is elected among all attached processes.

        It takes no signals and calls no Python. It is stopped before a fork and started again afterwards.
        """
        return self.has_helper

    @helper.setter
    def helper(self, bint wanted):
        cdef int rc = 0
        self.open_check()
        if self.readonly:
            if wanted:
                raise self.fail(-EROFS, "helper")
            return
        with nogil:
            if wanted:
                rc = vm_helper_start(self.r)
            else:
                vm_helper_stop(self.r)
        self.has_helper = wanted and rc == 0  # where no thread can be had, others help, or tick()

    def _limits(self):
        """(limit, soft limit, quota, floor) in bytes; 0: none."""
        cdef vm_limits l
        self.open_check()
        vm_get_limits(self.r, &l)
        return (l.limit_pages * self.granule, l.soft_limit_pages * self.granule, l.quota_pages * self.granule,
                l.floor_pages * self.granule)

    def _set_limit(self, int which, uint64_t nbytes):
        """One of _limits(), by its place there; at least a page unless 0."""
        self.open_check()
        cdef uint64_t nr_pages = min(max(nbytes // self.granule, 1), PAGES_MAX) if nbytes else 0
        cdef int rc = vm_set_limit(self.r, <vm_limit>which, nr_pages)
        if rc:
            raise self.fail(rc, "limits")

    def expire_leases(self, double older_than_s=0, *, bint all=True):
        """End the leases of messages that nobody loaded; their later loads raise StaleReference.

        Of all processes' messages and Refs made at least `older_than_s` seconds ago: allow for those that are
        only late. `all=False` ends only those whose maker has been dead for `lease_ttl_s`, as every purge
        does. Returns how many ended.
        """
        cdef Call c
        if not 0 <= older_than_s < 1e9:
            raise ValueError(f"older_than_s must be from 0 to 1e9, not {older_than_s}")
        c.older_than_ns = max(<uint64_t>(older_than_s * 1e9), 1) if all else 0
        c.nr = 0
        self.open_check()
        self.run(call_expire_leases, &c, "expire_leases")
        return c.nr

    def _check(self, bint at_rest):
        """Findings of the invariant check, as text."""
        return self.findings(call_check, at_rest, "check")

    def _repair(self):
        """Make hints agree with the words; what was wrong, as text."""
        return self.findings(call_repair, False, "repair")

    cdef list findings(self, Work work, bint at_rest, str what):
        cdef Call c
        c.at_rest = at_rest
        return self.collected(work, &c, texts_of, what, True)

    cdef list collected(self, Work work, Call *call, ListOf list_of, str what, bint may_be_corrupt):
        """A list of what a call finds: without the interpreter lock until all is there, then made at once."""
        cdef Found found
        memset(&found, 0, sizeof(found))
        try:
            self.collect(work, call, &found, what, may_be_corrupt)
            return list_of(&found)
        finally:
            c_free(found.data)

    cdef int collect(self, Work work, Call *call, Found *found, str what, bint may_be_corrupt) except -1:
        """What a call finds, in `found`, whose data the caller frees also after a failure."""
        cdef int rc
        self.open_check()
        call.found = found
        rc = self.result_of(work, call)
        if found.is_short:
            rc = -ENOMEM
        if rc < 0 and not (may_be_corrupt and rc == -EUCLEAN):
            raise self.fail(rc, what)
        return 0

    def _stats(self):
        cdef vm_stats s
        cdef Call c
        c.stats = &s
        self.open_check()
        self.run(call_stats, &c, "stats")
        return s

    def _glance(self):
        """A few counters of _stats(), without a lock and without a walk."""
        cdef vm_glance g
        self.open_check()
        vm_get_glance(self.r, &g)
        return g

    def _ranges(self):
        """A Range for every range, in address order."""
        cdef Call c
        return self.collected(call_walk, &c, ranges_of, "ranges", False)

    def _range_table(self):
        """The same natively, for who looks at millions."""
        cdef Call c
        cdef RangeTable table = RangeTable.__new__(RangeTable)
        table.granule, table.nr_pages = self.granule, self._info()["nr_pages"]
        self.collect(call_walk, &c, &table.found, "ranges", False)
        return table


def cgroup_limit():
    """Bytes that this process's memory cgroup and those above it allow, of either version; None: no limit."""
    cdef uint64_t nbytes
    with nogil:
        nbytes = vm_cgroup_limit()
    return None if nbytes == <uint64_t>-1 else nbytes
