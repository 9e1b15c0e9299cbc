# SPDX-License-Identifier: MIT
# cython: language_level=3, freethreading_compatible=False
"""The only file that knows both C and Python.

CoreRegion wraps a vm_region, Holding one reference to a busy range (Block and ArrayOwner differ in
what a user may do with it). A call first tries the magazine with the interpreter lock held, since
that is a few nanoseconds and takes no lock of the region; everything else runs without it, in slices,
so that signals are seen. No Python object is made or dropped while a lock of the core is held.
"""

import os
import time

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.errno cimport EAGAIN, EBUSY, EINTR, EINVAL, ENFILE, ENOENT, ENOLCK, ENOMEM, ENOSPC, ESTALE
from libc.stdlib cimport free as c_free, malloc as c_malloc
from libc.string cimport memset

from vmalloc import errors


cdef extern from "errno.h":
    enum:
        EOWNERDEAD
        EUCLEAN

cdef unsigned long fork_epoch = 0  # raised in every forked child: what it inherited is not its to free


def _after_fork_in_child():
    global fork_epoch
    fork_epoch += 1


os.register_at_fork(after_in_child=_after_fork_in_child)

POOLS = {"off": VM_POOLS_OFF, "locked": VM_POOLS_LOCKED, "llist": VM_POOLS_LLIST, "magazine": VM_POOLS_MAGAZINE}
STATES = ("free", "busy", "cached", "pooled", "lazy", "moving", "purging", "freeing")
cdef object _ndarray = None
cdef object _dtype = None


cdef int _numpy() except -1:
    """numpy is imported by the first array function, not by the package."""
    global _ndarray, _dtype
    if _ndarray is None:
        import numpy
        _ndarray = numpy.ndarray
        _dtype = numpy.dtype
    return 0


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


