# SPDX-License-Identifier: MIT
# Part of _core.pyx: RangeTable, all ranges of a region at one moment, as the core tells them. A Python object for each of
# a million would take seconds; here none is made unless it is asked for.

cdef enum:
    STATES_TOLD = 8
    LINE_MAX = 320  # bytes of a line in either form

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)
    ctypedef unsigned long long ull "unsigned long long"

cdef uint32_t BUSY = STATES.index("busy")
cdef const char *state_text[STATES_TOLD]
cdef list state_names = [name.encode() for name in STATES]
assert len(state_names) == STATES_TOLD
for _at in range(STATES_TOLD):
    state_text[_at] = state_names[_at]


cdef const char *word(bint is_so, const char *yes, const char *no) noexcept nogil:
    if is_so:
        return yes
    return no


@cython.final
cdef class RangeTable:
    """The ranges of a region in address order: a row of `DTYPE` each, to be had as a buffer of bytes."""
    cdef Found found
    cdef readonly uint64_t granule, nr_pages
    cdef uint64_t pid_of[VM_PROCESSES_MAX + 1]

    DTYPE = (("start", "u8"), ("nr_pages", "u8"), ("id", "u8"), ("state", "u4"), ("owner", "u4"), ("shared", "?"),
             ("dirty", "?"), ("", "V6"))

    def __len__(self):
        return self.found.nr

    def __dealloc__(self):
        c_free(self.found.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.found.data, <Py_ssize_t>self.found.nbytes, 1, flags)

    cdef const vm_range_info *at(self, size_t n) noexcept nogil:
        return <const vm_range_info *>self.found.data + n

    def know(self, pids):
        """From slot to pid, for lines()."""
        for slot, pid in pids.items():
            if 0 <= slot <= VM_PROCESSES_MAX:
                self.pid_of[slot] = pid

    def rows(self):
        """A Range for each."""
        return ranges_of(&self.found)

    def totals(self):
        """From a state to (ranges, pages); of those that there are."""
        cdef uint64_t nr[STATES_TOLD]
        cdef uint64_t nr_pages[STATES_TOLD]
        cdef size_t n
        cdef uint32_t state
        memset(nr, 0, sizeof(nr))
        memset(nr_pages, 0, sizeof(nr_pages))
        with nogil:
            for n in range(self.found.nr):
                state = self.at(n).state % STATES_TOLD
                nr[state] += 1
                nr_pages[state] += self.at(n).nr_pages
        return {name: (nr[i], nr_pages[i]) for i, name in enumerate(STATES) if nr[i]}

    def most_of_each(self, size_t nr_parts):
        """The region in so many equal parts: the number of the state that most pages of each have, as bytes."""
        cdef uint64_t pages[STATES_TOLD]
        cdef bytearray most = bytearray(nr_parts)
        cdef uint64_t page, end, part_end
        cdef size_t n = 0, part
        cdef uint32_t i, best
        memset(pages, 0, sizeof(pages))
        for part in range(nr_parts):
            part_end = ((part + 1) * self.nr_pages + nr_parts - 1) // nr_parts
            page = (part * self.nr_pages + nr_parts - 1) // nr_parts
            memset(pages, 0, sizeof(pages))
            while n < self.found.nr and page < part_end:
                end = min(self.at(n).page + self.at(n).nr_pages, part_end)
                if end > page:
                    pages[self.at(n).state % STATES_TOLD] += end - page
                    page = end
                if self.at(n).page + self.at(n).nr_pages <= part_end:
                    n += 1
            best = 0
            for i in range(STATES_TOLD):
                if pages[i] > pages[best]:
                    best = i
            most[part] = best
        return bytes(most)

    def lines(self, size_t first, size_t most, bint with_free, bint as_json):
        """(text of at most so many lines from range `first` on, the range after them). Free ranges if `with_free`."""
        cdef size_t n = first, nr = 0, nbytes = 0
        cdef char *text = <char *>c_malloc(most * LINE_MAX + 1)
        if text == NULL:
            raise MemoryError
        try:
            with nogil:
                while n < self.found.nr and nr < most:
                    if self.at(n).state or with_free:
                        nbytes += self.json_line(text + nbytes, n) if as_json else self.line(text + nbytes, n)
                        nr += 1
                    n += 1
            return text[:nbytes].decode("ascii"), n
        finally:
            c_free(text)

    cdef const char *state_of(self, size_t n) noexcept nogil:
        if self.at(n).state < STATES_TOLD:
            return state_text[self.at(n).state]
        return "unknown"  # scribbled over; check() tells

    cdef size_t line(self, char *to, size_t n) noexcept nogil:
        """As the kernel's: addresses (here offsets), bytes, pages, who."""
        cdef const vm_range_info *r = self.at(n)
        cdef size_t nbytes = <size_t>snprintf(
            to, LINE_MAX, b"0x%012llx-0x%012llx %12llu pages=%llu %s", <ull>(r.page * self.granule),
            <ull>((r.page + r.nr_pages) * self.granule), <ull>(r.nr_pages * self.granule), <ull>r.nr_pages, self.state_of(n))
        cdef uint64_t pid = self.pid_at(n)
        if pid:
            nbytes += <size_t>snprintf(to + nbytes, LINE_MAX - nbytes, b" pid=%llu", <ull>pid)
        elif r.state == BUSY:
            nbytes += <size_t>snprintf(to + nbytes, LINE_MAX - nbytes, b" process=%u", r.owner)
        return nbytes + <size_t>snprintf(
            to + nbytes, LINE_MAX - nbytes, b"%s%s\n", word(r.shared, " shared", ""), word(r.dirty, " dirty", ""))

    cdef size_t json_line(self, char *to, size_t n) noexcept nogil:
        cdef const vm_range_info *r = self.at(n)
        cdef uint64_t pid = self.pid_at(n)
        cdef size_t nbytes = <size_t>snprintf(
            to, LINE_MAX, b'%s{"start": %llu, "end": %llu, "state": "%s", "owner": %u, "id": %llu, "shared": %s, '
            b'"dirty": %s, "pid": ', word(n, ",\n ", "\n "), <ull>r.page, <ull>(r.page + r.nr_pages), self.state_of(n),
            r.owner, <ull>r.id, word(r.shared, "true", "false"), word(r.dirty, "true", "false"))
        if pid:
            return nbytes + <size_t>snprintf(to + nbytes, LINE_MAX - nbytes, b"%llu}", <ull>pid)
        return nbytes + <size_t>snprintf(to + nbytes, LINE_MAX - nbytes, b"null}")

    cdef uint64_t pid_at(self, size_t n) noexcept nogil:
        cdef const vm_range_info *r = self.at(n)
        return self.pid_of[r.owner] if r.state == BUSY and r.owner <= VM_PROCESSES_MAX else 0
