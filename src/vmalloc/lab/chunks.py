# SPDX-License-Identifier: MIT
"""Chunks of lines to numpy columns: what lines.py does, for many lines at once.

A recording repeats itself: nearly all lines have the same characters in the same places and differ in a few
numbers. So a line that lines.py understands is taken as a pattern for the others:

1. One pass over a chunk finds every newline and '=' (`Text.specials`). Counted from the end of a line, '='
   signs give the places of the variable fields, and the key before one tells an allocation from a free.
2. The first line of a kind goes through the grammar, which gives a `LineShape`: where each field of the head
   stands, and which characters are constant. The heads of all lines of the same width are compared with it,
   eight characters at a time; those that differ wait for another shape (a dozen are enough for any real
   file).
3. The fields are read for all lines at once, and every character of them is checked (line_shape.py).
4. What is left (comments, markers, losses, purges, other events, damage, rare shapes) goes to
   `lines.parse_line`.
5. Both kinds of rows are put together in file order and checked for trouble as `Reading.check` does.

tests/lab/test_trace_chunks.py holds this equal to lines.py, on damaged lines too.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vmalloc.lab.columns import DTYPES, NAMED, Array, Columns, Mask, Names
from vmalloc.lab.dialect import Dialect
from vmalloc.lab.events import ALLOC, FREE, KERNEL_KINDS, LOST, PAGE_SIZE_MIN
from vmalloc.lab.line_shape import LAST, PAD, Fields, Heads, Index, Lines, LineShape, Text, U, Words, learn
from vmalloc.lab.lines import NARROW_END, Reading, parse_line, plain

SHAPES_MAX = 32  # tried for each kind and chunk; what is left is read line by line


def parse_chunks(chunks: Iterable[bytes], reading: Reading, threads: int | None = None) -> Iterator[Columns]:
    """The tables of all chunks, in file order. Only what does not depend on order runs in threads."""
    threads = min(os.cpu_count() or 1, 4) if threads is None else threads
    names = Names()
    chunks = map(plain, chunks)
    if threads <= 1:
        for data in chunks:
            yield _finish_chunk(data, _cut_up(data, reading.dialect), reading, names)
        return
    with ThreadPoolExecutor(threads, "vmalloc-trace") as pool:
        waiting: deque[tuple[bytes, Future[_Cut]]] = deque()
        for data in chunks:
            waiting.append((data, pool.submit(_cut_up, data, reading.dialect)))
            if len(waiting) > threads + 1:
                done, cut = waiting.popleft()
                yield _finish_chunk(done, cut.result(), reading, names)
        while waiting:
            done, cut = waiting.popleft()
            yield _finish_chunk(done, cut.result(), reading, names)


def _writable(columns: dict[str, Array], name: str) -> Array:
    """A column to write to. Columns begin as one zero repeated: a column never written takes no memory."""
    column = columns[name]
    if column.strides == (0,):
        column = columns[name] = np.zeros(len(column), column.dtype)
    return column


class _Cut(NamedTuple):
    """A chunk cut up: a row for each line; `taken` says which rows are filled, the other lines are `left`."""

    columns: dict[str, Array]
    comm_words: tuple[Words, Words]
    taken: Mask
    left: list[tuple[int, int, int]]  # row, start and end of the line in the chunk, without its newline


def _cut_up(data: bytes, dialect: Dialect) -> _Cut:
    """Steps 1 to 3."""
    text = Text(data)
    specials = text.specials()
    chars = text.bytes[specials]
    newlines = np.flatnonzero(chars == ord("\n"))
    ends = specials[newlines]
    tail = int(ends[-1]) + 1 if len(ends) else PAD
    nr_lines = len(ends) + (tail < PAD + len(data))
    starts = np.concatenate([[PAD], ends + 1])[: len(ends)]
    columns = {name: np.broadcast_to(np.dtype(dtype).type(0), nr_lines) for name, dtype in DTYPES.items()}
    comm_words = np.zeros(nr_lines, np.uint64), np.zeros(nr_lines, np.uint64)
    cut = _Cut(columns, comm_words, np.zeros(nr_lines, bool), [])
    # Shapes end before the fifth '=' from the end of an allocation, before the second of a free. What stands
    # there tells the kinds apart, and from other events; the rest of the line is compared with the shape.
    for kind, nr_variable, key in ((ALLOC, 5, b" size="), (FREE, 2, b"nr_lazy=")):
        rows = np.flatnonzero(newlines >= nr_variable)
        rows = rows[text.ends_with(specials[newlines[rows] - nr_variable] + 1, key)]
        places = [specials[newlines[rows] - n] for n in range(nr_variable, -1, -1)]
        _take(cut, text, dialect, kind, Lines(rows, starts[rows], places))
    for row in np.flatnonzero(~cut.taken[: len(ends)]).tolist():
        cut.left.append((row, int(starts[row]) - PAD, int(ends[row]) - PAD))
    if nr_lines > len(ends):
        cut.left.append((len(ends), tail - PAD, len(data)))
    return cut


def _finish_chunk(data: bytes, cut: _Cut, reading: Reading, names: Names) -> Columns:
    """Steps 4 and 5: the lines left over, and the checks."""
    columns, taken = cut.columns, cut.taken
    reading.nr_entries += int(taken.sum())
    first_line = reading.nr_lines + 1
    reading.nr_lines += len(taken)
    whole = data.endswith(b"\n")
    columns["comm"] = _comm_codes(cut.comm_words, names)
    columns["line"] = np.arange(first_line, first_line + len(taken), dtype=DTYPES["line"])
    for row, start, end in cut.left:
        is_cut = not whole and row == len(taken) - 1
        event = parse_line(data[start:end], first_line + row, reading, cut=is_cut)
        if event is not None:
            taken[row] = True
            for name, value in zip(DTYPES, event, strict=True):
                if value:
                    _writable(columns, name)[row] = names.code(str(value)) if name in NAMED else value
    if not taken.all():
        columns = {
            name: column[: taken.sum()] if column.strides == (0,) else column[taken]
            for name, column in columns.items()
        }
    table = Columns(columns, names)
    _check(table, reading)
    return table


def _check(table: Columns, reading: Reading) -> None:
    """What Reading.check does, for a table."""
    nr_rows = table.nr_rows
    reading.nr_events += nr_rows
    if nr_rows == 0:
        return
    time_ns, cpu, line = table["time_ns"], table["cpu"], table["line"]
    untimed = table.is_kind(LOST) & (time_ns == 0)
    if untimed.any():
        latest = np.maximum.accumulate(np.where(untimed, -1, np.arange(nr_rows)))
        table["time_ns"] = time_ns = np.where(untimed & (latest < 0), reading.last_time_ns, time_ns[latest])
    timed = ~untimed
    _check_clock(time_ns[timed], cpu[timed], line[timed], reading)
    problems = reading.problems
    is_alloc = table.is_kind(ALLOC)
    reading.nr_allocs += int(is_alloc.sum())
    reading.nr_frees += int(table.is_kind(FREE).sum())
    narrow = is_alloc & (table["vend"] < NARROW_END)
    if narrow.any():
        first = int(np.argmax(narrow))
        problems.narrow(int(line[first]), int(table["vend"][first]), int(narrow.sum()))
    addr = table["addr"]
    placed = (is_alloc | table.is_kind(FREE)) & (table["failed"] == 0)
    hidden = placed & ((addr % PAGE_SIZE_MIN != 0) | (addr == 0))
    if hidden.any():
        first = int(np.argmax(hidden))
        problems.hidden(int(line[first]), int(addr[first]), int(hidden.sum()))


def _check_clock(time_ns: Array, cpu: Array, line: Array, reading: Reading) -> None:
    if len(time_ns) == 0:
        return
    last = reading.last_on_cpu
    backwards: list[tuple[int, int, int]] = []
    in_order = bool((time_ns[1:] >= time_ns[:-1]).all())
    if in_order and time_ns[0] >= max(last.values(), default=0):
        for one, place in zip(*_last_of_each(cpu), strict=True):
            last[int(one)] = int(time_ns[place])
    else:
        for one in np.unique(cpu).tolist():
            on_cpu = np.flatnonzero(cpu == one)
            times = np.concatenate([[last.get(one, 0)], time_ns[on_cpu]])
            wrong = np.flatnonzero(times[1:] < times[:-1])
            if len(wrong):
                backwards.append((int(line[on_cpu[wrong[0]]]), one, len(wrong)))
            last[one] = int(times[-1])
    for first, one, count in sorted(backwards):
        reading.problems.backwards(first, one, count)
    reading.last_time_ns = int(time_ns[-1])


def _last_of_each(values: Array) -> tuple[Array, Array]:
    """The distinct values and where each stands last."""
    distinct, from_end = np.unique(values[::-1], return_index=True)
    return distinct, len(values) - 1 - from_end


def _take(cut: _Cut, text: Text, dialect: Dialect, kind: str, lines: Lines) -> None:
    """Fill the rows of all lines that have one of the first SHAPES_MAX shapes met."""
    for _ in range(SHAPES_MAX):
        if len(lines.rows) == 0:
            return
        start, end = int(lines.starts[0]), int(lines.places[-1][0])
        shape = learn(text.bytes[start:end].tobytes(), dialect, kind)
        if shape is None:
            lines = lines.select(slice(1, None))
            continue
        alike = np.asarray(lines.places[0] - lines.starts == shape.width - 1)
        candidates = lines.select(alike)
        if not alike[0]:  # a stray '=' where the guess did not expect one
            lines = lines.select(slice(1, None))
            continue
        heads = Heads(text, candidates.starts, shape)
        if heads.constant.all():
            lines = lines.select(~alike)
        else:
            alike[alike] = heads.constant
            alike[0] = True
            lines, candidates = lines.select(~alike), candidates.select(heads.constant)
            heads.keep(heads.constant)
        values = _head(heads, shape, kind)
        read_body = _alloc_body if kind == ALLOC else _free_body
        values |= read_body(Fields(text, heads), candidates)
        _fill(cut, kind, candidates.rows, heads, shape, values)


def _fill(
    cut: _Cut, kind: str, rows: Index, heads: Heads, shape: LineShape, values: dict[str, Array]
) -> None:
    comm = [heads.word(shape.comm[1], at=8), heads.word(shape.comm[1], at=16)]
    length = shape.comm[1]
    comm = [comm[0] & LAST[min(length, 8)], comm[1] & LAST[max(length - 8, 0)]]
    good = heads.good
    if not good.all():
        rows, comm = rows[good], [word[good] for word in comm]
        values = {name: value[good] for name, value in values.items()}
    for name, value in values.items():
        _writable(cut.columns, name)[rows] = value
    _writable(cut.columns, "kind")[rows] = KERNEL_KINDS.index(kind) + 1  # as Names numbers them
    cut.comm_words[0][rows], cut.comm_words[1][rows] = comm
    cut.taken[rows] = True


def _head(heads: Heads, shape: LineShape, kind: str) -> dict[str, Array]:
    pid = heads.left_justified(shape.pid) if shape.pid_is_left else heads.right_justified(shape.pid)
    is_padded = shape.text[shape.sec[0]] == ord(" ")
    seconds = heads.right_justified(shape.sec) if is_padded else heads.decimal(shape.sec)
    if shape.flags != (0, 0):
        heads.without_spaces(shape.flags)
    nr_decimals = shape.frac[1] - shape.frac[0]
    return {
        "pid": pid,
        "cpu": heads.decimal(shape.cpu),
        "time_ns": seconds * U(10**9) + heads.decimal(shape.frac) * U(10 ** (9 - nr_decimals)),
        "addr": heads.decimal(shape.addr) if kind == ALLOC else heads.hexadecimal(shape.addr),
    }


# Ends of lines that are the same in most lines, as in dialect.ALLOC_BODY and FREE_BODY.
_WINDOW = re.compile(rb" vstart=0x([0-9a-f]{1,16}) vend=0x([0-9a-f]{1,16}) failed=(-?\d{1,9})")
_LIMIT = re.compile(rb" nr_lazy_max=(\d{1,19})")


def _alloc_body(fields: Fields, lines: Lines) -> dict[str, Array]:
    size, align, vstart, _vend, _failed, end = lines.places
    window = vstart - len(b" vstart")
    window_start, window_end, failed = fields.repeated(window, end, _WINDOW, (16, 16, 10))
    fields.require(fields.text.ends_with(align, b" align"))
    return {
        "size": fields.decimal(size + 1, align - len(b" align")),
        "align": fields.decimal(align + 1, window),
        "vstart": window_start.view(np.uint64),
        "vend": window_end.view(np.uint64),
        "failed": failed.view(np.int64),
    }


def _free_body(fields: Fields, lines: Lines) -> dict[str, Array]:
    nr_lazy, nr_lazy_max, end = lines.places
    limit = nr_lazy_max - len(b" nr_lazy_max")
    (most,) = fields.repeated(limit, end, _LIMIT, (10,))
    return {"nr_lazy": fields.decimal(nr_lazy + 1, limit), "nr_lazy_max": most}


_MIX, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def _comm_codes(words: tuple[Words, Words], names: Names) -> Array:
    """The codes of comms, given as their last 8 characters and those before."""
    last, before = words
    if len(last) == 0:
        return np.zeros(0, DTYPES["comm"])
    changes = np.ones(len(last), bool)
    changes[1:] = (last[1:] != last[:-1]) | (before[1:] != before[:-1])
    heads = np.flatnonzero(changes)
    last, before = last[heads], before[heads]
    mixed = (before * _MIX) ^ ((last + (before >> U(29))) * _MIX2)
    _, examples, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    if not bool(((last[examples][inverse] == last) & (before[examples][inverse] == before)).all()):
        examples = inverse = np.arange(len(heads))  # two names mixed to the same number: one by one
    codes = np.empty(len(examples), DTYPES["comm"])
    for place in np.argsort(examples).tolist():  # names are numbered as they are met
        example = examples[place]
        comm = int(before[example]).to_bytes(8, "little") + int(last[example]).to_bytes(8, "little")
        codes[place] = names.code(comm.lstrip(b"\0").lstrip(b" ").decode("utf-8", "replace"))
    return np.asarray(codes[inverse[np.cumsum(changes) - 1]])
