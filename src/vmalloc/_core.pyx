# SPDX-License-Identifier: MIT
# cython: language_level=3, freethreading_compatible=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The only module that knows both C and Python; the .pxi files named at its end are parts of it.

CoreRegion wraps a vm_region, Holding one reference to a busy range (Block and ArrayOwner differ in
what a user may do with it). A call first tries the magazine with the interpreter lock held, since
that is a few nanoseconds and takes no lock of the region; everything else runs without it, in slices,
so that signals are seen. No Python object is made or dropped while a lock of the core is held.
"""

import os
import pickle
import time
import weakref
from operator import index

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.errno cimport (
    EACCES, EAGAIN, EBUSY, EEXIST, EINTR, EINVAL, ENFILE, ENOENT, ENOLCK, ENOMEM, ENOSPC, EROFS, ESTALE,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free as c_free, malloc as c_malloc
from libc.string cimport memcpy, memset

from vmalloc.lab.replay_core cimport (
    vm_replay_board, vm_replay_board_bytes, vm_replay_request, vm_replay_result, vm_replay_work,
)
from vmalloc.suite.loops cimport (
    VM_SUITE_LONG_BUSY, VM_SUITE_TESTS, vm_suite_board, vm_suite_board_bytes, vm_suite_job, vm_suite_open,
    vm_suite_prepare, vm_suite_result, vm_suite_work,
)

from vmalloc import errors, facts


cdef extern from "errno.h":
    enum:
        EOWNERDEAD
        EUCLEAN
        EXFULL


cdef extern from "Python.h":
    int PyObject_GetBuffer(object, Py_buffer *, int) except -1
    void PyBuffer_Release(Py_buffer *)
    int PyBuffer_IsContiguous(Py_buffer *, char)

cdef extern from *:
    """
    #ifdef VM_HOOKS
    void vm_clock_hold(uint64_t s);
    static bool hold_clock(uint64_t s) { vm_clock_hold(s); return true; }
    #else
    static bool hold_clock(uint64_t s) { (void)s; return false; }
    #endif
    """
    c_bool hold_clock(uint64_t s) nogil

cdef unsigned long fork_epoch = 0  # raised in every forked child: what it inherited is counted apart


def _after_fork_in_child():
    global fork_epoch
    fork_epoch += 1


os.register_at_fork(after_in_child=_after_fork_in_child)

POOLS = {name: number for number, name in enumerate(facts.POOLS)}
STATES = ("free", "busy", "cached", "pooled", "lazy", "moving", "purging", "freeing")
cdef Py_ssize_t LARGEST = <Py_ssize_t>1 << 62  # bytes; more than any region has

# ---- dtypes ----

cdef object _ndarray = None  # numpy's; imported by the first array function, not by the package
cdef dict _kinds = {}  # what callers give as dtype -> what it means


@cython.final
cdef class Kind:
    """A dtype as it was given, and what numpy makes of it."""
    cdef object given, dtype
    cdef Py_ssize_t itemsize


cdef Kind kind_of(object given):
    """Cached: np.dtype() alone takes as long as all the rest of an allocation."""
    cdef Kind kind
    try:
        kind = _kinds.get(given)
    except TypeError:  # a list of fields
        return new_kind(given)
    if kind is not None and (kind.given is given or type(given) is str):
        return kind
    kind = new_kind(given)
    if len(_kinds) < 256:
        _kinds[given] = kind
    return kind


cdef Kind new_kind(object given):
    global _ndarray
    import numpy
    cdef Kind kind = Kind.__new__(Kind)
    _ndarray = numpy.ndarray
    kind.given, kind.dtype = given, numpy.dtype(given)
    kind.itemsize = kind.dtype.itemsize
    if kind.dtype.hasobject:
        raise TypeError(f"dtype {kind.dtype} holds Python objects, which are private to a process")
    return kind


cdef Py_ssize_t bytes_of(object shape, Kind kind) except -1:
    """What an array of that shape (an int or a tuple) takes."""
    cdef Py_ssize_t total = kind.itemsize
    try:
        if type(shape) is not tuple:
            return times(total, shape)
        for n in <tuple>shape:
            total = times(total, n)
        return total
    except OverflowError:
        raise errors.OutOfPages(f"shape {shape} of {kind.dtype} is larger than any region") from None


cdef inline Py_ssize_t times(Py_ssize_t total, Py_ssize_t n) except -1:
    if n < 0:
        raise ValueError(f"negative dimension {n} in the shape")
    if n and total > LARGEST // n:
        raise OverflowError
    return total * n


cdef object plain_shape(object shape):
    """An int or a tuple."""
    if type(shape) is tuple or type(shape) is int:
        return shape
    try:
        return index(shape)
    except TypeError:
        return tuple(shape)


def _hold_clock(uint64_t seconds):
    """For tests: ages are as at this second from now on; 0: as time goes. False in a build without hooks."""
    return hold_clock(seconds)


def _size_text(nbytes):
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024


cdef object _creation_error(int rc, str doing):
    reason = os.strerror(-rc)
    if rc == -EINVAL:
        return ValueError(f"{doing}: an option is out of range")
    return errors.RegionUnavailable(-rc, f"{doing}: {reason}")


cdef inline bint is_good_size(Py_ssize_t nbytes, Py_ssize_t align) noexcept:
    return 0 < nbytes <= LARGEST and 0 < align <= LARGEST and align & (align - 1) == 0


cdef dict _by_id = {}  # weak references to the regions attached here


cdef int _forget(bytes id) except -1:
    known = _by_id.get(id)
    if known is not None and known() is None:  # not replaced meanwhile
        del _by_id[id]
    return 0


cdef class CoreRegion:
    """A region attached to this process; `vmalloc.Region` adds the friendly parts."""

    def __cinit__(self):
        self.r = NULL
        self.closed = False
        self.has_pages = False
        self.timeout_s = 10.0

    def _create(self, uint64_t nr_pages, *, str name, str pools, uint64_t granule, uint64_t base,
                uint64_t limit_pages, uint64_t lazy_pages_max, uint32_t nr_nodes, uint32_t nr_threads,
                bint keep_on_death, double lease_ttl_s):
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
        o.pools = <vm_pools><int>POOLS[pools]

        o.keep_on_death = keep_on_death
        o.lease_ttl_s = lease_ttl_s
        o.name = encoded
        with nogil:
            rc = vm_create(&o, &self.r)
        if rc:
            self.closed = True
            raise _creation_error(rc, f"cannot create a region of {nr_pages} pages")
        self.remember()

    def _attach(self, int fd, bint readonly=False):
        cdef int rc
        self.readonly = readonly
        with nogil:
            rc = vm_attach_readonly(fd, &self.r) if readonly else vm_attach(fd, &self.r)
        if rc:
            self.closed = True
            raise errors.RegionUnavailable(-rc, _attach_reason(rc, fd))
        self.remember()

    cdef int remember(self) except -1:
        cdef vm_info info
        vm_describe(self.r, &info)
        self.granule = info.granule_bytes
        self.nr_pages_ = info.nr_pages
        self.has_pages = vm_pointer(self.r, 0) != NULL
        vm_set_lock_timeout(self.r, self.timeout_s)
        self.id_ = info.id
        if not self.readonly:
            _by_id[info.id[:16]] = weakref.ref(self)
        return 0

    def __dealloc__(self):
        if self.r != NULL:
            _forget(self.id_[:16])
            with nogil:
                vm_detach(self.r)
            self.r = NULL

    def close(self):
        """Refuse further requests; the mapping stays until the last array or block of it is gone."""
        self.closed = True
        self.has_pages = False

    cdef int open_check(self) except -1:
        if self.closed or self.r == NULL:
            raise errors.RegionClosed("the region was closed in this process; attach it again or make a new one")
        return 0

    cdef int pages_check(self) except -1:
        self.open_check()
        if not self.has_pages:
            raise TypeError("an AddressSpace has no memory behind its numbers: use its alloc() and free()")
        return 0

    cdef object fail(self, int rc, object nr_pages=0, str what="request"):
        """The error that belongs to a core result."""
        if rc == -ENOSPC:
            return errors.OutOfPages(self.out_of_pages(nr_pages))
        if rc == -ENOENT:
            return errors.NotAllocated(f"{what}: no live range starts there; it was freed already or never allocated")
        if rc == -ESTALE:
            return errors.StaleReference(f"{what}: the range was freed, and its pages may hold another allocation now")
        if rc == -EBUSY:
            return errors.RegionBusy(
                f"{what}: process {vm_busy_pid(self.r)} holds a lock of the region and does not run (stopped?); "
                f"waited {self.timeout_s:g} s. Continue or kill it, or raise lock_timeout_s")
        if rc == -EUCLEAN:
            return errors.RegionCorrupt(f"{what}: the region's words do not parse; it takes no more changes. "
                                        "check(repair=True) tells what can be mended")
        if rc == -EOWNERDEAD:
            return errors.RegionUnavailable(-rc, f"{what}: this mapping was inherited by a raw clone(); attach anew")
        if rc == -ENOLCK:
            return errors.RegionUnavailable(-rc, f"{what}: all 255 process slots of the region are taken")
        if rc == -EROFS:
            return errors.RegionUnavailable(-rc, f"{what}: the region was attached read-only; attach it without "
                                                 "readonly=True to change it or to hold what is in it")
        if rc == -EINVAL:
            return ValueError(f"{what}: argument out of range")
        if rc == -EXFULL:
            return errors.OutOfPages(f"{what}: all 65536 leases of the region are taken, by messages nobody loaded; "
                                     "load or drop some, or call expire_leases()")
        if rc == -ENFILE:
            return errors.OutOfPages(f"{what}: all 1024 names of the region are taken; delete some")
        if rc == -ENOMEM:
            return errors.OutOfPages(f"{what}: the process itself is out of memory, or of address space (ulimit -v)")
        return errors.RegionUnavailable(-rc, f"{what}: {os.strerror(-rc)}")

    cdef str out_of_pages(self, object nr_pages):
        cdef vm_stats s
        text = f"{nr_pages} pages requested ({_size_text(nr_pages * self.granule)})"
        if vm_get_stats(self.r, &s) == 0:
            text += (f"; {s.free_pages} of {s.nr_pages} free, largest run {s.largest_free_pages}, "
                     f"{s.busy_pages} busy, {s.lazy_pages} lazy")
        return text + ". Free something, raise the limit or make a larger region."

    cdef int again(self, double *started, str what) except -1:
        """After a slice of waiting (EINTR): look at signals; past the time-out tell who is in the way."""
        cdef double now = time.monotonic()
        PyErr_CheckSignals()
        if started[0] == 0:
            started[0] = now
        elif now - started[0] > self.timeout_s:
            raise self.fail(-EBUSY, 0, what)
        return 0

    cdef int take(self, uint64_t nbytes, uint64_t align, vm_range *out) except -1:
        cdef uint64_t nr_pages, align_pages
        if not self.has_pages:
            self.pages_check()
        nr_pages = vm_pages_of(self.r, nbytes)
        align_pages = 1 if align <= self.granule else align // self.granule
        if vm_alloc(self.r, nr_pages, align_pages, VM_HIT_ONLY, out) == 0:
            return 0
        return self.take_slowly(nr_pages, align_pages, 0, out)

    cdef int take_slowly(self, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out) except -1:
        cdef int rc
        cdef double started = 0
        while True:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_alloc(self.r, nr_pages, align_pages, flags, out)
                vm_wait_end()
            if rc == 0:
                return 0
            if rc != -EINTR:
                raise self.fail(rc, nr_pages, "alloc")
            self.again(&started, "alloc")

    # ---- blocks ----

    def alloc(self, nbytes, align=1):
        """Allocate a block of at least `nbytes` bytes.

        Takes ceil(nbytes / page_size) whole pages; the block's buffer is exactly `nbytes` long and starts
        on a page, or on a multiple of `align` (bytes, a power of two): of the address up to 2 MiB, of the
        offset in the region beyond. Contents are whatever the pages
        held. Raises OutOfPages, ValueError, RegionClosed.
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
        self.take(size, alignment, &got)
        block = Block.__new__(Block)
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
        got = self.take_bulk(vm_pages_of(self.r, size), max(alignment // <Py_ssize_t>self.granule, 1), n)
        try:
            blocks = []
            for i in range(n):
                block = Block.__new__(Block)
                block.bind(self, &got[i], size)
                blocks.append(block)
            return blocks
        finally:
            c_free(got)

    cdef vm_range *take_bulk(self, uint64_t nr_pages, uint64_t align_pages, size_t n) except NULL:
        """`n` ranges in a list that the caller frees."""
        cdef int rc = -EINTR
        cdef double started = 0
        cdef vm_range *got
        if n > self.nr_pages_ // nr_pages:
            raise self.fail(-ENOSPC, n * <object>nr_pages, "alloc_bulk")
        got = <vm_range *>c_malloc(max(n, 1) * sizeof(vm_range))
        if got == NULL:
            raise self.fail(-ENOMEM, 0, f"alloc_bulk of {n}")
        try:
            while rc == -EINTR:
                with nogil:
                    vm_wait_begin(0, True)
                    rc = vm_alloc_bulk(self.r, nr_pages, align_pages, n, got)
                    vm_wait_end()
                if rc == -EINTR:
                    self.again(&started, "alloc_bulk")
            if rc:
                raise self.fail(rc, n * <object>nr_pages, "alloc_bulk")
        except BaseException:
            c_free(got)
            raise
        return got

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

    def empty(self, shape, dtype="f8", order="C"):
        """Allocate an uninitialised array that other processes can attach to.

        Takes ceil(bytes / page_size) whole pages, at least one; the array starts on a page boundary and its
        base, a private owner object, holds them. Contents are whatever the pages held, perhaps a former
        array of the same user. Raises OutOfPages, RegionClosed, TypeError for dtypes that hold objects.
        """
        return self.new_array(shape, dtype, order, False)

    def zeros(self, shape, dtype="f8", order="C"):
        """Like empty(), filled with zeros; never-touched or discarded pages are not written for it."""
        return self.new_array(shape, dtype, order, True)

    cdef object new_array(self, object shape, object dtype, object order, bint zero):
        cdef vm_range got
        cdef ArrayOwner owner
        cdef Kind kind = kind_of(dtype)
        cdef Py_ssize_t nbytes
        if type(shape) is not tuple:
            shape = plain_shape(shape)
        nbytes = bytes_of(shape, kind)
        if order != "C" and order != "F":
            raise ValueError(f"order must be 'C' or 'F', not {order!r}")
        self.take(nbytes or 1, 1, &got)
        owner = ArrayOwner.__new__(ArrayOwner)
        owner.bind(self, &got, nbytes)
        if zero and not got.zeroed:
            with nogil:
                memset(vm_pointer(self.r, got.page), 0, nbytes)
        if order == "F":
            return _ndarray(shape, kind.dtype, owner, 0, None, "F")
        return _ndarray(shape, kind.dtype, owner)

    # ---- references ----

    def _share(self, Holding holding not None):
        """Mark the range shared, so that other processes may adopt it. Returns (page, id)."""
        cdef int rc
        self.open_check()
        holding.alive_check(self)
        with nogil:
            rc = vm_share(self.r, holding.page, holding.id)
        if rc:
            raise self.fail(rc, 0, f"share of page {holding.page}")
        return holding.page, holding.id

    def _lease(self, Holding holding not None):
        """A reference for a message to carry: (page, id, lease). It keeps the range until it is claimed."""
        cdef uint64_t lease
        self.lease_of(holding, &lease)
        return holding.page, holding.id, lease

    cdef int lease_of(self, Holding holding, uint64_t *lease) except -1:
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        holding.alive_check(self)
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_lease(self.r, holding.page, holding.id, lease)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "lease")
        if rc:
            raise self.fail(rc, 0, f"a reference to page {holding.page}")
        return 0

    def _drop_lease(self, uint64_t lease):
        """End a lease, if it is still there. Quiet: for finalizers and failed messages."""
        if self.r != NULL:
            with nogil:
                vm_drop_lease(self.r, lease)

    def expire_leases(self, double older_than_s=0, *, bint all=True):
        """End the leases of messages that nobody loaded; their later loads raise StaleReference.

        Of all processes' messages and Refs made at least `older_than_s` seconds ago: allow for those that are
        only late. `all=False` ends only those whose maker has been dead for `lease_ttl_s`, as every purge
        does. Returns how many ended.
        """
        cdef uint64_t older_than_ns = 0
        if not 0 <= older_than_s < 1e9:
            raise ValueError(f"older_than_s must be from 0 to 1e9, not {older_than_s}")
        if all:
            older_than_ns = max(<uint64_t>(older_than_s * 1e9), 1)
        cdef uint64_t nr = 0
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_expire_leases(self.r, older_than_ns, &nr)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "expire_leases")
        if rc:
            raise self.fail(rc, 0, "expire_leases")
        return nr

    def drop_inherited(self):
        """In a forked child: let go of every array and block that came with the fork.

        For workers that live long: what their parent frees is free then. The objects themselves stay, but
        their bytes may be anybody's from now on: do not use them. Returns the number of ranges.
        """
        cdef uint64_t nr = 0
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_drop_inherited(self.r, &nr)
        if rc:
            raise self.fail(rc, 0, "drop_inherited")
        return nr

    def _adopt(self, page, id, nbytes, lease=0, type kind=ArrayOwner):
        """One more reference to a shared range, as an ArrayOwner or Block; with `lease`, claims that.

        StaleReference for whatever is wrong.
        """
        cdef vm_range got
        cdef uint64_t at, number, ticket
        cdef Py_ssize_t size
        cdef Holding owner
        what = f"reference to page {page!r}, id {id!r}"
        self.pages_check()
        try:
            at, number, ticket, size = index(page), index(id), index(lease), nbytes
        except (OverflowError, TypeError):
            raise errors.StaleReference(f"{what}: there is no such range") from None
        self.adopt(at, number, ticket, &got, what)
        owner = kind.__new__(kind)
        owner.bind(self, &got, size)
        if size < 0 or <uint64_t>size > got.nr_pages * self.granule:
            raise errors.StaleReference(f"{what}: {nbytes} bytes named, the range has {got.nr_pages} pages")
        return owner

    cdef int adopt(self, uint64_t page, uint64_t id, uint64_t lease, vm_range *out, str what) except -1:
        cdef int rc = -EINTR
        cdef double started = 0
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_claim(self.r, page, id, lease, out) if lease else vm_adopt(self.r, page, id, out)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, what)
        if rc:
            raise self.fail(rc, 0, what)
        return 0

    def _name_set(self, str name not None, Holding holding not None, bytes meta not None, bint new=False):
        """Name a range; with `new`, FileExistsError if the name is taken."""
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef const char *c_meta = meta
        cdef size_t size = len(meta)
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        holding.alive_check(self)
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = (vm_name_new if new else vm_name_set)(
                    self.r, c_name, holding.page, holding.id, c_meta, size)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "names")
        if rc == -EINVAL:
            raise ValueError(f"the description of {name!r} is too long to keep ({size} bytes; at most 416)")
        if rc == -EEXIST:
            raise FileExistsError(EEXIST, f"the region has the name {name!r} already")
        if rc:
            raise self.fail(rc, 0, f"region[{name!r}]")

    def _name_get(self, str name not None):
        """(owner, meta) of a named reference; KeyError."""
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef char meta[512]
        cdef size_t size = sizeof(meta)
        cdef vm_range got
        cdef ArrayOwner owner
        cdef int rc = -EINTR
        cdef double started = 0
        self.pages_check()
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_name_get(self.r, c_name, &got, meta, &size)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "names")
        if rc == -ENOENT:
            raise KeyError(name)
        if rc:
            raise self.fail(rc, 0, f"region[{name!r}]")
        owner = ArrayOwner.__new__(ArrayOwner)
        owner.bind(self, &got, <Py_ssize_t>(got.nr_pages * self.granule))
        return owner, meta[:size]

    def _name_delete(self, str name not None):
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_name_delete(self.r, c_name)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "names")
        if rc == -ENOENT:
            raise KeyError(name)
        if rc:
            raise self.fail(rc, 0, f"del region[{name!r}]")

    def names(self):
        """The names of the region's named references."""
        self.open_check()
        found = []
        vm_name_list(self.r, _append_name, <void *>found)
        return found

    # ---- address space ----

    def _alloc_pages(self, uint64_t nr_pages, uint64_t align_pages, bint may_purge=True):
        """(page, nr_pages, id) of a new range, for AddressSpace."""
        cdef vm_range got
        self.open_check()
        if vm_alloc(self.r, nr_pages, align_pages, VM_HIT_ONLY, &got) != 0:
            self.take_slowly(nr_pages, align_pages, 0 if may_purge else VM_NO_PURGE, &got)
        return got.page, got.nr_pages, got.id

    def _alloc_pages_bulk(self, uint64_t nr_pages, uint64_t align_pages, size_t count):
        """The first pages of `count` new ranges, for AddressSpace."""
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
        cdef int rc
        self.open_check()
        rc = vm_lookup(self.r, page, &got)
        if rc == 0:
            with nogil:
                rc = vm_free(self.r, page, got.id, 0)
        if rc:
            raise self.fail(rc, 0, f"free({what})")

    def _lookup(self, uint64_t page, what):
        """(nr_pages, id) of the live range that starts at `page`; NotAllocated."""
        cdef vm_range got
        self.open_check()
        cdef int rc = vm_lookup(self.r, page, &got)
        if rc:
            raise self.fail(rc, 0, f"{what}")
        return got.nr_pages, got.id

    # ---- upkeep ----

    def purge(self):
        """Discard lazily freed ranges and a quarter of each pool. Returns the bytes given back."""
        return self.upkeep(vm_purge, "purge")

    def shrink(self):
        """Give everything back that is not in use, magazines and pools too. Returns the bytes."""
        return self.upkeep(vm_shrink, "shrink")

    def recover(self):
        """Reclaim what dead processes left. Returns the bytes; 0 when nobody died."""
        return self.upkeep(vm_recover, "recover")

    cdef object upkeep(self, int (*work)(vm_region *, uint64_t *) noexcept nogil, str what):
        cdef uint64_t pages = 0
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = work(self.r, &pages)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, what)
        if rc:
            raise self.fail(rc, 0, what)
        return pages * self.granule

    def _check(self, bint at_rest, bint repair):
        """Findings of the invariant check, as text."""
        cdef int rc
        self.open_check()
        if repair:
            self._repair()
        found = []
        cdef void *list_of_text = <void *>found
        with nogil:
            rc = vm_check(self.r, at_rest, _append_text, list_of_text)
        if rc < 0 and rc != -EUCLEAN:
            raise self.fail(rc, 0, "check")
        return found

    def _repair(self):
        """Make hints agree with the words; what was wrong, as text."""
        cdef int rc
        self.open_check()
        found = []
        cdef void *list_of_text = <void *>found
        with nogil:
            rc = vm_repair(self.r, _append_text, list_of_text)
        if rc < 0 and rc != -EUCLEAN:
            raise self.fail(rc, 0, "repair")
        return found

    def _stats(self):
        cdef vm_stats s
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_get_stats(self.r, &s)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "stats")
        if rc:
            raise self.fail(rc, 0, "stats")
        return s

    def _info(self):
        cdef vm_info info
        self.open_check()
        vm_describe(self.r, &info)
        return {"id": info.id[:16], "nr_pages": info.nr_pages, "page_size": info.page_bytes,
                "granule": info.granule_bytes, "base": info.base, "total_bytes": info.total_bytes,
                "limit_pages": info.limit_pages, "lazy_pages_max": info.lazy_pages_max,
                "nr_nodes": info.nr_nodes, "nr_threads": info.nr_threads, "process_slot": info.process_slot,
                "format": info.format, "has_pages": vm_pointer(self.r, 0) != NULL,
                "pools": next(k for k, v in POOLS.items() if v == info.pools)}

    def _ranges(self):
        """(page, nr_pages, id, state, owner, shared, dirty) of every range, in address order."""
        cdef int rc = -EINTR
        cdef double started = 0
        self.open_check()
        found = []
        cdef void *list_of_ranges = <void *>found
        while rc == -EINTR:
            with nogil:
                vm_wait_begin(0, True)
                rc = vm_walk(self.r, _append_range, list_of_ranges)
                vm_wait_end()
            if rc == -EINTR:
                self.again(&started, "ranges")
        if rc:
            raise self.fail(rc, 0, "ranges")
        return found

    def fileno(self):
        """The memfd's descriptor: pass it to another process to attach there."""
        self.open_check()
        return vm_fd(self.r)

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


