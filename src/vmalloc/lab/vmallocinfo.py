# SPDX-License-Identifier: MIT
"""/proc/vmallocinfo as typed areas: what is mapped and what waits to be purged at one moment.

    0xffffc90000000000-0xffffc90000005000   20480 irq_init_percpu_irqstack+0xca/0x100 vmap
    0xffffc9000000c000-0xffffc90000011000   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4
    0xffffc90006b1c000-0xffffc90006b21000   20480 unpurged vm_area

Since 6.9 the kernel walks its nodes one after another, so the areas are in the file's order, not sorted; the
size includes the guard page. Ranges in pools are listed nowhere. With kptr_restrict 0 the kernel prints
hashed addresses (even to root) or (ptrval), with 2 zeros: `VmallocInfo.addresses` says which, and the sizes,
kinds and callers stay useful. After: Linux mm/vmalloc.c, vmalloc_info_show().
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar, overload

from vmalloc.lab.events import PAGE_SIZE_MIN, Problem, Problems, TraceError
from vmalloc.lab.files import StrPath, chunks, open_bytes

LINE = re.compile(rb"0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16}) +(\d{1,20})(?: +(.*))?")
HIDDEN = re.compile(rb"\((?:_*)ptrval(?:_*)\)")  # stands for an address before there is randomness to hash it
NODE_PAGES = re.compile(r"N(\d+)=(\d+)")
CALLER = re.compile(r"\S+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\S+\])?|0x[0-9a-f]+")

# Words of a line and the kind they make, in the order in which the kernel prints them; the first that is
# there wins.
KINDS = ("ioremap", "sparse", "vmalloc", "vmap", "dma-coherent")
FLAGS = ("user", "vpages")

Found = TypeVar("Found", bound=Sized)


@dataclass(frozen=True)
class Area:
    """One line. start and end are 0 when hidden, meaningless when hashed; size is in bytes."""

    start: int
    end: int
    size: int
    kind: str  # one of KINDS, vm_map_ram, unpurged, or "" if the kernel says nothing
    caller: str = ""
    pages: int = 0
    phys: int = 0
    flags: frozenset[str] = frozenset()
    node_pages: dict[int, int] = field(default_factory=dict, hash=False)
    line: int = 0

    @property
    def function(self) -> str:
        """The caller without its offset."""
        return self.caller.partition("+")[0]


class VmallocInfo(Sequence[Area]):
    """The areas of a snapshot, in the file's order, and what its addresses are worth."""

    def __init__(self, areas: list[Area], addresses: str, problems: list[Problem]) -> None:
        self.areas = areas
        self.addresses = addresses  # "real", "hashed" or "hidden"
        self.problems = problems

    def __len__(self) -> int:
        return len(self.areas)

    @overload
    def __getitem__(self, index: int) -> Area: ...
    @overload
    def __getitem__(self, index: slice) -> list[Area]: ...
    def __getitem__(self, index: int | slice) -> Area | list[Area]:
        return self.areas[index]

    def busy(self) -> list[Area]:
        """The areas in use, by address."""
        return sorted((area for area in self.areas if area.kind != "unpurged"), key=lambda area: area.start)

    def lazy(self) -> list[Area]:
        """The areas freed and not yet purged, by address."""
        return sorted((area for area in self.areas if area.kind == "unpurged"), key=lambda area: area.start)


def read_vmallocinfo(path: StrPath, *, problems: list[Problem] | None = None) -> VmallocInfo:
    """Read a snapshot, compressed or not. Raises TraceError if no line of it is one of /proc/vmallocinfo."""
    noted = Problems(problems)
    return _checked(path, noted, lambda text: parse_vmallocinfo(text, noted))


def _checked(path: StrPath, noted: Problems, parse: Callable[[bytes], Found]) -> Found:
    damage: list[str] = []
    with open_bytes(path) as stream:
        text = b"".join(chunks(stream, damage))
    found = parse(text)
    for what in damage:
        noted.note("compressed", text.count(b"\n"), what)
    if not found:
        raise TraceError(f"{path}: not /proc/vmallocinfo: {next(iter(noted), 'there is no area in it')}")
    noted.say(str(path))
    return found


def parse_vmallocinfo(text: bytes, problems: Problems | None = None) -> VmallocInfo:
    """The areas in a text as the kernel prints it; nothing is logged."""
    noted = Problems() if problems is None else problems
    areas = list(_areas(enumerate(text.splitlines(), 1), noted))
    _note_a_cut(text, noted)
    unreal = [(a.line, a.start, a.end, a.size) for a in areas if not _can_be_real(a)]
    return VmallocInfo(areas, _addresses(unreal, len(areas), noted), noted.noted)


def _note_a_cut(text: bytes, problems: Problems) -> None:
    if text and not text.endswith(b"\n"):
        problems.note(
            "cut", text.count(b"\n") + 1, "the file ends in the middle of a line: its last field may be short"
        )


def _areas(lines: Iterable[tuple[int, bytes]], problems: Problems) -> Iterator[Area]:
    for number, line in lines:
        if not line.strip():
            continue
        matched = LINE.fullmatch(HIDDEN.sub(b"0", line))
        if matched is None:
            text = line[:60].decode("utf-8", "replace")
            problems.note("grammar", number, f"not a line of /proc/vmallocinfo, skipped: {text!r}")
            continue
        start, end, size = int(matched[1], 16), int(matched[2], 16), int(matched[3])
        rest = (matched[4] or b"").decode("utf-8", "replace")
        try:
            area = _area(start, end, size, rest, number)
        except ValueError:  # a number that is none
            _note_damage(number, line, problems)
            area = Area(start, end, size, "", line=number)
        yield area


