# SPDX-License-Identifier: MIT
# Part of _core.pyx: what lies in a region, found by its address: whatever keeps the pages, and however far away.

cdef extern from "Python.h":
    bint PyObject_CheckBuffer(object)

# No region of this process begins lower or ends higher; a hint that only grows.
cdef size_t _lowest = <size_t>-1
cdef size_t _highest = 0


cdef void note_bounds(RegionHandle region) noexcept:
    global _lowest, _highest
    cdef size_t start = <size_t>vm_pointer(region.r, 0)
    if start:
        _lowest = min(_lowest, start)
        _highest = max(_highest, start + region.nr_pages_ * region.granule)


cdef CoreRegion region_around(size_t address):
    """The region whose data this address is in, or None."""
    cdef CoreRegion region
    cdef size_t start
    if not _lowest <= address < _highest:
        return None
    for found in _attached.values():
        region = found
        start = 0 if region.r == NULL else <size_t>vm_pointer(region.r, 0)
        if start and start <= address < start + region.nr_pages_ * region.granule:
            return region
    return None


@cython.final
@cython.no_gc_clear
cdef class Borrowed(Holding):
    """Pages that something else keeps: it keeps that alive, and gives nothing back."""
    cdef object keeper
    cdef unsigned long borrowed_epoch

    cdef int alive_check(self, RegionHandle region) except -1:
        """In a forked child a reference of its own from now on; the inherited one is the keeper's."""
        cdef vm_range got
        if self.fork_epoch != fork_epoch and self._region is region:
            self._region.adopt(self.page, self.id, 0, &got, f"pages at offset {self.offset}, inherited through fork")
            if self.fork_epoch == fork_epoch:  # another thread was first
                with nogil:
                    vm_free(region.r, self.page, self.id, 0)
            self.fork_epoch = fork_epoch
        return Holding.alive_check(self, region)

    def __dealloc__(self):
        if self.fork_epoch == self.borrowed_epoch:
            self.held = False


cdef object borrow(size_t low, size_t high, keeper):
    """The pages that all bytes of [low, high) lie in, or None."""
    cdef CoreRegion region
    cdef Borrowed holding
    cdef vm_range found
    cdef size_t start
    region = region_around(low)
    if region is None or low >= high or vm_find(region.r, <void *>low, &found) != 0:
        return None
    start = <size_t>vm_pointer(region.r, found.page)
    if high - start > found.nr_pages * region.granule:
        return None
    holding = Borrowed.__new__(Borrowed)
    holding.bind(region, &found, <Py_ssize_t>(found.nr_pages * region.granule - region.guard_bytes))
    holding.keeper, holding.borrowed_epoch = keeper, fork_epoch
    return holding


def holding_at(size_t address, Py_ssize_t nbytes, keeper):
    """The pages that these bytes lie in, as long as `keeper` keeps them, or None if it is not one range's."""
    return borrow(address, address + nbytes if nbytes > 0 else address, keeper)


cdef bint _has_pointers(x) except -1:
    """Of an array, whether its bytes mean nothing to others: NEP 49 does not tell us what we give memory for."""
    if isinstance(x, memoryview):
        return "O" in "".join((<object>x).format.split(":")[::2])  # between colons stand names of fields
    dtype = getattr(x, "dtype", None)
    return dtype is not None and bool(getattr(dtype, "hasobject", False))


def holding_around(x):
    """The same for an array or whatever else is a buffer; for what is none, or has no bytes, None."""
    cdef Py_buffer view
    cdef size_t low, high
    cdef int i
    if _highest == 0 or not PyObject_CheckBuffer(x) or _has_pointers(x):
        return None
    try:
        PyObject_GetBuffer(x, &view, PyBUF_STRIDES)
    except (BufferError, ValueError):  # dates and the like are no buffers
        return _around_interface(x)
    low = <size_t>view.buf
    high = low + view.itemsize
    try:
        if view.len == 0 or not _lowest <= low < _highest:
            return None
        if view.strides == NULL:
            high = low + view.len
        else:
            for i in range(view.ndim):
                if view.strides[i] < 0:
                    low += view.strides[i] * (view.shape[i] - 1)
                else:
                    high += view.strides[i] * (view.shape[i] - 1)
    finally:
        PyBuffer_Release(&view)
    return borrow(low, high, x)


cdef object _around_interface(x):
    interface = getattr(x, "__array_interface__", None)
    if interface is None or x.nbytes == 0:
        return None
    low = interface["data"][0]
    high = low + x.itemsize
    for n, stride in zip(x.shape, x.strides):
        if stride < 0:
            low += stride * (n - 1)
        else:
            high += stride * (n - 1)
    return borrow(low, high, x)


cdef bint is_inside(array) except -1:
    """Whether the array, which has no base, lies in a region: only what numpy_arrays() made does."""
    return _nr_numpy_arrays_calls != 0 and holding_around(array) is not None
