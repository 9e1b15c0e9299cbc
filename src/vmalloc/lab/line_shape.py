# SPDX-License-Identifier: MIT
"""Lines of one shape taken apart all at once, and numbers read out of 64-bit words.

A `LineShape` is learned from one line that the grammar understands. `Heads` compares the heads of many lines
with it and reads their fields, which stand at the same places; `Fields` reads those whose places differ. A
number is read as one unaligned 64-bit load, the characters outside the field masked, and eight digits turned
into a number by three multiplications ("SIMD within a register"). Nothing is taken on trust: every character
is either compared with the shape or checked to be what its field may hold, and `good` tells the lines for
which all of it held.
"""

from __future__ import annotations

import re
import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vmalloc.lab.columns import Array, Mask
from vmalloc.lab.dialect import ALLOC_BODY, ALLOC_EVENT, FREE_BODY, FREE_EVENT, Dialect
from vmalloc.lab.events import ALLOC, FREE
from vmalloc.lab.lines import U64_MAX

Words = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int64]

DIFFERENT_TEXTS_MAX = 8  # of texts that a recording repeats: windows, limits
LONGEST_REPEATED = 80
PAD = 256  # bytes around a chunk, so that loads beside a field stay inside

_BLANKS = np.uint64(0x2020202020202020)
_ZEROS = np.uint64(0x3030303030303030)
_ONES = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x8080808080808080)
_NOT_A_DIGIT = np.uint64(0x7676767676767676)  # added to a byte above 9, sets its high bit
_HIGH_NIBBLES = np.uint64(0xF0F0F0F0F0F0F0F0)
_SIXES = np.uint64(0x0606060606060606)
_PAIRS = np.uint64(0x00FF00FF00FF00FF)
_FOURS = np.uint64(0x0000FFFF0000FFFF)
_EIGHTS = np.uint64(0xFFFFFFFF)

# LAST[n] keeps the last n characters of a word (its high bytes), _FIRST[n] the first n (its low bytes).
LAST = np.array([((1 << 8 * n) - 1) << 8 * (8 - n) for n in range(9)], np.uint64)
_FIRST = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)

U = np.uint64


