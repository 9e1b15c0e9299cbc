# SPDX-License-Identifier: MIT
# Part of _core.pyx: RegionReferences, the third of a region's classes: shared ranges, leases, names.

cdef bytes name_bytes(str name):
    encoded = name.encode()
    if not 0 < len(encoded) < 64 or b"\0" in encoded:
        raise ValueError(f"a name takes 1 to 63 bytes without zeros, not {name!r}")
    return encoded


cdef class RegionReferences(RegionUpkeep):
    """How a range is passed on: to another process, in a message, under a name."""

    def _share(self, Holding holding not None):
        """Mark the range shared, so that other processes may adopt it. Returns (page, id)."""
        cdef Call c
        self.open_check()
        holding.alive_check(self)
        c.page, c.id = holding.page, holding.id
        self.run(call_share, &c, f"share of page {holding.page}")
        return holding.page, holding.id

    def _lease(self, Holding holding not None, bint is_message=True, uint64_t channel=0):
        """A reference for a message to carry: (page, id, lease). It keeps the range until it is claimed.

        Not `is_message`: a Ref's, which ends lease_ttl_s after this process. `channel`: see channel_of().
        """
        cdef uint64_t lease
        self.lease_of(holding, &lease, is_message, channel)
        return holding.page, holding.id, lease

    cdef int lease_of(self, Holding holding, uint64_t *lease, bint is_message, uint64_t channel) except -1:
        cdef Call c
        self.open_check()
        holding.alive_check(self)
        c.page, c.id = holding.page, holding.id
        c.new_lease, c.is_message, c.channel = lease, is_message, channel
        cdef int rc = self.result_of(call_lease, &c)
        if rc:
            raise self.fail(rc, f"a reference to page {holding.page}")
        return 0

    def _drop_lease(self, uint64_t lease):
        """End a lease, if it is still there. Quiet: for finalizers and failed messages."""
        if self.r != NULL:
            with nogil:
                vm_drop_lease(self.r, lease)

    def drop_inherited(self):
        """In a forked child: let go of every array and block that came with the fork.

        For workers that live long: what their parent frees is free then. The objects themselves stay, but
        their bytes may be anybody's from now on: do not use them. Returns the number of ranges.
        """
        cdef Call c
        c.nr = 0
        self.open_check()
        self.run(call_drop_inherited, &c, "drop_inherited")
        return c.nr

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
        owner.bind(<CoreRegion>self, &got, size)
        if size < 0 or <uint64_t>size > got.nr_pages * self.granule:
            raise errors.StaleReference(f"{what}: {nbytes} bytes named, the range has {got.nr_pages} pages")
        return owner

    cdef int adopt(self, uint64_t page, uint64_t id, uint64_t lease, vm_range *out, object what) except -1:
        cdef Call c
        c.page, c.id, c.lease = page, id, lease
        c.out = out
        return self.run(call_adopt, &c, what)

    # ---- names ----

    def _name_set(self, str name not None, Holding holding not None, bytes meta not None, bint new=False):
        """Name a range; with `new`, FileExistsError if the name is taken."""
        cdef bytes encoded = name_bytes(name)
        cdef Call c
        c.name = encoded
        c.meta, c.meta_bytes = <const char *>meta, len(meta)
        c.must_be_new = new
        self.open_check()
        holding.alive_check(self)
        c.page, c.id = holding.page, holding.id
        cdef int rc = self.result_of(call_name_set, &c)
        if rc:
            raise self.fail(rc, f"region[{name!r}]", 0, "set name", {"name": name, "nbytes": len(meta)})

    def _name_get(self, str name not None):
        """(owner, meta) of a named reference; KeyError."""
        cdef bytes encoded = name_bytes(name)
        cdef char meta[512]
        cdef vm_range got
        cdef ArrayOwner owner
        cdef Call c
        c.name = encoded
        c.out = &got
        c.meta_out, c.meta_bytes = meta, sizeof(meta)
        self.pages_check()
        cdef int rc = self.result_of(call_name_get, &c)
        if rc:
            raise self.fail(rc, f"region[{name!r}]", 0, "find name", {"name": name})
        owner = ArrayOwner.__new__(ArrayOwner)
        owner.bind(<CoreRegion>self, &got, <Py_ssize_t>(got.nr_pages * self.granule))
        return owner, meta[:c.meta_bytes]

    def _name_delete(self, str name not None):
        """Drop a name; KeyError."""
        cdef bytes encoded = name_bytes(name)
        cdef Call c
        c.name = encoded
        self.open_check()
        cdef int rc = self.result_of(call_name_delete, &c)
        if rc:
            raise self.fail(rc, f"del region[{name!r}]", 0, "find name", {"name": name})

    def names(self):
        """The names of the region's named references."""
        cdef Call c
        return self.collected(call_name_list, &c, texts_of, "names", False)
