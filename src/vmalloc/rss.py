# SPDX-License-Identifier: MIT
"""Resident: how much memory a process takes, where a region's pages count once.

What the system calls resident counts a shared page for every process that touched it, as long as it is
mapped, also after it was freed. So limits that look at it stop processes that hold nothing.
"""

from __future__ import annotations

import os
import re

from vmalloc._core import attached

__all__ = ["held", "resident"]

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")


def resident(pid: int | None = None) -> int:
    """Bytes of memory that this process, or `pid`, accounts for.

    Its resident memory without the pages of regions, and what it holds in the regions that are attached
    here: what several processes hold counts for one of them, what was freed for none. Takes a walk over
    the words, and the system one over the process's mappings. OSError if there is no such process, or it
    is another user's.
    """
    who = os.getpid() if pid is None else pid
    return _outside_regions(who) + held(who)


def held(pid: int) -> int:
    """Bytes that a process holds in the regions that are attached here, each for one of its holders."""
    nr = 0
    for region in attached.values():
        if not region.closed and region._info()["has_pages"]:
            nr += sum(nbytes for _, holder, nbytes in region._held_once() if holder == pid)
    return nr


def _outside_regions(pid: int) -> int:
    total, is_region = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if line.startswith("Rss:"):
                total += 0 if is_region else int(line.split()[1]) << 10
            elif (match := _MAPPING.match(line)) is not None:
                is_region = match[1].startswith("/memfd:vmalloc")
    return total
