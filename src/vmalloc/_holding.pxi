# SPDX-License-Identifier: MIT
# Part of _core.pyx: Holding, and the two kinds of it: ArrayOwner and Block.

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
        if range.nr_pages > VM_NOTED_PAGES:
            vm_note(region.r, range)

    def __init__(self):
        raise TypeError("made by a region, not by hand")

    cdef int alive_check(self, RegionHandle region) except -1:
        """It must hold pages of `region`; what was inherited, as its own from now on."""
        cdef vm_range got
        if not self.held:
            raise errors.NotAllocated(self.released_text())
        if self._region is not region:
            raise errors.NotAllocated(f"the pages at offset {self.offset} are another region's")
        if self.fork_epoch != fork_epoch:
            self._region.adopt(self.page, self.id, 0, &got, f"pages at offset {self.offset}, inherited through fork")
            if self.fork_epoch == fork_epoch or not self.held:  # another thread was first, or released it
                with nogil:
                    vm_free(region.r, self.page, self.id, 0)
                return self.alive_check(region)
            self.fork_epoch = fork_epoch
            with nogil:
                vm_free(region.r, self.page, self.id, VM_INHERITED)
        return 0

    cdef str released_text(self):
        text = f"the block of {self.nbytes} bytes at offset {self.page * self._region.granule} was released"
        return text if self._region._guard is None else text + self._region._guard.told_of(self.id)

    # ---- the way back ----

    cdef int let_go(self) except -1:
        """Drop the reference."""
        if not self.held or self._region is None or self._region.r == NULL:
            return 0
        self.held = False
        if vm_free(self._region.r, self.page, self.id, VM_HIT_ONLY) == 0:
            return 0
        return self.let_go_slowly() if self._region._guard is None else self.let_go_guarded()

    cdef int let_go_guarded(self) except -1:
        """In a hardened region: looked at, poisoned and put in quarantine. MemoryMisused after it was let go of."""
        cdef bint inherited = self.fork_epoch != fork_epoch
        cdef int rc
        try:
            freeing = self._region._guard.freeing(self._region, self.page, self.nr_pages, self.id, self.nbytes)
            rc = self._region.free_guarded(self.page, self.id, inherited, freeing)
        except BaseException:  # so far nothing was done
            self.held = True
            raise
        if rc == 0:
            self._region._guard.freed(self._region, freeing)
        if rc == 0 or inherited:
            return 0
        self.held = rc == -EBUSY
        raise self._region.fail(rc, "release")

    cdef int finalize_guarded(self) except -1:
        """The same, by a finalizer: nobody comes again to free what a signal's handler broke off."""
        if is_finalizing():
            self.held = False
            self.free_quietly()
            return 0
        try:
            self.let_go()
        except errors.MemoryMisused as e:
            self._region._guard.tell_later(e)
            raise
        except BaseException:
            if self.held:
                self.held = False
                self.free_quietly()
            raise
        return 0

    cdef int let_go_slowly(self) except -1:
        """Nothing was freed if this is interrupted or the region is busy: then it is held as before."""
        cdef Call c
        cdef int rc
        cdef bint inherited = self.fork_epoch != fork_epoch
        c.page, c.id = self.page, self.id
        c.flags = VM_INHERITED if inherited else 0
        try:
            rc = self._region.result_of(call_free, &c)
        except BaseException:
            self.held = True
            raise
        if rc == 0 or inherited:  # inherited: let go of by drop_inherited(), or never held for want of a slot
            return 0
        self.held = rc == -EBUSY
        raise self._region.fail(rc, "release")

    cdef int free_quietly(self) noexcept:
        """For finalizers: no signals, no errors."""
        cdef unsigned flags = 0 if self.fork_epoch == fork_epoch else VM_INHERITED
        if vm_free(self._region.r, self.page, self.id, VM_HIT_ONLY) != 0:
            with nogil:
                vm_free(self._region.r, self.page, self.id, flags)
        return 0

    def __dealloc__(self):
        if self.held and self._region is not None and self._region.r != NULL:
            if self._region._guard is None:
                self.held = False
                self.free_quietly()
            else:
                self.finalize_guarded()

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
cdef class ArrayOwner(Holding):
    """What an array's `base` is: holds the pages, and nobody can release it under the array."""


@cython.final
@cython.no_gc_clear
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
        return f"<vmalloc.Block of {size_text(self.nbytes)} {state}>"

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """The block as a one-dimensional uint8 DLPack tensor; the capsule holds the block."""
        if dl_device not in (None, (1, 0)):
            raise BufferError(f"the block is in host memory, not on device {dl_device}")
        if copy:
            raise BufferError("copy=True: copy the tensor instead")
        return _dlpack_capsule(self)