class Text:
    """A padded chunk as bytes, as unaligned 64-bit words and as longer records."""

    _scratch = threading.local()  # memory that is touched for the first time costs more than all the rest

    def __init__(self, data: bytes) -> None:
        size = len(data) + 2 * PAD
        if len(getattr(self._scratch, "bytes", b"")) < size:
            self._scratch.bytes = np.zeros(size + size // 8, np.uint8)
        self.bytes: Array = self._scratch.bytes[:size]
        self.bytes[PAD : size - PAD] = np.frombuffer(data, np.uint8)
        self.bytes[size - PAD :] = 0

    def specials(self) -> Index:
        """Where the chunk has a newline or "="; in slices, so that intermediate arrays stay in the cache."""
        slice_size = 1 << 16
        newlines, equals = np.empty(slice_size, bool), np.empty(slice_size, bool)
        places = [np.zeros(0, np.int64)]
        for start in range(PAD, len(self.bytes) - PAD, slice_size):
            piece = self.bytes[start : min(start + slice_size, len(self.bytes) - PAD)]
            n = len(piece)
            np.equal(piece, ord("\n"), out=newlines[:n])
            np.equal(piece, ord("="), out=equals[:n])
            places.append(np.flatnonzero(np.logical_or(newlines[:n], equals[:n], out=newlines[:n])) + start)
        return np.concatenate(places)

    def records(self, places: Index, size: int) -> Array:
        """`size` bytes from each place on, one row each."""
        every = np.ndarray((len(self.bytes) - size + 1,), np.dtype(f"V{size}"), self.bytes, strides=(1,))
        return every[places].view(np.uint8).reshape(len(places), size)

    def ends_with(self, ends: Index, text: bytes) -> Mask:
        """Whether each of the texts before the ends is this one."""
        size = (len(text) + 7) // 8 * 8
        words = self.records(ends - size, size).view("<u8")
        want = np.frombuffer(text.rjust(size, b"\0"), "<u8")
        differs = (words[:, 0] ^ want[0]) & LAST[(len(text) - 1) % 8 + 1]
        for place in range(1, size // 8):
            differs |= words[:, place] ^ want[place]
        return np.asarray(differs == 0)

    def load(self, places: Index) -> Words:
        """The eight characters from each place on, the first in the lowest byte."""
        return np.asarray(self.records(places, 8).view("<u8")[:, 0])


class Lines(NamedTuple):
    """Some lines of one kind: rows, starts, and the places of variable fields' '=' signs and the newline."""

    rows: Index
    starts: Index
    places: list[Index]

    def select(self, chosen: Mask | slice) -> Lines:
        return Lines(self.rows[chosen], self.starts[chosen], [place[chosen] for place in self.places])


class LineShape(NamedTuple):
    """Where the fields of a head stand, from the start of a line to the '=' before its first variable field.

    Fields are (start, end). pid and sec include the spaces that pad them.
    """

    width: int
    comm: tuple[int, int]
    pid: tuple[int, int]
    cpu: tuple[int, int]
    flags: tuple[int, int]
    sec: tuple[int, int]
    frac: tuple[int, int]
    addr: tuple[int, int]
    pid_is_left: bool
    text: bytes

    def variable(self) -> tuple[tuple[int, int], ...]:
        return self.comm, self.pid, self.cpu, self.flags, self.sec, self.frac, self.addr


_BODIES = {ALLOC: (ALLOC_EVENT, ALLOC_BODY), FREE: (FREE_EVENT, FREE_BODY)}


def learn(line: bytes, dialect: Dialect, kind: str) -> LineShape | None:
    """The shape of a line, if it is of this kind, as the grammar says, and not unusual."""
    event, grammar = _BODIES[kind]
    head = dialect.head.fullmatch(line)
    if head is None or head["event"] != event:
        return None
    if any(head[name] is None for name in ("comm", "pid", "cpu", "frac")):
        return None
    body = grammar.fullmatch(head["body"])
    comm_end = head.end("comm")
    if body is None or comm_end > 16:
        return None
    pid_start, pid_end = head.span("pid")
    if dialect.pid_is_left_justified:
        pid = pid_start, min(pid_end + _nr_spaces(line[pid_end:]), pid_start + 8)
    else:
        pid = max(comm_end, pid_end - 8), pid_end
    sec_start, sec_end = head.span("sec")
    if sec_end - sec_start < 8:  # room for more digits, which push spaces away
        sec_start = max(sec_start - _nr_spaces(line[sec_start - 1 :: -1]), sec_end - 8)
    flags = head.span("flags") if "flags" in head.groupdict() and head["flags"] else (0, 0)
    start = head.start("body")
    addr = start + body.start(1), start + body.end(1)
    return LineShape(
        width=start + body.start(2),
        comm=(0, comm_end),
        pid=pid,
        cpu=head.span("cpu"),
        flags=flags,
        sec=(sec_start, sec_end),
        frac=head.span("frac"),
        addr=addr,
        pid_is_left=dialect.pid_is_left_justified,
        text=line[: start + body.start(2)],
    )


def _nr_spaces(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" "))


class Heads:
    """The heads of some lines as records, with 16 bytes before them; `good` says which are right so far."""

    LEAD = 16

    def __init__(self, text: Text, starts: Index, shape: LineShape) -> None:
        size = self.LEAD + (shape.width + 7) // 8 * 8
        self.bytes = text.records(starts - self.LEAD, size)
        mask = bytearray(b"\0" * self.LEAD + b"\xff" * shape.width).ljust(size, b"\0")
        for start, end in shape.variable():
            mask[self.LEAD + start : self.LEAD + end] = bytes(end - start)
        want = np.frombuffer(bytes(self.LEAD) + shape.text.ljust(size - self.LEAD, b"\0"), "<u8")
        masks = np.frombuffer(bytes(mask), "<u8")
        words = self.bytes.view("<u8")
        differs = np.zeros(len(starts), np.uint64)
        for place in np.flatnonzero(masks).tolist():
            differs |= (words[:, place] ^ want[place]) & masks[place]
        self.constant: Mask = differs == 0
        self.good: Mask = np.ones(len(starts), bool)

    def keep(self, chosen: Mask) -> None:
        self.bytes = self.bytes[chosen]
        self.good = self.good[chosen]

    def require(self, condition: Mask) -> None:
        self.good &= condition

    def word(self, end: int, at: int = 8) -> Words:
        """The eight characters `at` before end."""
        nr, size = self.bytes.shape
        return np.ndarray((nr,), "<u8", self.bytes, self.LEAD + end - at, (size,)).copy()

    def decimal(self, field: tuple[int, int]) -> Words:
        """A number of 1 to 20 digits that fills its field."""
        start, end = field
        value = self._digits(end, end - start)
        if end - start > 8:
            value += self._digits(end - 8, end - start - 8) * U(10**8)
        if end - start > 16:
            highest = self._digits(end - 16, end - start - 16)  # 1844 and more may not fit 64 bits
            self.require((highest < 1844) | ((highest == 1844) & (value <= U(6744073709551615))))
            value += highest * U(10**16)
        return value

    def _digits(self, end: int, length: int) -> Words:
        digits = (self.word(end) ^ _ZEROS) & LAST[min(length, 8)]
        self.require(((digits + _NOT_A_DIGIT) | digits) & _HIGH_BITS == 0)
        return _digits_to_number(digits)

    def hexadecimal(self, field: tuple[int, int]) -> Words:
        """A number of 1 to 16 digits 0-9a-f that fills its field."""
        start, end = field
        value = self._hex_digits(end, end - start)
        if end - start > 8:
            value |= self._hex_digits(end - 8, end - start - 8) << U(32)
        return value

    def _hex_digits(self, end: int, length: int) -> Words:
        mask = LAST[min(length, 8)]
        chars = (self.word(end) & mask) | (_ZEROS & ~mask)
        letters = (chars >> U(6)) & _ONES
        values = (chars - letters * U(0x27)) ^ _ZEROS
        wrong = ((((values + _SIXES) >> U(4)) & _ONES) ^ letters) | (values & _HIGH_NIBBLES)
        self.require(wrong == 0)
        pairs = ((values << U(4)) | (values >> U(8))) & _PAIRS
        fours = ((pairs << U(8)) | (pairs >> U(16))) & _FOURS
        return np.asarray(((fours << U(16)) | (fours >> U(32))) & _EIGHTS)

    def left_justified(self, field: tuple[int, int]) -> Words:
        """A number, then at least one space, in a field of at most 8 characters."""
        start, end = field
        width = end - start
        chars = self.word(start, at=0)
        odd = _not_digits(chars) | (_HIGH_BITS & ~_FIRST[width])
        for shift in (8, 16, 32):  # every character after the first odd one is odd
            odd |= odd << U(shift)
        length = _count_bytes(~odd)
        self.require((length > 0) & (length < width))
        self.require((chars ^ _BLANKS) & _FIRST[width] & ~_FIRST[length] == 0)
        digits = ((chars ^ _ZEROS) & _FIRST[length]) << _SHIFTS[length]
        return _digits_to_number(digits)

    def right_justified(self, field: tuple[int, int]) -> Words:
        """At least one space, then a number, in a field of at most 8 characters."""
        start, end = field
        width = end - start
        chars = self.word(end)
        odd = _not_digits(chars) | (_HIGH_BITS & ~LAST[width])
        for shift in (8, 16, 32):  # every character before the last odd one is odd
            odd |= odd >> U(shift)
        length = _count_bytes(~odd)
        self.require((length > 0) & (length < width))
        self.require((chars ^ _BLANKS) & LAST[width] & ~LAST[length] == 0)
        return _digits_to_number((chars ^ _ZEROS) & LAST[length])

    def without_spaces(self, field: tuple[int, int]) -> None:
        start, end = field
        differs = (self.word(start, at=0) ^ _BLANKS) | ~_FIRST[end - start]
        self.require((differs - _ONES) & ~differs & _HIGH_BITS == 0)


_SHIFTS = np.array([0, *(8 * (8 - n) for n in range(1, 9))], np.uint64)


def _digits_to_number(digits: Words) -> Words:
    """Eight digits (values, not characters; first in the lowest byte) to a number."""
    pairs = (digits * U(10) + (digits >> U(8))) & _PAIRS
    fours = (pairs * U(100) + (pairs >> U(16))) & _FOURS
    return np.asarray((fours * U(10000) + (fours >> U(32))) & _EIGHTS)


def _not_digits(chars: Words) -> Words:
    """The high bit of every byte that is no digit. A byte after a non-ASCII one may be called odd wrongly."""
    values = chars ^ _ZEROS
    return np.asarray(((values + _NOT_A_DIGIT) | values) & _HIGH_BITS)


def _count_bytes(words: Words) -> Index:
    """How many bytes of each word have their high bit set."""
    return np.asarray((((words & _HIGH_BITS) >> U(7)) * _ONES) >> U(56)).view(np.int64)


class Fields:
    """Fields whose places differ from line to line."""

    def __init__(self, text: Text, heads: Heads) -> None:
        self.text = text
        self.require = heads.require

    def decimal(self, start: Index, end: Index) -> Words:
        """Numbers of 1 to 19 digits between start and end."""
        length = end - start
        self.require((length > 0) & (length <= 19))
        value = np.zeros(len(end), np.uint64)
        most = int(length.max(initial=0))
        for skip in range(0, min(most, 19), 8):
            mask = LAST[np.minimum(np.maximum(length - skip, 0), 8)]
            digits = (self.text.load(end - skip - 8) ^ _ZEROS) & mask
            self.require(((digits + _NOT_A_DIGIT) | digits) & _HIGH_BITS == 0)
            value += _digits_to_number(digits) * U(10**skip)
        return value

    def repeated(
        self, start: Index, end: Index, grammar: re.Pattern[bytes], bases: tuple[int, ...]
    ) -> list[Words]:
        """The groups of `grammar`, as numbers, in texts between start and end of which most are equal.

        Each different text is looked for once in all lines; lines with none of the first few are not taken.
        """
        values = [np.zeros(len(end), np.uint64) for _ in bases]
        rest = np.arange(len(end))
        for _ in range(DIFFERENT_TEXTS_MAX):
            if len(rest) == 0:
                return values
            text = self.text.bytes[start[rest[0]] : end[rest[0]]].tobytes()
            matched = grammar.fullmatch(text)
            if matched is None or len(text) > LONGEST_REPEATED:
                break
            same = (end[rest] - start[rest] == len(text)) & self.text.ends_with(end[rest], text)
            rows, rest = rest[same], rest[~same]
            for column, group, base in zip(values, matched.groups(), bases, strict=True):
                column[rows] = int(group, base) & U64_MAX
        taken = np.ones(len(end), bool)
        taken[rest] = False
        self.require(taken)
        return values