def _note_damage(number: int, line: bytes, problems: Problems) -> None:
    text = line[:60].decode("utf-8", "replace")
    problems.note("fields", number, f"a damaged or cut line, used without what it says last: {text!r}")


def _area(start: int, end: int, size: int, rest: str, number: int) -> Area:
    if rest == "vm_map_ram":
        return Area(start, end, size, "vm_map_ram", line=number)
    if rest == "unpurged vm_area":
        return Area(start, end, size, "unpurged", line=number)
    caller = CALLER.match(rest)
    words = rest[caller.end() :].split() if caller else rest.split()
    values = dict(word.split("=", 1) for word in words if "=" in word)
    return Area(
        start,
        end,
        size,
        kind=next((kind for kind in KINDS if kind in words), ""),
        caller=caller[0] if caller else "",
        pages=int(values.get("pages", 0)),
        phys=int(values.get("phys", "0"), 16),
        flags=frozenset(flag for flag in FLAGS if flag in words),
        node_pages={int(n): int(pages) for n, pages in NODE_PAGES.findall(rest)},
        line=number,
    )


def _can_be_real(area: Area) -> bool:
    """A real area starts on a page and is as long as its size says."""
    return area.end - area.start == area.size and area.start % PAGE_SIZE_MIN == 0


def _addresses(unreal: list[tuple[int, int, int, int]], nr_areas: int, problems: Problems) -> str:
    """What the addresses are, from (line, start, end, size) of those that cannot be real."""
    if not unreal:
        return "real"
    hidden = [line for line, start, end, _ in unreal if start == 0 == end]
    if hidden:
        what = "addresses are hidden (kptr_restrict 2, or no randomness yet): sizes and callers can be used, "
        problems.note("hidden", hidden[0], what + "places cannot", len(hidden))
        if 2 * len(hidden) > nr_areas:
            return "hidden"
    wrong = [(line, start, end, size) for line, start, end, size in unreal if end - start != size and end]
    if len(wrong) > nr_areas // 2:
        what = "addresses are hashed (kptr_restrict 0): sizes and callers can be used, places cannot"
        problems.note("hashed", wrong[0][0], what)
        return "hashed"
    for line, start, end, size in wrong:
        problems.note("size", line, f"size {size} is not end - start = {end - start}")
    return "real"


# ---- a summary, for snapshots of millions of lines ----


class Summary:
    """What a snapshot says in all: its areas by caller and kind, and where they lie."""

    def __init__(self, text: bytes, problems: Problems) -> None:
        from vmalloc._core import AreaTable

        # one end of lines, and digits for addresses that are hidden, as the table wants them
        plain = b"\n".join(text.splitlines()) if b"\r" in text else text
        self._table = AreaTable(HIDDEN.sub(b"0", plain) if b"ptrval" in plain else plain)
        self._odd = list(_areas(self._table.odd, problems))
        rests = zip(self._table.rests, self._table.first, strict=True)
        lines = cache(text.splitlines)  # split once, and only if one of them is damaged
        self._words = [self._say(rest, line, lines, problems) for rest, line in rests]
        _note_a_cut(text, problems)
        unreal = self._table.unreal(PAGE_SIZE_MIN)
        unreal += [(a.line, a.start, a.end, a.size) for a in self._odd if not _can_be_real(a)]
        self.addresses = _addresses(unreal, len(self), problems)

    @staticmethod
    def _say(rest: bytes, line: int, lines: Callable[[], list[bytes]], problems: Problems) -> tuple[str, str]:
        """Caller and kind in the words of a line, the first that has them."""
        try:
            area = _area(0, 0, 0, rest.decode("utf-8", "replace"), line)
        except ValueError:  # a number that is none
            _note_damage(line, lines()[line - 1], problems)
            return "", ""
        return area.function, area.kind

    def __len__(self) -> int:
        return len(self._table) + len(self._odd)

    def groups(self) -> list[tuple[str, str, int, int]]:
        """(caller, kind, areas, bytes), most bytes first."""
        counts: Counter[tuple[str, str]] = Counter()
        nbytes: Counter[tuple[str, str]] = Counter()
        for key, (nr, total) in zip(self._words, self._table.sums(), strict=True):
            counts[key] += nr
            nbytes[key] += total
        for area in self._odd:
            key = (area.function, area.kind)
            counts[key] += 1
            nbytes[key] += area.size
        return [(*key, counts[key], total) for key, total in nbytes.most_common()]

    def map(self, nr_parts: int) -> tuple[int, int, str]:
        """(start, end, a letter for each part between).

        '#' is busy for the most, '+' in part, '~' unpurged, '.' free.
        """
        start, end = self._table.bounds()
        part = max(-(-(end - start) // nr_parts), 1)
        kinds = [int(kind == "unpurged") for _, kind in self._words]
        shares = self._table.covered(start, part, nr_parts, [*kinds])
        busy, lazy = [*shares, [0] * nr_parts][:2]
        letters = (
            "#" if 2 * b >= part else "." if not b + z else "~" if z > b else "+"
            for b, z in zip(busy, lazy, strict=True)
        )
        return start, end, "".join(letters)


def summarize(path: StrPath) -> Summary:
    """A snapshot in all. TraceError as of read_vmallocinfo()."""
    noted = Problems(None)
    return _checked(path, noted, lambda text: Summary(text, noted))
