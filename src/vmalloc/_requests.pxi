# SPDX-License-Identifier: MIT
# Part of _core.pyx: CoreRegion, the last of a region's classes: requests for blocks, arrays and plain ranges.

cdef double WAIT_PAUSE_S = 0.0005  # between looks for pages, growing to
cdef double WAIT_PAUSE_MAX_S = 0.02


cdef int sleep_s(double seconds) except -1:
    cdef timespec t
    t.tv_sec = <long>seconds
    t.tv_nsec = <long>((seconds - <long>seconds) * 1e9)
    with nogil:
        nanosleep(&t, NULL)
    return 0


cdef class CoreRegion(RegionReferences):
    """A region attached to this process; `vmalloc.Region` and `vmalloc.AddressSpace` add the friendly parts."""

    cdef int take(self, uint64_t nbytes, uint64_t align, object timeout, vm_range *out) except -1:
        cdef uint64_t nr_pages, align_pages
        if not self.has_pages:
            self.pages_check()
        nr_pages = vm_pages_of(self.r, nbytes + self.guard_bytes)
        align_pages = 1 if align <= self.granule else align // self.granule
        if vm_alloc(self.r, nr_pages, align_pages, VM_HIT_ONLY, out) == 0:
            return 0
        return self.take_slowly(nr_pages, align_pages, 0, timeout, out)

    cdef int take_slowly(self, uint64_t nr_pages, uint64_t align_pages, unsigned flags, object timeout,
                         vm_range *out) except -1:
        """`timeout`: how many seconds to try again while there is no room; None: not at all."""
        cdef Call c
        cdef double seconds = 0 if timeout is None else timeout
        if not seconds >= 0:
            raise ValueError(f"timeout must not be negative, not {timeout!r}")
        c.nr_pages, c.align_pages = nr_pages, align_pages
        c.flags = flags
        c.out = out
        cdef int rc = self.result_of(call_alloc, &c)
        if rc == -ENOSPC and self._guard is not None and self._guard.empty(self):  # what is in quarantine is of use now
            rc = self.result_of(call_alloc, &c)
        cdef bint may_come = nr_pages <= self.nr_pages_  # else it will never be there, whoever gives back what
        if seconds and may_come and (rc == -ENOSPC or rc == -EDQUOT):
            rc = self.take_later(&c, seconds)
        while rc == -ENOSPC and may_come and not flags & VM_NO_PURGE and self.end_oldest(nr_pages):
            rc = self.result_of(call_alloc, &c)
        if rc:
            raise self.fail(rc, "alloc", nr_pages)
        return 0

    cdef int take_later(self, Call *c, double seconds) except? -1:
        """Again and again, in growing pauses, until there is room or the time is over."""
        cdef double end = monotonic() + seconds, left = seconds, pause = WAIT_PAUSE_S
        cdef int rc = -ENOSPC
        while left > 0 and (rc == -ENOSPC or rc == -EDQUOT):
            sleep_s(min(pause, left))
            PyErr_CheckSignals()
            pause = min(2 * pause, WAIT_PAUSE_MAX_S)
            rc = self.result_of(call_alloc, c)
            left = end - monotonic()
        return rc

    cdef bint end_oldest(self, object nr_pages) except -1:
        """End old messages of the dead, unless the alternative is to send a copy. Did any?"""
        cdef Call c
        full = modules.get("vmalloc.full")  # who sends has it; to import it now takes a descriptor, and there may be none
        c.nr_pages, c.nr = nr_pages, 0
        if (full is not None and full.is_sending()) or self.result_of(call_end_oldest, &c) != 0 or c.nr == 0:
            return False
        with suppress(OSError):
            from vmalloc.full import warn_of_lost
            warn_of_lost(c.nr)
        return True

    cdef vm_range *take_bulk(self, uint64_t nr_pages, uint64_t align_pages, size_t n) except NULL:
        """`n` ranges in a list that the caller frees."""
        cdef Call c
        if n > self.nr_pages_ // nr_pages:
            raise self.fail(-ENOSPC, "alloc_bulk", n * <object>nr_pages)
        c.out = <vm_range *>c_malloc(max(n, 1) * sizeof(vm_range))
        if c.out == NULL:
            raise self.fail(-ENOMEM, f"alloc_bulk of {n}")
        c.nr_pages, c.align_pages, c.count = nr_pages, align_pages, n
        try:
            self.run(call_alloc_bulk, &c, "alloc_bulk", n * <object>nr_pages)
        except BaseException:
            c_free(c.out)
            raise
        return c.out

    # ---- blocks ----

    def alloc(self, nbytes, align=1, *, timeout=None):
        """Allocate a block of at least `nbytes` bytes.

        Takes ceil(nbytes / page_size) whole pages; the block's buffer is exactly `nbytes` long and starts
        on a page, or on a multiple of `align` (bytes, a power of two): of the address up to 2 MiB, of the
        offset in the region beyond. Contents are whatever the pages
        held. `timeout` seconds it waits for pages if there are none, unless the region is too small. Raises OutOfPages,
        ValueError, RegionClosed.
        """
        cdef vm_range got
        cdef Py_ssize_t size, alignment
        cdef Block block
        try:
            size = nbytes
            alignment = align
        except OverflowError:
            raise _bad_size(nbytes, align) from None
        if not is_good_size(size, alignment):
            raise _bad_size(nbytes, align)
        self.take(size, alignment, timeout, &got)
        block = Block.__new__(Block)
        if self._guard is not None:
            self.guard_new(&got, size)
        block.bind(self, &got, size)
        return block

    def alloc_bulk(self, nbytes, count, align=1):
        """Allocate `count` blocks of `nbytes` bytes each: all of them or, with OutOfPages, none."""
        cdef vm_range *got
        cdef Py_ssize_t n, i, size, alignment
        cdef Block block
        self.pages_check()
        try:
            size, alignment, n = nbytes, align, count
        except OverflowError:
            raise _bad_bulk(nbytes, align, count) from None
        if n < 0 or not is_good_size(size, alignment):
            raise _bad_bulk(nbytes, align, count)
        got = self.take_bulk(vm_pages_of(self.r, size + self.guard_bytes), max(alignment // <Py_ssize_t>self.granule, 1), n)
        try:
            blocks = []
            for i in range(n):
                block = Block.__new__(Block)
                blocks.append(block)
                if self._guard is not None:
                    self.guard_bulk(got, i, n, size)
                block.bind(self, &got[i], size)
            return blocks
        finally:
            c_free(got)

    def free_bulk(self, blocks):
        """Release every block of an iterable; BufferError if one has exports, after the others were released."""
        blocks = list(blocks)
        for block in blocks:
            if not isinstance(block, Block):
                raise TypeError(f"free_bulk takes blocks, not {type(block).__name__}")
            if (<Block>block)._region is not self:
                raise errors.NotAllocated(f"{block!r} belongs to another region; nothing was released")
        error = None
        for block in blocks:
            try:
                block.release()
            except BufferError as e:
                error = e
        if error is not None:
            raise error

    # ---- arrays ----

    def empty(self, shape, dtype="f8", order="C", *, timeout=None):
        """Allocate an uninitialised array that other processes can attach to.

        Takes ceil(bytes / page_size) whole pages, at least one; the array starts on a page boundary and its
        base, a private owner object, holds them. Contents are whatever the pages held, perhaps a former
        array of the same user. `timeout` seconds it waits for pages if there are none. Raises OutOfPages,
        RegionClosed, TypeError for dtypes that hold objects.
        """
        return self.new_array(shape, dtype, order, False, timeout)

    def zeros(self, shape, dtype="f8", order="C", *, timeout=None):
        """Like empty(), filled with zeros; never-touched or discarded pages are not written for it."""
        return self.new_array(shape, dtype, order, True, timeout)

    cdef object new_array(self, object shape, object dtype, object order, bint zero, object timeout):
        cdef vm_range got
        cdef ArrayOwner owner
        cdef Kind kind = kind_of(dtype)
        cdef Py_ssize_t nbytes
        if type(shape) is not tuple:
            shape = plain_shape(shape)
        nbytes = bytes_of(shape, kind)
        if order != "C" and order != "F":
            raise ValueError(f"order must be 'C' or 'F', not {order!r}")
        self.take(nbytes or 1, 1, timeout, &got)
        owner = ArrayOwner.__new__(ArrayOwner)
        if self._guard is not None:
            self.guard_new(&got, nbytes)
        owner.bind(self, &got, nbytes)
        if zero and not got.zeroed:
            with nogil:
                vm_zero(self.r, got.page, nbytes)
        return array_on(owner, shape, kind.dtype, 0, F_ORDER if order == "F" else C_ORDER)

    # ---- plain ranges, for prefault() and for hardened regions ----

    cdef int guard_new(self, vm_range *got, Py_ssize_t nbytes) except -1:
        """Before anything holds it: what a signal's handler breaks off has no canary yet, and is given back as it is."""
        try:
            self._guard.made(self, got.page, got.nr_pages, got.id, nbytes)
        except BaseException:
            with nogil:
                vm_free(self.r, got.page, got.id, 0)
            raise
        return 0

    cdef int guard_bulk(self, vm_range *got, size_t i, size_t n, Py_ssize_t nbytes) except -1:
        """The i-th of n; if that is broken off, nobody will hold those behind it either."""
        try:
            self.guard_new(&got[i], nbytes)
        except BaseException:
            for i in range(i + 1, n):
                with nogil:
                    vm_free(self.r, got[i].page, got[i].id, 0)
            raise
        return 0

    cdef int free_guarded(self, uint64_t page, uint64_t id, bint inherited, object freeing) except? -1:
        """Drop a reference. If it was the last, the range is poisoned and the newest of the quarantine.

        One step: it is C from the drop on, so no signal's handler comes in between. If one raises before, nothing was done.
        """
        cdef vm_range got
        cdef Call c
        cdef uint64_t start
        cdef object guard = self._guard
        cdef bytes record
        kind, made, where, record, found, poison = freeing
        cdef unsigned char value = poison
        c.page, c.id, c.flags = page, id, VM_INHERITED if inherited else 0
        c.out = &got
        got.nr_pages = got.id = 0
        cdef int rc = self.result_of(call_free_kept, &c)
        if rc:
            return rc
        known = guard._live.get(page)
        if known is not None and known[0] == id:
            del guard._live[page]
        if got.nr_pages:
            start = page * self.granule
            with nogil:
                memset(<char *>vm_pointer(self.r, 0) + start, value, got.nr_pages * self.granule)
            memcpy(<char *>vm_pointer(self.r, 0) + start + got.nr_pages * self.granule - len(record), <const char *>record,
                   len(record))
            newest = tuple.__new__(kind, (page, got.nr_pages, got.id, id, made, where))
            guard._told[id] = newest
            guard._nbytes += got.nr_pages * self.granule
            guard._quarantine.append(newest)
        if found is not None:
            guard._found.append(found)
        return 0

    def _let_out(self, quarantine, oldest, bint inherited=False):
        """Free what is the oldest in quarantine, in one step too. False: another thread was first."""
        cdef object guard = self._guard
        if not quarantine or quarantine[0] is not oldest:
            return False
        page, nr_pages, id, former_id = oldest[:4]
        cdef uint64_t nbytes = 0 if inherited else nr_pages * self.granule
        quarantine.popleft()
        guard._nbytes -= nbytes
        try:
            self._free_range(page, id, inherited)
        except BaseException:  # a handler raised while it waited: nothing was done
            quarantine.appendleft(oldest)
            guard._nbytes += nbytes
            raise
        guard._told.pop(former_id, None)
        return True

    def _alloc_cold(self, uint64_t nr_pages):
        """(page, nr_pages, id) of a range that comes from space, or None; never purges."""
        cdef vm_range got
        cdef Call c
        self.pages_check()
        c.nr_pages, c.align_pages = nr_pages, 1
        c.out = &got
        cdef int rc = self.result_of(call_alloc_cold, &c)
        if rc == -ENOSPC:
            return None
        if rc:
            raise self.fail(rc, "prefault", nr_pages)
        return got.page, got.nr_pages, got.id

    def _populate(self, uint64_t page, uint64_t nr_pages):
        """Make the pages of a range that the caller holds resident."""
        cdef int rc
        self.pages_check()
        with nogil:
            rc = vm_populate(self.r, page, nr_pages)
        if rc:
            raise self.fail(rc, "prefault", nr_pages)

    def _keep_warm(self, uint64_t nr_pages):
        """So many pages more than are lazy now may stay."""
        cdef int rc = vm_keep_warm(self.r, nr_pages)
        if rc:
            raise self.fail(rc, "prefault", nr_pages)

    def _free_range(self, uint64_t page, uint64_t id, bint inherited=False):
        """0, or a negative errno."""
        cdef Call c
        c.page, c.id, c.flags = page, id, VM_INHERITED if inherited else 0
        return self.result_of(call_free, &c)

    def _fill(self, uint64_t start, uint64_t nbytes, unsigned char value):
        """Write one value to bytes of the data."""
        cdef char *at = <char *>vm_pointer(self.r, 0) + start
        with nogil:
            memset(at, value, nbytes)

    def _first_other(self, uint64_t start, uint64_t nbytes, unsigned char value):
        """Which of these bytes of the data is the first that is not `value`; -1: none."""
        cdef const unsigned char *at = <const unsigned char *>vm_pointer(self.r, 0) + start
        cdef uint64_t i = 0
        if nbytes == 0 or (at[0] == value and memcmp(at, at + 1, nbytes - 1) == 0):
            return -1
        while i < nbytes and at[i] == value:
            i += 1
        return i if i < nbytes else -1

    def _read(self, uint64_t start, uint64_t nbytes):
        """Bytes of the data, copied."""
        return (<const char *>vm_pointer(self.r, 0) + start)[:nbytes]

    def _write(self, uint64_t start, bytes data not None):
        memcpy(<char *>vm_pointer(self.r, 0) + start, <const char *>data, len(data))

    # ---- plain ranges, for AddressSpace ----

    def _alloc_pages(self, uint64_t nr_pages, uint64_t align_pages, bint may_purge=True):
        """(page, nr_pages, id) of a new range."""
        cdef vm_range got
        self.open_check()
        if vm_alloc(self.r, nr_pages, align_pages, VM_HIT_ONLY, &got) != 0:
            self.take_slowly(nr_pages, align_pages, 0 if may_purge else VM_NO_PURGE, None, &got)
        return got.page, got.nr_pages, got.id

    def _alloc_pages_bulk(self, uint64_t nr_pages, uint64_t align_pages, size_t count):
        """The first pages of `count` new ranges."""
        cdef vm_range *got
        cdef size_t i
        self.open_check()
        got = self.take_bulk(nr_pages, align_pages, count)
        try:
            return [got[i].page for i in range(count)]
        finally:
            c_free(got)

    def _free_page(self, uint64_t page, what):
        cdef vm_range got
        cdef Call c
        self.open_check()
        cdef int rc = vm_lookup(self.r, page, &got)
        if rc == 0:
            c.page, c.id, c.flags = page, got.id, 0
            rc = self.result_of(call_free, &c)
        if rc:
            raise self.fail(rc, f"free({what})")

    def _lookup(self, uint64_t page, what):
        """(nr_pages, id) of the live range that starts at `page`; NotAllocated."""
        cdef vm_range got
        self.open_check()
        cdef int rc = vm_lookup(self.r, page, &got)
        if rc:
            raise self.fail(rc, what)
        return got.nr_pages, got.id
