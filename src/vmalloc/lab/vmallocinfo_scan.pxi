# SPDX-License-Identifier: MIT
# Part of _core.pyx: AreaTable, /proc/vmallocinfo with a million lines, for vmalloc.lab.vmallocinfo, which says the grammar.

cdef struct AreaRow:
    uint64_t start, end, size
    uint32_t what  # which of `rests`
    uint32_t line


cdef const char *hex_number(const char *at, uint64_t *out) noexcept nogil:
    """Behind "0x" and 1 to 16 digits; NULL if they are not there."""
    cdef int nr = 0
    cdef char c
    out[0] = 0
    if at[0] != c"0" or at[1] != c"x":
        return NULL
    at += 2
    while nr <= 16:
        c = at[0]
        if c"0" <= c <= c"9":
            out[0] = out[0] << 4 | <uint64_t>(c - c"0")
        elif c"a" <= c <= c"f":
            out[0] = out[0] << 4 | <uint64_t>(c - c"a" + 10)
        else:
            break
        at += 1
        nr += 1
    return at if 0 < nr <= 16 else NULL


cdef const char *blanks(const char *at) noexcept nogil:
    while at[0] == c" ":
        at += 1
    return at


cdef const char *area_row(const char *at, AreaRow *row) noexcept nogil:
    """The numbers of a line, which a newline or a zero ends; where its words begin, NULL for another grammar."""
    cdef const char *digits
    at = hex_number(at, &row.start)
    if at == NULL or at[0] != c"-":
        return NULL
    at = hex_number(at + 1, &row.end)
    if at == NULL or at[0] != c" ":
        return NULL
    digits = at = blanks(at)
    row.size = 0
    while c"0" <= at[0] <= c"9" and at - digits < 20:
        row.size = row.size * 10 + <uint64_t>(at[0] - c"0")
        at += 1
    if at == digits or at - digits > 19 or (at[0] != c" " and at[0] != c"\n" and at[0] != c"\0"):  # 19 digits fit 64 bits
        return NULL
    return blanks(at)


@cython.final
cdef class AreaTable:
    """The areas of a text, and apart from them the lines that need a closer look."""
    cdef Found found
    cdef readonly list rests  # what different lines say behind their numbers
    cdef readonly list first  # line of each of these
    cdef readonly list odd  # (number, line)

    def __init__(self, bytes text not None):
        cdef const char *at = text
        cdef const char *end = at + len(text)
        cdef const char *newline
        cdef const char *words
        cdef AreaRow row
        cdef dict numbers = {}
        cdef uint32_t line = 0
        if self.rests is not None:
            raise TypeError("a table is filled once")
        self.rests, self.first, self.odd = [], [], []
        while at < end:
            line += 1
            newline = <const char *>memmem(at, <size_t>(end - at), b"\n", 1)
            if newline == NULL:
                newline = end
            words = area_row(at, &row)
            if words == NULL or words > newline:
                self.odd.append((line, at[:newline - at]))
            else:
                row.what, row.line = self.number_of(words[:newline - words], numbers, line), line
                if append_bytes(&self.found, &row, sizeof(row)):
                    raise MemoryError
            at = newline + 1

    cdef uint32_t number_of(self, bytes rest, dict numbers, uint32_t line) except? 0xffffffff:
        number = numbers.get(rest)
        if number is None:
            number = numbers[rest] = len(self.rests)
            self.rests.append(rest)
            self.first.append(line)
        return number

    def __len__(self):
        return self.found.nr

    def __dealloc__(self):
        c_free(self.found.data)

    cdef const AreaRow *at(self, size_t n) noexcept nogil:
        return <const AreaRow *>self.found.data + n

    def sums(self):
        """(areas, bytes) for each of `rests`."""
        cdef list nr = [0] * len(self.rests)
        cdef list nbytes = [0] * len(self.rests)
        cdef size_t n
        for n in range(self.found.nr):
            nr[self.at(n).what] += 1
            nbytes[self.at(n).what] += self.at(n).size
        return list(zip(nr, nbytes))

    def unreal(self, uint64_t page):
        """(line, start, end, size) of each area whose address cannot be one: no page's, or not as long as its size."""
        cdef size_t n
        cdef const AreaRow *row
        cdef list found = []
        for n in range(self.found.nr):
            row = self.at(n)
            if row.end - row.start != row.size or row.start % page:
                found.append((row.line, row.start, row.end, row.size))
        return found

    def bounds(self):
        """(lowest start, highest end); of no areas (0, 0)."""
        cdef uint64_t low = <uint64_t>-1, high = 0
        cdef size_t n
        for n in range(self.found.nr):
            low = min(low, self.at(n).start)
            high = max(high, self.at(n).end)
        return (low if self.found.nr else 0), high

    def covered(self, uint64_t start, uint64_t part_bytes, size_t nr_parts, kinds):
        """Bytes of areas in each of so many parts from `start` on, a list for each kind; `kinds[what]` is its number."""
        cdef list shares = [[0] * nr_parts for _ in range(max(kinds, default=0) + 1)]
        cdef size_t n, part
        cdef uint64_t at, until, following, stop = start + part_bytes * nr_parts
        for n in range(self.found.nr):
            at, until = max(self.at(n).start, start), min(self.at(n).end, stop)
            share = <list>shares[kinds[self.at(n).what]]
            while at < until:
                part = (at - start) // part_bytes
                following = min(until, start + (part + 1) * part_bytes)
                share[part] += following - at
                at = following
        return shares
