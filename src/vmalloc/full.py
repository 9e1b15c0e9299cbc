# SPDX-License-Identifier: MIT
"""Full: what a send does when its region has no room, and when it cannot be used at all.

A message must not be lost: a queue's thread has nobody to tell an error to. So the default,
`on_full="wait"`, waits a bounded time for a reader to give pages back, then the array goes by value, as
without us. Whoever has waited in vain once does so no more until there was room again. And nobody waits who
alone could give pages back: with no other process attached or started here, or for more than the region
has.
"""

from __future__ import annotations

import multiprocessing.process
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from vmalloc.errors import OutOfPages, VmallocError
from vmalloc.log import DEBUG, WARNING, log

__all__ = ["ON_FULL", "Room", "warn_once"]

T = TypeVar("T")

ON_FULL = ("wait", "copy", "raise")
_LOOK_FIRST_S, _LOOK_MOST_S = 0.001, 0.02  # between looks at what was given back
_TRY_ANYWAY_S = 0.25  # room may come from where a look sees nothing

_lock = threading.RLock()  # a handler or a finalizer may send while its thread has it
_warned: set[str] = set()


def _start_anew_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_start_anew_in_child)


def warn_once(what: str, text: str) -> None:
    """A RuntimeWarning, once for each `what`, and a line of the log. Never raised: a message is under way."""
    with _lock:
        is_first = what not in _warned
        _warned.add(what)
    log(WARNING if is_first else DEBUG, "%s", text)
    if not is_first:
        return
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning as e:  # -W error
        warnings.showwarning(e, RuntimeWarning, __file__, 0)


def forget_warnings() -> None:
    """A new install() warns anew."""
    with _lock:
        _warned.clear()


class _Sending(threading.local):
    now = False


_sending = _Sending()


def is_sending() -> bool:
    """Whether what this thread allocates is for a send, which has another way than to end old messages."""
    return _sending.now


def warn_of_lost(nr: int) -> None:
    """Messages were ended for want of pages."""
    warn_once(
        "lost",
        f"the region is full, so {nr} unread messages of processes that have ended lost their arrays, "
        "the oldest first; more may follow",
    )


class Room:
    """Finds room in one region for the sends of this process, as install() was told."""

    def __init__(self, on_full: str, timeout_s: float) -> None:
        self.on_full, self.timeout_s = on_full, timeout_s
        self._vain_bytes: int | None = (
            None  # of the smallest send that waited in vain; None: none since room was found
        )

    def waited_in_vain(self, nbytes: int) -> bool:
        """Whether a send of no more bytes did, and there was no room since."""
        return self._vain_bytes is not None and nbytes >= self._vain_bytes

    def find(self, attempt: Callable[[], T], region: Any, nbytes: int, may_copy: bool) -> T | None:
        """What `attempt` gives; None: send a copy, which `may_copy` allows. OutOfPages and others if not."""
        try:
            result = self._try(attempt, region, nbytes)
        except VmallocError as e:
            is_full = isinstance(e, OutOfPages)
            if not may_copy or (is_full and self.on_full == "raise"):
                raise
            if is_full:
                warn_once("full", f"arrays go by value until there is room again: {e}")
            else:
                warn_once("unusable", f"arrays go by value, for their region cannot be used here: {e}")
            return None
        if self.waited_in_vain(nbytes):
            self._vain_bytes = None
        return result

    def _try(self, attempt: Callable[[], T], region: Any, nbytes: int) -> T:
        try:
            return self._once(attempt)
        except OutOfPages:
            if self.on_full != "wait" or not self._is_worth_waiting(region, nbytes):
                raise
        return self._wait(attempt, region, nbytes)

    def _once(self, attempt: Callable[[], T]) -> T:
        outer = _sending.now  # a handler or a finalizer may send within a send
        try:
            _sending.now = self.on_full != "raise"
            return attempt()
        finally:
            _sending.now = outer

    def _is_worth_waiting(self, region: Any, nbytes: int) -> bool:
        if self.timeout_s <= 0 or self.waited_in_vain(nbytes):
            return False
        info = region._info()
        most = min(info["nr_pages"], info["limit_pages"] or info["nr_pages"])
        return nbytes <= most * info["page_size"] and _others_may_free(region)

    def _wait(self, attempt: Callable[[], T], region: Any, nbytes: int) -> T:
        """OutOfPages when the time is up."""
        started = tried = time.monotonic()
        seen, pause_s = region._glance(), _LOOK_FIRST_S
        while True:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LOOK_MOST_S)
            now = time.monotonic()
            is_over, now_seen = now - started >= self.timeout_s, region._glance()
            if not is_over and now_seen == seen and now - tried < _TRY_ANYWAY_S:
                continue
            seen, tried = now_seen, now
            try:
                return self._once(attempt)
            except OutOfPages:
                if is_over:
                    self._vain_bytes = nbytes
                    raise


def _others_may_free(region: Any) -> bool:
    """Whether a process other than this one may give pages or leases back."""
    now = region._glance()
    if now["nr_processes"] <= 1:
        return bool(multiprocessing.process._children)  # type: ignore[attr-defined]  # on its way to attach
    own = region._info()["process_slot"]
    return now["nr_leases"] > 0 or any(slot != own for slot, _, _ in region._holdings(2))
