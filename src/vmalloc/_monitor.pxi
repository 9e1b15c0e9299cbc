# SPDX-License-Identifier: MIT
# Part of _core.pyx: Monitor, by which somebody looks at a region again and again without taking part.

@cython.final
cdef class Monitor:
    """What goes on in a region: counters, pools; and all words at once. No lock is taken."""
    cdef RegionHandle region

    def __init__(self, RegionHandle region not None):
        """RegionClosed."""
        region.open_check()
        self.region = region

    def look(self):
        """(counters, ranges in magazines by size). Walks no words."""
        cdef vm_monitored seen
        self.region.open_check()
        vm_monitor_look(self.region.r, &seen)
        return seen.counters, [seen.in_magazines[i] for i in range(POOL_PAGES_MAX)]

    def pools(self, uint32_t node):
        """Ready ranges of a node's pools, by size."""
        cdef uint32_t nr[VM_POOL_PAGES_MAX]
        self.region.open_check()
        vm_monitor_pools(self.region.r, node, nr)
        return [nr[i] for i in range(POOL_PAGES_MAX)]

    def survey(self):
        """(statistics, (slot, pid, bytes) of each process, the largest busy ranges, whether all words parsed)."""
        cdef vm_survey s
        cdef Found found
        self.region.open_check()
        with nogil:
            vm_survey_look(self.region.r, &s)
        found.data, found.nr = <char *>s.largest, s.nr_largest
        holdings = [
            (s.holdings[i].process, s.holdings[i].pid, s.holdings[i].nr_pages * self.region.granule)
            for i in range(s.nr_holdings)
        ]
        return s.stats, holdings, ranges_of(&found), s.is_whole