cdef class CoreRegion:
    """A region attached to this process; `vmalloc.Region` adds the friendly parts."""

    def __cinit__(self):
        self.r = NULL
        self.closed = False
        self.timeout_s = 10.0

    def _create(self, uint64_t nr_pages, *, str name, str pools, uint64_t granule, uint64_t base,
                uint64_t limit_pages, uint64_t lazy_pages_max, uint32_t nr_nodes, uint32_t nr_threads,
                bint pthread_locks, bint keep_on_death):
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
        o.pools = POOLS[pools]
        o.pthread_locks = pthread_locks
        o.keep_on_death = keep_on_death
        o.name = encoded
        with nogil:
            rc = vm_create(&o, &self.r)
        if rc:
            self.closed = True
            raise _creation_error(rc, f"cannot create a region of {nr_pages} pages")
        self._remember()

    def _attach(self, int fd):
        cdef int rc
        with nogil:
            rc = vm_attach(fd, &self.r)
        if rc:
            self.closed = True
            raise errors.RegionUnavailable(-rc, _attach_reason(rc, fd))
        self._remember()

    def _remember(self):
        cdef vm_info info
        vm_describe(self.r, &info)
        self.granule = info.granule_bytes
        vm_set_lock_timeout(self.r, self.timeout_s)

    def __dealloc__(self):
        if self.r != NULL:
            with nogil:
                vm_detach(self.r)
            self.r = NULL

    def close(self):
        """Refuse further requests; the mapping stays until the last array or block of it is gone."""
        self.closed = True

    cdef int open_check(self) except -1:
        if self.closed or self.r == NULL:
            raise errors.RegionClosed("the region was closed in this process; attach it again or make a new one")
        return 0

    cdef object fail(self, int rc, uint64_t nr_pages=0, str what="request"):
        """The error that belongs to a core result."""
        if rc == -ENOSPC:
            return errors.OutOfPages(self._out_of_pages(nr_pages))
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
        if rc == -EINVAL:
            return ValueError(f"{what}: argument out of range")
        if rc == -ENFILE:
            return errors.OutOfPages(f"{what}: all 1024 names of the region are taken; delete some")
        if rc == -ENOMEM:
            return MemoryError(f"{what}: the process itself is out of memory")
        return errors.RegionUnavailable(-rc, f"{what}: {os.strerror(-rc)}")

    def _out_of_pages(self, nr_pages):
        cdef vm_stats s
        text = f"{nr_pages} pages requested ({_size_text(nr_pages * self.granule)})"
        if vm_get_stats(self.r, &s) == 0:
            text += (f"; {s.free_pages} of {s.nr_pages} free, largest run {s.largest_free_pages}, "
                     f"{s.busy_pages} busy, {s.lazy_pages} lazy")
        return text + ". Free something, raise the limit or make a larger region."

    cdef int again(self, int rc, double started) except -1:
        """After EINTR or EAGAIN: look at signals; past the time-out tell who is in the way."""
        PyErr_CheckSignals()
        if time.monotonic() - started > self.timeout_s:
            raise self.fail(-EBUSY)
        return 0

    cdef int take(self, uint64_t nbytes, uint64_t align, vm_range *out) except -1:
        cdef uint64_t nr_pages, align_pages = 1
        cdef int rc
        if self.closed:
            self.open_check()
        if align > self.granule:
            align_pages = align // self.granule
        nr_pages = vm_pages_of(self.r, nbytes)
        rc = vm_alloc(self.r, nr_pages, align_pages, VM_HIT_ONLY, out)
        if rc == 0:
            return 0
        return self.take_slowly(nr_pages, align_pages, 0, out)

    cdef int take_slowly(self, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out) except -1:
        cdef int rc
        cdef double started = 0
        while True:
            with nogil:
                vm_wait_in_slices(True)
                rc = vm_alloc(self.r, nr_pages, align_pages, flags, out)
                vm_wait_in_slices(False)
            if rc == 0:
                return 0
            if rc != -EINTR:
                raise self.fail(rc, nr_pages, "alloc")
            started = started or time.monotonic()
            self.again(rc, started)

    # ---- blocks ----

    def alloc(self, nbytes, align=1):
        """Allocate a block of at least `nbytes` bytes.

        Takes ceil(nbytes / page_size) whole pages; the block's buffer is exactly `nbytes` long and starts
        on a page, or on a multiple of `align` (bytes, a power of two). Contents are whatever the pages
        held. Raises OutOfPages, ValueError, RegionClosed.
        """
        cdef vm_range got
        cdef uint64_t size, alignment
        try:
            size = nbytes
            alignment = align
        except OverflowError:
            raise _bad_size(nbytes, align) from None
        if size == 0 or size > <uint64_t>1 << 62 or alignment == 0 or alignment & (alignment - 1):
            raise _bad_size(nbytes, align)
        self.take(size, alignment, &got)
        cdef Block block = Block.__new__(Block)
        block.bind(self, &got, <Py_ssize_t>size)
        return block

    def alloc_bulk(self, nbytes, count, align=1):
        """Allocate `count` blocks of `nbytes` bytes each: all of them or, with OutOfPages, none."""
        cdef vm_range *got
        cdef size_t n, i
        cdef int rc
        cdef uint64_t size, alignment, nr_pages, align_pages
        try:
            size, alignment, n = nbytes, align, count
        except OverflowError:
            raise _bad_size(nbytes, align) from None
        if size == 0 or size > <uint64_t>1 << 62 or alignment == 0 or alignment & (alignment - 1):
            raise _bad_size(nbytes, align)
        self.open_check()
        nr_pages = vm_pages_of(self.r, size)
        align_pages = 1 if alignment <= self.granule else alignment // self.granule
        got = <vm_range *>c_malloc(max(n, 1) * sizeof(vm_range))
        if got == NULL:
            raise MemoryError(f"{count} blocks are too many to list")
        try:
            with nogil:
                rc = vm_alloc_bulk(self.r, nr_pages, align_pages, n, got)
            if rc:
                raise self.fail(rc, nr_pages * n, "alloc_bulk")
            blocks = []
            for i in range(n):
                block = Block.__new__(Block)
                (<Block>block).bind(self, &got[i], <Py_ssize_t>size)
                blocks.append(block)
            return blocks
        finally:
            c_free(got)

    def free_bulk(self, blocks):
        """Release every block of an iterable; BufferError if one has exports, after the others were released."""
        error = None
        for block in blocks:
            try:
                block.release()
            except BufferError as e:
                error = e
        if error is not None:
            raise error

    def _empty(self, shape, dtype, bint fortran=False):
        """np.ndarray on fresh pages; the array's base holds them."""
        cdef vm_range got
        cdef Py_ssize_t count = 1, item
        cdef ArrayOwner owner
        _numpy()
        kind = dtype if type(dtype) is _dtype else _dtype(dtype)
        item = kind.itemsize
        if isinstance(shape, int):
            count = shape
            if count < 0:
                raise ValueError(f"negative dimension in shape {shape}")
        else:
            shape = tuple(shape)
            total = 1
            for n in shape:
                if n < 0:
                    raise ValueError(f"negative dimension in shape {shape}")
                total *= n
            if total * item > <uint64_t>1 << 62:
                raise errors.OutOfPages(f"shape {shape} of {kind} takes {_size_text(total * item)}")
            count = total
        if kind.hasobject:
            raise TypeError(f"dtype {kind} holds Python objects, which are private to a process")
        if count > ((<Py_ssize_t>1 << 62) // (item if item > 0 else 1)):
            raise errors.OutOfPages(f"shape {shape} of {kind} is larger than any region")
        self.take(<uint64_t>max(count * item, 1), 1, &got)
        owner = ArrayOwner.__new__(ArrayOwner)
        owner.bind(self, &got, count * item)
        if fortran:
            return _ndarray(shape, kind, owner, 0, None, "F")
        return _ndarray(shape, kind, owner)

    # ---- references ----

    def _share(self, Holding holding):
        """Mark the range shared, so that other processes may adopt it. Returns (page, id)."""
        cdef int rc
        self.open_check()
        holding.alive_check()
        with nogil:
            rc = vm_share(self.r, holding.page, holding.id)
        if rc:
            raise self.fail(rc, 0, "share")
        return holding.page, holding.id

    def _adopt(self, uint64_t page, uint64_t id, Py_ssize_t nbytes):
        """One more reference to a shared range, as an ArrayOwner."""
        cdef vm_range got
        cdef int rc
        self.open_check()
        with nogil:
            vm_wait_in_slices(False)
            rc = vm_adopt(self.r, page, id, &got)
        if rc:
            raise self.fail(rc, 0, "reference")
        owner = ArrayOwner.__new__(ArrayOwner)
        (<ArrayOwner>owner).bind(self, &got, nbytes)
        if nbytes < 0 or <uint64_t>nbytes > got.nr_pages * self.granule:
            raise errors.StaleReference(f"reference: {nbytes} bytes named, the range has {got.nr_pages} pages")
        return owner

    def _name_set(self, str name, Holding holding, bytes meta):
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef const char *c_meta = meta
        cdef size_t size = len(meta)
        cdef int rc
        self.open_check()
        holding.alive_check()
        with nogil:
            rc = vm_name_set(self.r, c_name, holding.page, holding.id, c_meta, size)
        if rc == -EINVAL:
            raise ValueError(f"the description of {name!r} is too long to keep ({size} bytes; at most 416)")
        if rc:
            raise self.fail(rc, 0, f"region[{name!r}]")

    def _name_get(self, str name):
        """(owner, meta) of a named reference; KeyError."""
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef char meta[512]
        cdef size_t size = sizeof(meta)
        cdef vm_range got
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_name_get(self.r, c_name, &got, meta, &size)
        if rc == -ENOENT:
            raise KeyError(name)
        if rc:
            raise self.fail(rc, 0, f"region[{name!r}]")
        owner = ArrayOwner.__new__(ArrayOwner)
        (<ArrayOwner>owner).bind(self, &got, <Py_ssize_t>(got.nr_pages * self.granule))
        return owner, meta[:size]

    def _name_delete(self, str name):
        cdef bytes encoded = _name_bytes(name)
        cdef const char *c_name = encoded
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_name_delete(self.r, c_name)
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

    def _free_page(self, uint64_t page):
        cdef vm_range got
        cdef int rc
        self.open_check()
        rc = vm_lookup(self.r, page, &got)
        if rc == 0:
            with nogil:
                rc = vm_free(self.r, page, got.id, 0)
        if rc:
            raise self.fail(rc, 0, f"free of granule {page}")

    def _lookup(self, uint64_t page):
        """(nr_pages, id) of the live range that starts at `page`; NotAllocated."""
        cdef vm_range got
        self.open_check()
        cdef int rc = vm_lookup(self.r, page, &got)
        if rc:
            raise self.fail(rc, 0, f"page {page}")
        return got.nr_pages, got.id

    # ---- upkeep ----

    def purge(self):
        """Discard lazily freed ranges and a quarter of each pool. Returns the bytes given back."""
        cdef uint64_t pages = 0
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_purge(self.r, &pages)
        if rc:
            raise self.fail(rc, 0, "purge")
        return pages * self.granule

    def shrink(self):
        """Give everything back that is not in use, magazines and pools too. Returns the bytes."""
        cdef uint64_t pages = 0
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_shrink(self.r, &pages)
        if rc:
            raise self.fail(rc, 0, "shrink")
        return pages * self.granule

    def recover(self):
        """Reclaim what dead processes left. Returns the bytes; 0 when nobody died."""
        cdef uint64_t pages = 0
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_recover(self.r, &pages)
        if rc:
            raise self.fail(rc, 0, "recover")
        return pages * self.granule

    def _check(self, bint at_rest, bint repair):
        """Findings of the invariant check, as text."""
        cdef int rc
        self.open_check()
        found = []
        rc = vm_check(self.r, at_rest, repair, _append_text, <void *>found)
        if rc < 0 and rc != -EUCLEAN:
            raise self.fail(rc, 0, "check")
        return found

    def _stats(self):
        cdef vm_stats s
        cdef int rc
        self.open_check()
        with nogil:
            rc = vm_get_stats(self.r, &s)
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
                "format": info.format, "pools": next(k for k, v in POOLS.items() if v == info.pools)}

    def _ranges(self):
        """(page, nr_pages, id, state, owner, shared, dirty) of every range, in address order."""
        cdef int rc
        self.open_check()
        found = []
        rc = vm_walk(self.r, _append_range, <void *>found)
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
        self.timeout_s = seconds
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
        -ENOENT: "cannot be opened again through /proc/self/fd; is /proc mounted?",
    }
    return f"descriptor {fd} {reasons.get(rc, os.strerror(-rc))}"


