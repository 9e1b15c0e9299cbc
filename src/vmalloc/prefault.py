# SPDX-License-Identifier: MIT
"""Memory in advance: prefault(), and what the system says to huge pages."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from typing import TYPE_CHECKING, Any

from vmalloc.facts import PREFAULT_PIECE_PAGES, PREFAULT_THREADS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmalloc._core import CoreRegion

__all__ = ["HUGE", "at_once", "huge_text", "prefault"]

HUGE = ("try", "never")
_SETTING = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
_GIVES = ("always", "within_size", "advise", "force")

Piece = tuple[int, int, int]  # page, pages, id


def prefault(region: CoreRegion, nbytes: int, threads: int | None) -> int:
    """What Region.prefault() does."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be positive, not {threads}")
    nr_threads = threads or min(len(os.sched_getaffinity(0)), PREFAULT_THREADS_MAX)
    granule = int(region._info()["granule"])
    wanted = -(-nbytes // granule)
    done, longest = 0, PREFAULT_PIECE_PAGES
    while done < wanted and longest:
        pieces, longest = _take(region, wanted - done, nr_threads, longest)
        try:
            at_once([(region._populate, page, nr_pages) for page, nr_pages, _ in pieces])
            region._keep_warm(sum(nr_pages for _, nr_pages, _ in pieces))
        finally:
            for page, _, id in pieces:
                region._free_range(page, id)
        done += sum(nr_pages for _, nr_pages, _ in pieces)
    return done * granule


def _take(region: CoreRegion, wanted: int, nr_threads: int, longest: int) -> tuple[list[Piece], int]:
    """A piece for each thread, fewer at the end; and how long the next may be, 0: nothing is left."""
    pieces: list[Piece] = []
    each = -(-wanted // nr_threads)
    while wanted and longest and len(pieces) < nr_threads:
        piece = region._alloc_cold(min(each, longest, wanted))
        if piece is None:
            longest = min(each, longest, wanted) // 2
        else:
            pieces.append(piece)
            wanted -= min(piece[1], wanted)
    return pieces, longest


def at_once(works: Sequence[tuple[Callable[..., None], *tuple[int, ...]]]) -> None:
    """Call each with its arguments in a thread of its own; the first, and what finds no thread, here."""
    errors: list[BaseException] = []

    def work(call: Callable[..., None], *arguments: int) -> None:
        try:
            call(*arguments)
        except BaseException as e:  # raised by the caller's thread
            errors.append(e)

    others = [threading.Thread(target=work, args=given) for given in works[1:]]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: a limit, or the interpreter ends
            for thread in others:
                thread.start()
        here = [given for given, thread in zip(works[1:], others, strict=True) if thread.ident is None]
        for given in [*works[:1], *here]:
            work(*given)
    finally:
        for thread in others:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]


def huge_text(info: dict[str, Any]) -> str:
    """What Stats.huge says of a region with that `_info()`."""
    if not info["huge"]:
        return "never"
    if info["huge_error"]:
        return f"no: {os.strerror(info['huge_error'])}"
    try:
        with open(_SETTING) as file:
            chosen = re.search(r"\[(\w+)\]", file.read())
    except OSError as e:
        return f"no: {_SETTING}: {e.strerror}"
    setting = chosen[1] if chosen else "unknown"
    return f"{'on' if setting in _GIVES else 'no'}: {_SETTING} is {setting!r}"
