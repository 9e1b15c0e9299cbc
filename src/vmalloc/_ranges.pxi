# SPDX-License-Identifier: MIT
# Part of _core.pyx: RangeTable, all ranges of a region at one moment, as the core tells them. A Python object for each of
# a million would take seconds; here none is made unless it is asked for.

cdef enum:
    STATES_TOLD = 8
    LINE_MAX = 320  # bytes of a line in either form
    HEX_DIGITS = 12

cdef uint32_t BUSY = STATES.index("busy")
cdef const char *state_text[STATES_TOLD]
cdef list state_names = [name.encode() for name in STATES]
assert len(state_names) == STATES_TOLD
for _at in range(STATES_TOLD):
    state_text[_at] = state_names[_at]


# A line is put together by hand: snprintf would take half a second for a million of them.

cdef inline const char *word(bint is_so, const char *yes, const char *no) noexcept nogil:
    if is_so:
        return yes
    return no


cdef inline char *put(char *to, const char *text) noexcept nogil:
    cdef size_t nbytes = strlen(text)
    memcpy(to, text, nbytes)
    return to + nbytes


cdef inline char *put_number(char *to, uint64_t value, int width=1) noexcept nogil:
    """In decimal, at least so wide: blanks in front."""
    cdef char digits[24]
    cdef int nr = 0
    while nr == 0 or value:
        digits[nr] = <char>(c'0' + value % 10)
        value //= 10
        nr += 1
    while width > nr:
        to[0] = c' '
        to += 1
        width -= 1
    while nr:
        nr -= 1
        to[0] = digits[nr]
        to += 1
    return to


cdef inline char *put_hex(char *to, uint64_t value) noexcept nogil:
    """As 0x and at least HEX_DIGITS digits."""
    cdef int nr = HEX_DIGITS
    while nr < 16 and value >> 4 * nr:
        nr += 1
    to = put(to, b"0x")
    while nr:
        nr -= 1
        to[0] = b"0123456789abcdef"[value >> 4 * nr & 15]
        to += 1
    return to


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
        cdef size_t n = first, nr = 0
        cdef char *text = <char *>c_malloc(most * LINE_MAX + 1)
        cdef char *end = text
        if text == NULL:
            raise MemoryError
        try:
            with nogil:
                while n < self.found.nr and nr < most:
                    if self.at(n).state or with_free:
                        end = self.json_line(end, n) if as_json else self.line(end, n)
                        nr += 1
                    n += 1
            return text[:end - text].decode("ascii"), n
        finally:
            c_free(text)

    cdef const char *state_of(self, size_t n) noexcept nogil:
        if self.at(n).state < STATES_TOLD:
            return state_text[self.at(n).state]
        return "unknown"  # scribbled over; check() tells

    cdef char *line(self, char *to, size_t n) noexcept nogil:
        """As the kernel's: addresses (here offsets), bytes, pages, who."""
        cdef const vm_range_info *r = self.at(n)
        cdef uint64_t pid = self.pid_at(n)
        to = put_hex(to, r.page * self.granule)
        to = put_hex(put(to, b"-"), (r.page + r.nr_pages) * self.granule)
        to = put_number(put(to, b" "), r.nr_pages * self.granule, 12)
        to = put_number(put(to, b" pages="), r.nr_pages)
        to = put(put(to, b" "), self.state_of(n))
        if pid:
            to = put_number(put(to, b" pid="), pid)
        elif r.state == BUSY:
            to = put_number(put(to, b" process="), r.owner)
        if r.shared:
            to = put(to, b" shared")
        if r.dirty:
            to = put(to, b" dirty")
        return put(to, b"\n")

    cdef char *json_line(self, char *to, size_t n) noexcept nogil:
        cdef const vm_range_info *r = self.at(n)
        cdef uint64_t pid = self.pid_at(n)
        to = put(to, word(n > 0, b",\n ", b"\n "))
        to = put_number(put(to, b'{"start": '), r.page)
        to = put_number(put(to, b', "end": '), r.page + r.nr_pages)
        to = put(put(to, b', "state": "'), self.state_of(n))
        to = put_number(put(to, b'", "owner": '), r.owner)
        to = put_number(put(to, b', "id": '), r.id)
        to = put(put(to, b', "shared": '), word(r.shared, b"true", b"false"))
        to = put(put(to, b', "dirty": '), word(r.dirty, b"true", b"false"))
        to = put(to, b', "pid": ')
        if pid:
            return put(put_number(to, pid), b"}")
        return put(to, b"null}")

    cdef uint64_t pid_at(self, size_t n) noexcept nogil:
        cdef const vm_range_info *r = self.at(n)
        return self.pid_of[r.owner] if r.state == BUSY and r.owner <= VM_PROCESSES_MAX else 0