def _attach_reason(rc, fd):
    reasons = {
        -8: "is no vmalloc region",  # ENOEXEC
        -71: "is a region of another format or page size; make it with this version, on this system",  # EPROTO
        -EUCLEAN: "is a region whose header is damaged or truncated",
        -ENOLCK: "has all 255 process slots taken",
        -EACCES: "is another user's region; only that user and root may attach it",
        -ENOENT: "cannot be opened again through /proc/self/fd; is /proc mounted?",
    }
    return f"descriptor {fd} {reasons.get(rc, os.strerror(-rc))}"


def _bad_size(nbytes, align):
    if nbytes <= 0:
        return ValueError(f"nbytes must be positive, not {nbytes}")
    if not 0 < align <= LARGEST or align & (align - 1):
        return ValueError(f"align must be a power of two up to 2**62, not {align}")
    return errors.OutOfPages(f"{nbytes} bytes are more than any region has")


def _bad_bulk(nbytes, align, count):
    if count < 0:
        return ValueError(f"count must not be negative, not {count}")
    if count > LARGEST:
        return errors.OutOfPages(f"{count} blocks of {nbytes} bytes are more than any region has")
    return _bad_size(nbytes, align)


cdef bytes _name_bytes(str name):
    encoded = name.encode()
    if not 0 < len(encoded) < 64 or b"\0" in encoded:
        raise ValueError(f"a name takes 1 to 63 bytes without zeros, not {name!r}")
    return encoded


