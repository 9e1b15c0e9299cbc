# SPDX-License-Identifier: MIT
# Part of _core.pyx: Window, by which a process receives that has no slot or no address space.

@cython.final
cdef class Window:
    """A region seen through its descriptor alone: what is received is a copy."""
    cdef vm_window *w

    def __init__(self, int fd, bint is_given=False):
        """`fd` stays the caller's. `is_given`: it came from this process's parent, so its owner may be another user.

        RegionUnavailable.
        """
        cdef int rc
        if self.w != NULL:
            raise TypeError("a window is opened once")
        rc = vm_window_open(fd, is_given, &self.w)
        if rc:
            raise error_of(-rc, "attach", what=f"descriptor {fd}", versions=_versions(fd) if rc == -EPROTO else "")

    def __dealloc__(self):
        if self.w != NULL:
            vm_window_close(self.w)

    def fileno(self):
        """Its own descriptor of the region."""
        return vm_window_fd(self.w)

    def read_into(self, out not None, uint64_t page, uint64_t id, uint64_t at):
        """Fill the writable buffer `out` with the bytes of a shared range from `at` on. StaleReference, OSError."""
        cdef Py_buffer view
        cdef int rc
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            with nogil:
                rc = vm_window_read(self.w, page, id, at, <uint64_t>view.len, view.buf)
        finally:
            PyBuffer_Release(&view)
        if rc:
            raise error_of(-rc, what=f"reference to page {page}, id {id}")

    def keep(self, uint64_t lease):
        """The message with this lease is in our hands: it stays until done(), or until somebody ends it on purpose."""
        if lease:
            vm_window_keep(self.w, lease)

    def done(self, uint64_t lease):
        """The message with this lease was read: nothing of it is needed any more."""
        if lease:
            vm_window_done(self.w, lease)