def _bad_size(nbytes, align):
    if not 0 < nbytes <= 1 << 62:
        return ValueError(f"nbytes must be from 1 to 2**62, not {nbytes}") if nbytes <= 0 else errors.OutOfPages(
            f"{nbytes} bytes are more than any region has")
    return ValueError(f"align must be a power of two, not {align}")


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

    def alive_check(self):
        if not self.held:
            raise errors.NotAllocated("the block was released")

    cdef int let_go(self) except -1:
        """Drop the reference. What a forked child inherited stays its parent's."""
        cdef int rc
        if not self.held or self._region is None or self._region.r == NULL:
            return 0
        self.held = False
        if self.fork_epoch != fork_epoch:
            return 0
        rc = vm_free(self._region.r, self.page, self.id, VM_HIT_ONLY)
        if rc == -EAGAIN:
            with nogil:
                rc = vm_free(self._region.r, self.page, self.id, 0)
        if rc:
            raise self._region.fail(rc, 0, "release")
        return 0

    def __dealloc__(self):
        if self.held and self._region is not None and self._region.r != NULL and self.fork_epoch == fork_epoch:
            self.held = False
            if vm_free(self._region.r, self.page, self.id, VM_HIT_ONLY) == -EAGAIN:
                with nogil:
                    vm_free(self._region.r, self.page, self.id, 0)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self.held:
            raise errors.NotAllocated("the block was released")
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
    def _range(self):
        return self.page, self.nr_pages, self.id

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} is pickled by vmalloc.ref(), by reference; bytes(block) copies")