cdef int _append_name(void *found, const char *name, uint64_t page) noexcept with gil:
    (<list>found).append(name.decode(errors="replace"))
    return 0


cdef void _append_text(void *found, const char *text) noexcept with gil:
    (<list>found).append(text.decode(errors="replace"))


cdef int _append_range(void *found, const vm_range_info *i) noexcept with gil:
    (<list>found).append((i.page, i.nr_pages, i.id, i.state, i.owner, i.shared, i.dirty))
    return 0


@cython.no_gc_clear  # in a reference cycle too the region is there until the pages were given back
cdef class Holding:
    """One reference to a busy range: dropping the last one frees it. Exports a writable buffer of bytes."""

    cdef void bind(self, CoreRegion region, vm_range *range, Py_ssize_t nbytes) noexcept:
        self._region = region
        self.page = range.page
        self.nr_pages = range.nr_pages
        self.id = range.id
        self.zeroed = range.zeroed
        self.nbytes = nbytes
        self.fork_epoch = fork_epoch
        self.held = True

    def __init__(self):
        raise TypeError("made by a region, not by hand")

    cdef int alive_check(self, CoreRegion region) except -1:
        """It must hold pages of `region`; what was inherited, as its own from now on."""
        cdef vm_range got
        if not self.held:
            raise errors.NotAllocated(self.released_text())
        if self._region is not region:
            raise errors.NotAllocated(f"the pages at offset {self.offset} are another region's")
        if self.fork_epoch != fork_epoch:
            region.adopt(self.page, self.id, 0, &got, f"pages at offset {self.offset}, inherited through fork")
            if self.fork_epoch == fork_epoch or not self.held:  # another thread was first, or released it
                with nogil:
                    vm_free(region.r, self.page, self.id, 0)
                return self.alive_check(region)
            self.fork_epoch = fork_epoch
            with nogil:
                vm_free(region.r, self.page, self.id, VM_INHERITED)
        return 0

    cdef str released_text(self):
        return f"the block of {self.nbytes} bytes at offset {self.page * self._region.granule} was released"

    cdef int free_now(self) noexcept:
        cdef int rc = vm_free(self._region.r, self.page, self.id, VM_HIT_ONLY)
        cdef unsigned flags = 0 if self.fork_epoch == fork_epoch else VM_INHERITED
        if rc == -EAGAIN:
            with nogil:
                rc = vm_free(self._region.r, self.page, self.id, flags)
        return 0 if flags else rc  # inherited: let go of by drop_inherited(), or never held for want of a slot

    cdef int let_go(self) except -1:
        """Drop the reference."""
        cdef int rc
        if not self.held or self._region is None or self._region.r == NULL:
            return 0
        self.held = False
        rc = self.free_now()
        if rc:
            raise self._region.fail(rc, 0, "release")
        return 0

    def __dealloc__(self):
        if self.held and self._region is not None and self._region.r != NULL:
            self.held = False
            self.free_now()

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self.held:
            raise errors.NotAllocated(self.released_text())
        view.buf = vm_pointer(self._region.r, self.page)
        view.obj = self
        view.len = self.nbytes
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = NULL
        view.shape = NULL
        view.strides = NULL
        if flags & PyBUF_FORMAT:
            view.format = <char *>b"B"
        if flags & PyBUF_ND:
            view.shape = &self.nbytes
        if flags & PyBUF_STRIDES == PyBUF_STRIDES:
            view.strides = &view.itemsize
        view.suboffsets = NULL
        view.internal = NULL
        self.nr_exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.nr_exports -= 1

    @property
    def region(self):
        """The region the pages belong to."""
        return self._region

    @property
    def offset(self):
        """Where the range starts, in bytes from the region's first page."""
        return self.page * self._region.granule

    @property
    def address(self):
        """Where the range starts in this process."""
        return <size_t>vm_pointer(self._region.r, self.page)

    @property
    def _nr_exports(self):
        return self.nr_exports

    @property
    def _range(self):
        return self.page, self.nr_pages, self.id

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} is pickled by vmalloc.ref(), by reference; bytes(block) copies")


