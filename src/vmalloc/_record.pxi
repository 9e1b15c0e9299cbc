# SPDX-License-Identifier: MIT
# Part of _core.pyx: Recorder, which switches a region's events on and reads them while they are written, and
# RecordingWatch, which counts those that somebody else records.

cdef extern from *:
    """
    enum { EVENT_BYTES = 16 }; /* two words, as vm_event */
    enum { EVENT_KINDS = 1 << VM_EVENT_LEN_SHIFT };
    """
    enum:
        EVENT_BYTES
        EVENT_KINDS


@cython.final
@cython.no_gc_clear  # in a reference cycle too the region is there until its rings were given back
cdef class Recorder:
    """The events of one region, from now on. One process at a time; what a child inherits of it reads nothing."""
    cdef RegionHandle region
    cdef vm_recorder *rec
    cdef uint64_t *room

    def __init__(self, RegionHandle region not None, bint exact=False):
        """RegionClosed, RegionUnavailable; RegionBusy if somebody records already."""
        cdef int rc
        if self.region is not None:
            raise ValueError("made once")
        region.open_check()
        self.room = <uint64_t *>c_malloc(VM_EVENT_RING * EVENT_BYTES)
        if self.room == NULL:
            raise MemoryError
        with nogil:
            rc = vm_record_start(region.r, exact, &self.rec)
        if rc == -EBUSY:
            from vmalloc.errors import RegionBusy
            raise RegionBusy("somebody records this region already")
        if rc:
            raise region.fail(rc, "record")
        self.region = region

    def __dealloc__(self):
        if self.rec != NULL and self.region is not None and self.region.r != NULL:
            vm_record_end(self.rec)
        c_free(self.room)

    @staticmethod
    def clock():
        """(CLOCK_MONOTONIC in ns, ticks) now."""
        cdef uint64_t ns, ticks
        vm_record_clock(&ns, &ticks)
        return ns, ticks

    def read(self):
        """(slot, events lost before, events as bytes) of each thread slot that has new ones."""
        cdef uint64_t lost
        cdef uint32_t slot, nr
        news = []
        if self.rec == NULL or self.region.r == NULL:
            return news
        for slot in range(vm_record_slots(self.rec)):
            lost = 0
            nr = vm_record_read(self.rec, slot, VM_EVENT_RING, self.room, &lost)
            if nr or lost:
                news.append((slot, lost, (<char *>self.room)[:nr * EVENT_BYTES]))
        return news

    def pid_of(self, slot):
        """Of the process that has that thread slot now; 0: nobody has it."""
        if self.rec == NULL or self.region.r == NULL:
            return 0
        return vm_record_pid(self.rec, slot)

    def stop(self):
        """Nobody writes any more; what was written can still be read."""
        if self.rec != NULL and self.region.r != NULL:
            vm_record_stop(self.rec)

    def end(self):
        """Give the memory of the rings back."""
        cdef vm_recorder *rec = self.rec
        self.rec = NULL  # first: another thread may come to read meanwhile
        if rec != NULL and self.region.r != NULL:
            with nogil:
                vm_record_end(rec)


@cython.final
@cython.no_gc_clear  # as for Recorder
cdef class RecordingWatch:
    """Counts the events that somebody else records; nothing is written to the region."""
    cdef RegionHandle region
    cdef vm_recorder *rec
    cdef uint64_t *room

    def __init__(self, RegionHandle region not None):
        """RegionClosed."""
        if self.region is not None:
            raise ValueError("made once")
        region.open_check()
        self.room = <uint64_t *>c_malloc(VM_EVENT_RING * EVENT_BYTES)
        if self.room == NULL:
            raise MemoryError
        self.region = region

    def __dealloc__(self):
        self.end()
        c_free(self.room)

    cdef bint _is_on(self):
        """Follow the recording that is on; after another one began that one, from its beginning to be seen."""
        if self.rec != NULL and not vm_record_is_on(self.rec):
            self.end()
        return self.rec != NULL or vm_record_watch(self.region.r, &self.rec) == 0

    def tally(self):
        """(events by number of their kind, how many were overwritten unread) since the last call.

        None: nobody records. RegionClosed.
        """
        cdef uint64_t nr[EVENT_KINDS]
        cdef uint64_t lost = 0
        cdef uint32_t slot, i, got
        self.region.open_check()
        if not self._is_on():
            return None
        for i in range(EVENT_KINDS):
            nr[i] = 0
        with nogil:
            for slot in range(vm_record_slots(self.rec)):
                got = vm_record_read(self.rec, slot, VM_EVENT_RING, self.room, &lost)
                for i in range(got):
                    nr[self.room[2 * i] % EVENT_KINDS] += 1
        return [nr[i] for i in range(EVENT_KINDS)], lost

    def end(self):
        """Let go of the rings."""
        cdef vm_recorder *rec = self.rec
        self.rec = NULL
        if rec != NULL and self.region.r != NULL:
            vm_record_end(rec)