cdef class ArrayOwner(Holding):
    """What an array's `base` is: holds the pages, and nobody can release it under the array."""


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


# DLPack's ABI, version 0 (dmlc/dlpack, dlpack.h).
ctypedef struct DLDevice:
    int device_type
    int device_id

ctypedef struct DLDataType:
    unsigned char code
    unsigned char bits
    unsigned short lanes

ctypedef struct DLTensor:
    void *data
    DLDevice device
    int ndim
    DLDataType dtype
    long long *shape
    long long *strides
    unsigned long long byte_offset

ctypedef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept with gil


ctypedef struct Export:
    DLManagedTensor managed
    Py_buffer view
    long long shape


cdef extern from "Python.h":
    int PyObject_GetBuffer(object, Py_buffer *, int) except -1
    void PyBuffer_Release(Py_buffer *)


cdef void _dlpack_delete(DLManagedTensor *managed) noexcept with gil:
    cdef Export *export = <Export *>managed.manager_ctx
    PyBuffer_Release(&export.view)
    c_free(export)


cdef void _dlpack_unused(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        managed = <DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")
        managed.deleter(managed)


cdef object _dlpack_capsule(Block block):
    cdef Export *export = <Export *>c_malloc(sizeof(Export))
    if export == NULL:
        raise MemoryError
    memset(export, 0, sizeof(Export))
    try:
        PyObject_GetBuffer(block, &export.view, PyBUF_WRITABLE)
    except BaseException:
        c_free(export)
        raise
    export.shape = export.view.len
    export.managed.dl_tensor.data = export.view.buf
    export.managed.dl_tensor.device.device_type = 1
    export.managed.dl_tensor.ndim = 1
    export.managed.dl_tensor.dtype.code = 1
    export.managed.dl_tensor.dtype.bits = 8
    export.managed.dl_tensor.dtype.lanes = 1
    export.managed.dl_tensor.shape = &export.shape
    export.managed.manager_ctx = export
    export.managed.deleter = _dlpack_delete
    return PyCapsule_New(&export.managed, "dltensor", _dlpack_unused)