@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class ArrayOwner(Holding):
    """What an array's `base` is: holds the pages, and nobody can release it under the array."""


@cython.final
@cython.no_gc_clear
@cython.freelist(64)
cdef class Block(Holding):
    """A range of pages owned by this object; a context manager, and a buffer of `nbytes` bytes.

    Views keep it alive. release() frees it at once and raises BufferError while views exist.
    """

    def release(self):
        """Free the pages now. A second call does nothing. BufferError while a view of them exists."""
        if self.nr_exports > 0:
            raise BufferError(f"{self.nr_exports} views of the block exist; drop them first")
        self.let_go()

    @property
    def released(self):
        """Whether the pages were given back."""
        return not self.held

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def __len__(self):
        return self.nbytes

    def __repr__(self):
        state = f"at offset {self.offset:#x}" if self.held else "released"
        return f"<vmalloc.Block of {_size_text(self.nbytes)} {state}>"

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """The block as a one-dimensional uint8 DLPack tensor; the capsule holds the block."""
        if dl_device not in (None, (1, 0)):
            raise BufferError(f"the block is in host memory, not on device {dl_device}")
        if copy:
            raise BufferError("copy=True: copy the tensor instead")
        return _dlpack_capsule(self)


include "_message.pxi"
include "_dlpack.pxi"
include "suite/loops.pxi"
include "lab/replay_core.pxi"
