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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

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
    damage: list[str] = []
    with open_bytes(path) as stream:
        text = b"".join(chunks(stream, damage))
    noted = Problems(problems)
    info = parse_vmallocinfo(text, noted)
    for what in damage:
        noted.note("compressed", text.count(b"\n"), what)
    if not info and noted:
        raise TraceError(f"{path}: not /proc/vmallocinfo: {next(iter(noted))}")
    noted.say(str(path))
    return info


def parse_vmallocinfo(text: bytes, problems: Problems | None = None) -> VmallocInfo:
    """The areas in a text as the kernel prints it; nothing is logged."""
    noted = Problems() if problems is None else problems
    areas = list(_areas(text.splitlines(), noted))
    if text and not text.endswith(b"\n"):
        noted.note(
            "cut", text.count(b"\n") + 1, "the file ends in the middle of a line: its last field may be short"
        )
    return VmallocInfo(areas, _addresses(areas, noted), noted.noted)


def _areas(lines: list[bytes], problems: Problems) -> Iterator[Area]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        matched = LINE.fullmatch(HIDDEN.sub(b"0", line))
        text = line[:60].decode("utf-8", "replace")
        if matched is None:
            problems.note("grammar", number, f"not a line of /proc/vmallocinfo, skipped: {text!r}")
            continue
        start, end, size = int(matched[1], 16), int(matched[2], 16), int(matched[3])
        rest = (matched[4] or b"").decode("utf-8", "replace")
        try:
            area = _area(start, end, size, rest, number)
        except ValueError:  # a number that is none
            problems.note(
                "fields", number, f"a damaged or cut line, used without what it says last: {text!r}"
            )
            area = Area(start, end, size, "", line=number)
        yield area


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


def _addresses(areas: list[Area], problems: Problems) -> str:
    """What the addresses are: a real area starts on a page and is as long as its size says."""
    if all(area.end - area.start == area.size and area.start % PAGE_SIZE_MIN == 0 for area in areas):
        return "real"
    hidden = [area for area in areas if area.start == 0 == area.end]
    if hidden:
        what = "addresses are hidden (kptr_restrict 2, or no randomness yet): sizes and callers can be used, "
        problems.note("hidden", hidden[0].line, what + "places cannot", len(hidden))
        if 2 * len(hidden) > len(areas):
            return "hidden"
    wrong = [area for area in areas if area.end - area.start != area.size and area.end]
    if len(wrong) > len(areas) // 2:
        what = "addresses are hashed (kptr_restrict 0): sizes and callers can be used, places cannot"
        problems.note("hashed", wrong[0].line, what)
        return "hashed"
    for area in wrong:
        problems.note("size", area.line, f"size {area.size} is not end - start = {area.end - area.start}")
    return "real"
