# SPDX-License-Identifier: MIT
"""What a result of the core means to a user: its error class and its text, one row for each.

A result is 0 or more, or a negative errno, as vmalloc.h lists them. Some calls give a number a meaning of
their own; their rows bear their name. A row for 0 holds for whatever else comes from the system.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NamedTuple

from vmalloc.errors import (
    NotAllocated,
    OutOfPages,
    RegionBusy,
    RegionCorrupt,
    RegionUnavailable,
    StaleReference,
)
from vmalloc.facts import LEASES_MAX, NAME_META_BYTES_MAX, NAMES_MAX
from vmalloc.log import ERROR, INFO, WARNING, log

__all__ = ["RESULTS", "Meaning", "error_of", "log_refusal", "meaning_of", "shortage_error", "size_text"]


class Meaning(NamedTuple):
    """`text` may name what `error_of` is given, and `{system}`, the system's text for the number."""

    error: type[Exception]
    text: str


#: (name of the call, "" for all that have no row of their own; number of errno, 0 for all others)
RESULTS: dict[tuple[str, int], Meaning] = {
    ("", errno.ENOSPC): Meaning(OutOfPages, "{room}"),
    ("", errno.ENOENT): Meaning(
        NotAllocated, "{what}: no live range starts there; it was freed already or never allocated"
    ),
    ("", errno.ESTALE): Meaning(
        StaleReference, "{what}: the range was freed, and its pages may hold another allocation now"
    ),
    ("", errno.EBUSY): Meaning(
        RegionBusy,
        "{what}: process {pid} holds a lock of the region and does not run (stopped?); "
        "waited {timeout_s:g} s. Continue or kill it, or raise lock_timeout_s",
    ),
    ("", errno.EUCLEAN): Meaning(
        RegionCorrupt,
        "{what}: the region's words do not parse; it takes no more changes. "
        "check(repair=True) tells what can be mended",
    ),
    ("", errno.EOWNERDEAD): Meaning(
        RegionUnavailable, "{what}: this mapping was inherited by a raw clone(); attach anew"
    ),
    ("", errno.ENOLCK): Meaning(
        RegionUnavailable,
        "{what}: all {processes} process slots of the region are taken; Region(max_processes=) sets how many"
        "; or this process was forked where no descriptor was left, or without /proc",
    ),
    ("", errno.EROFS): Meaning(
        RegionUnavailable,
        "{what}: the region was attached read-only; attach it without readonly=True to change it or to hold "
        "what is in it",
    ),
    ("", errno.ENOTCONN): Meaning(
        RegionUnavailable,
        "{what}: this process lost its slot in the region, for another took it for dead. What it held may be "
        "another's now: drop it, and attach anew",
    ),
    ("", errno.EBADF): Meaning(
        RegionUnavailable,
        "{what}: the program closed the region's descriptor, and no other process has one to open it by",
    ),
    ("", errno.EINVAL): Meaning(ValueError, "{what}: argument out of range"),
    ("", errno.EXFULL): Meaning(
        OutOfPages,
        f"{{what}}: all {LEASES_MAX} leases of the region are taken, one by each Ref, and by each range in "
        "each message that is not loaded yet; load or drop some, or call expire_leases()",
    ),
    ("", errno.ENFILE): Meaning(
        OutOfPages, f"{{what}}: all {NAMES_MAX} names of the region are taken; delete some"
    ),
    ("", errno.EDQUOT): Meaning(OutOfPages, "{room}"),
    ("", errno.ENOMEM): Meaning(
        OutOfPages, "{what}: the process itself is out of memory, or of address space (ulimit -v)"
    ),
    ("", 0): Meaning(RegionUnavailable, "{what}: {system}"),
    ("create", errno.EINVAL): Meaning(ValueError, "{what}: an option is out of range"),
    ("create", errno.ENOMEM): Meaning(
        RegionUnavailable, "{what}: {system}; raise ulimit -v, or make a smaller one"
    ),
    ("create", errno.EFBIG): Meaning(
        RegionUnavailable, "{what}: {system}; raise ulimit -f, or make a smaller one"
    ),
    ("create", errno.EMFILE): Meaning(RegionUnavailable, "{what}: {system}; raise ulimit -n"),
    ("create", errno.ENOENT): Meaning(
        RegionUnavailable, "{what}: it cannot be opened through /proc/self/fd; is /proc mounted?"
    ),
    ("create", 0): Meaning(RegionUnavailable, "{what}: {system}"),
    ("attach", errno.ENOEXEC): Meaning(RegionUnavailable, "{what} is no vmalloc region"),
    ("attach", errno.EPROTO): Meaning(
        RegionUnavailable,
        "{what} is a region of another format or page size: {versions}",
    ),
    ("attach", errno.EUCLEAN): Meaning(
        RegionUnavailable, "{what} is a region whose header is damaged or truncated"
    ),
    ("attach", errno.ENOLCK): Meaning(
        RegionUnavailable,
        "{what} has all {processes} process slots taken; Region(max_processes=) sets how many",
    ),
    ("attach", errno.EACCES): Meaning(
        RegionUnavailable, "{what} is another user's region; only that user and root may attach it"
    ),
    ("attach", errno.ENOENT): Meaning(
        RegionUnavailable, "{what} cannot be opened again through /proc/self/fd; is /proc mounted?"
    ),
    ("attach", errno.ENOMEM): Meaning(RegionUnavailable, "{what} {system}; raise ulimit -v"),
    ("attach", 0): Meaning(RegionUnavailable, "{what} {system}"),
    ("set name", errno.EINVAL): Meaning(
        ValueError,
        "the description of {name!r} is too long to keep ({nbytes} bytes;"
        f" at most {NAME_META_BYTES_MAX})",
    ),
    ("set name", errno.EEXIST): Meaning(FileExistsError, "the region has the name {name!r} already"),
    ("find name", errno.ENOENT): Meaning(KeyError, "{name}"),
}


