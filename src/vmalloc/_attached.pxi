# SPDX-License-Identifier: MIT
# Part of _core.pyx: the one table of the regions that this process has attached.

@cython.final
cdef class Attached:
    """Regions and address spaces by their 128-bit ids, without keeping them."""
    cdef dict refs
    cdef tuple all  # its values: asked for at each message
    cdef uint64_t nr_changes

    def __cinit__(self):
        self.refs = {}
        self.all = ()
        self.nr_changes = 0

    cdef int changed(self) except -1:
        """After each change of refs. The collector may run in here, and end or attach other regions."""
        cdef uint64_t seen
        self.nr_changes += 1
        while True:
            seen = self.nr_changes
            # by a list: while a tuple is made of a dict, it is iterated already when the collector runs
            told = tuple(list(self.refs.values()))
            if seen == self.nr_changes:
                self.all = told
                return 0

    cdef object find(self, bytes id):
        ref = self.refs.get(id)
        return None if ref is None else ref()

    cdef int forget(self, bytes id) except -1:
        """After its end: its entry, unless another has taken its place meanwhile."""
        ref = self.refs.get(id)
        if ref is not None and ref() is None:
            del self.refs[id]
            self.changed()
        return 0

    def get(self, id):
        """The region, or None. TypeError for what is no id."""
        return self.find(id)

    def pop(self, bytes id):
        """The region, which is not found any more, or None."""
        ref = self.refs.pop(id, None)
        self.changed()
        return None if ref is None else ref()

    def values(self):
        """A list of all."""
        return [region for ref in list(self.refs.values()) if (region := ref()) is not None]

    def clear(self):
        self.refs.clear()
        self.changed()

    def __setitem__(self, bytes id not None, CoreRegion region not None):
        self.refs[id] = weakref.ref(region)
        self.changed()

    def __contains__(self, id):
        return self.find(id) is not None


cdef Attached _attached = Attached()
attached = _attached
