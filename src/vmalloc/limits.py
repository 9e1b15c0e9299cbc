# SPDX-License-Identifier: MIT
"""Limits: how large a region may be that nobody gave a size, and what keeps it from being larger."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from vmalloc._core import cgroup_limit
from vmalloc.facts import ADDRESS_SPACE_SHARE, SMALLEST_DEFAULT_BYTES

__all__ = ["is_short_of_addresses", "room_for_a_region"]


def room_for_a_region() -> tuple[int, str]:
    """Bytes, and what limits them: "" if that is the machine's memory."""
    page = os.sysconf("SC_PAGESIZE")
    room, limited_by = os.sysconf("SC_PHYS_PAGES") * page, ""
    for nbytes, what in (_of_cgroup(), _of_address_space(), _of_file_size()):
        if nbytes is not None and nbytes < room:
            room, limited_by = max(nbytes, SMALLEST_DEFAULT_BYTES), what
    return room // page * page, limited_by


def _mib(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB"


def _of_address_space() -> tuple[int | None, str]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None, ""
    what = f"RLIMIT_AS, which lets this process have {_mib(limit)} of addresses (ulimit -v)"
    return max(limit - _mapped_bytes(), 0) // ADDRESS_SPACE_SHARE, what


def is_short_of_addresses() -> bool:
    """Whether RLIMIT_AS leaves this process less than a quarter of what it allows."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and _mapped_bytes() > limit // 4 * 3


def _mapped_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def _of_file_size() -> tuple[int | None, str]:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return None, ""
    return limit // 2, f"RLIMIT_FSIZE, {_mib(limit)} (ulimit -f)"


def _of_cgroup() -> tuple[int | None, str]:
    limit = cgroup_limit()
    return (None, "") if limit is None else (limit, f"the memory cgroup's limit, {_mib(limit)}")