def meaning_of(code: int, call: str = "") -> Meaning:
    """The row for an errno: the call's own before the common one, the number's before that for 0."""
    for key in ((call, code), (call, 0), ("", code)):
        if key in RESULTS:
            return RESULTS[key]
    return RESULTS["", 0]


def error_of(code: int, call: str = "", **told: object) -> Exception:
    """The error to raise for an errno; `told` are the words and numbers that its text names."""
    error, text = meaning_of(code, call)
    message = text.format(system=os.strerror(code), **told)
    return error(code, message) if error in (RegionUnavailable, FileExistsError) else error(message)


#: What a program cannot have caused by a mistake of its own.
_REFUSALS: dict[type[Exception], int] = {
    OutOfPages: INFO,
    RegionUnavailable: INFO,
    RegionBusy: WARNING,
    RegionCorrupt: ERROR,
}


def log_refusal(error: Exception) -> Exception:
    """`error`, which is about to be raised; a line of the log, unless a send finds another way."""
    level = _REFUSALS.get(type(error))
    full = sys.modules.get("vmalloc.full")  # to import it now may fail
    if level is not None and not (level == INFO and full is not None and full.is_sending()):
        log(level, "%s: %s", type(error).__name__, error)
    return error


def size_text(nbytes: float) -> str:
    """1536 as "1.5 KiB"; powers of 1024, four digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


#: By vm_cause of vmalloc_types.h: its name, why, what to free, and what else helps.
_CAUSES = (
    ("space", "no run of free pages is long enough", "Free something", "make a larger region"),
    ("limit", "the region's limit is {limit}", "Free something", "raise region.limit"),
    ("quota", "a process's quota is {quota}", "Free something in this process", "raise region.quota"),
    (
        "memory",
        "the machine's memory has room for {room} in this region",
        "Free something, here or elsewhere",
        "",
    ),
    ("cgroup", "the memory cgroup has room for {room} in this region", "Free something", "raise its limit"),
)


def _remedy(cause: int, nr_pages: int, total: int, limit: int, quota: int) -> str:
    """Advice that can be followed: of a request above a bound no free brings it below."""
    name, _, free, otherwise = _CAUSES[cause]
    if nr_pages > total:
        return "The region is smaller than that: make a larger one"
    if nr_pages > {"limit": limit, "quota": quota}.get(name, nr_pages):
        return otherwise.capitalize()
    return f"{free}, or {otherwise}" if otherwise else free


def shortage_error(
    granule: int,
    nr_pages: int,
    total: int,
    free: int,
    largest: int,
    busy: int,
    lazy: int,
    headroom: int,
    limit: int,
    quota: int,
    cause: int,
    holders: list[tuple[int, int, int]],
    limited_by: str = "",
) -> OutOfPages:
    """OutOfPages for a request of `nr_pages`; counts in pages of `granule` bytes."""
    name, why, *_ = _CAUSES[cause]
    remedy = _remedy(cause, nr_pages, total, limit, quota)
    sizes = {
        "limit": size_text(limit * granule),
        "quota": size_text(quota * granule),
        "room": size_text(headroom * granule),
    }
    most = ", ".join(f"pid {pid} {size_text(nbytes)}" for _, pid, nbytes in holders[:3])
    error = OutOfPages(
        f"{nr_pages} pages requested ({size_text(nr_pages * granule)}); {free} of {total} free, "
        f"largest run {largest}, {busy} busy, {lazy} lazy; {why.format(**sizes)}. "
        f"{f'Most is held by {most}. ' if most else ''}"
        f"{f'The region is no larger because of {limited_by}. ' if limited_by else ''}{remedy}."
    )
    error.cause = name
    error.requested, error.free, error.largest = nr_pages * granule, free * granule, largest * granule
    error.lazy = lazy * granule
    error.limit, error.quota = limit * granule or None, quota * granule or None
    error.holders = tuple((pid, nbytes) for _, pid, nbytes in holders)
    return error
