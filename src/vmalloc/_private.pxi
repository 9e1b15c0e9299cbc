# SPDX-License-Identifier: MIT
# Part of _core.pyx: PrivatePages, what a value lies in whose writes are its receiver's own.

cdef Py_ssize_t _nr_private_mappings = 0  # of this process; the interpreter lock guards it


@cython.no_gc_clear  # in a reference cycle too the holding is there until the mapping is gone
cdef class PrivatePages:
    """A private mapping of a holding's pages: what is written to it is seen here only.

    A page that was not written here is the region's, so the holding is kept. A writable buffer of `nbytes` bytes,
    as the holding is.
    """
    cdef Holding holding
    cdef void *start
    cdef readonly Py_ssize_t nbytes

    def __init__(self, Holding holding not None):
        """OSError if it cannot be mapped."""
        global _nr_private_mappings
        cdef vm_info info
        cdef RegionHandle region = holding._region
        cdef int fd = region.fileno()
        cdef int64_t offset
        cdef size_t nbytes = max(holding.nbytes, 1)
        if self.start != NULL:
            raise TypeError("pages are mapped once")
        vm_describe(region.r, &info)
        offset = <int64_t>(info.total_bytes - (info.nr_pages - holding.page) * info.page_bytes)
        with nogil:
            at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, offset)
        if at == MAP_FAILED:
            raise OSError("cannot map the pages privately")
        self.start, self.holding, self.nbytes = at, holding, holding.nbytes
        _nr_private_mappings += 1

    def __dealloc__(self):
        global _nr_private_mappings
        if self.start != NULL:
            munmap(self.start, max(self.nbytes, 1))
            _nr_private_mappings -= 1

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, self.nbytes, 0, flags)


def nr_private_mappings():
    """How many there are in this process."""
    return _nr_private_mappings
