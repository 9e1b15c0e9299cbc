# SPDX-License-Identifier: MIT
"""Tidy: lines that stand in the wrong place, twice, with a wrong time, or that no kernel prints.

* Time. The recorder writes the lines of one CPU in order, and merges CPUs by time. A line that is earlier
  than the one before moves back. One line alone that is earlier than the two before it on its CPU, or later
  than the two after it, has a wrong time and stays where it stands.
* A line that comes twice in a row with the same time: the same range cannot be given out, or freed, twice.
* An allocation of no pages, of half a page, aligned to no power of two or reaching beyond the last address is
  a damaged line. It is left out, so it counts as lost.

It needs no start state and no design; restore.py goes on with what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vmalloc.lab.events import ALLOC, FREE, Event
from vmalloc.lab.restore import ADDRESSES, NEAR
from vmalloc.model import PAGE


def tidy(events: Sequence[Event]) -> tuple[list[Event], Counter[str]]:
    """The events in order and without what cannot be; and how many were put right, by what was wrong."""
    whole = possible(events)
    single = without_doubles(whole)
    timed, wrong_times = with_right_times(single)
    ordered, moved = in_time_order(timed)
    found = {
        "swapped": moved,
        "wrong time": wrong_times,
        "doubled": len(whole) - len(single),
        "damaged": len(events) - len(whole),
    }
    return ordered, Counter({what: count for what, count in found.items() if count})


def without_doubles(events: Sequence[Event]) -> list[Event]:
    """The events without those that say again what the one before said at that moment."""
    previous = [Event(), *events][: len(events)]
    return [event for event, before in zip(events, previous, strict=True) if not _is_again(event, before)]


def _is_again(event: Event, before: Event) -> bool:
    if event.addr != before.addr or event.time_ns != before.time_ns or event.kind not in (ALLOC, FREE):
        return False
    return not event.failed and event._replace(line=before.line) == before


def with_right_times(events: Sequence[Event]) -> tuple[list[Event], int]:
    """The events, those alone in their time at that of the line before; and how many.

    None becomes earlier or later than its neighbours on its CPU. Two lines that are swapped, or files that
    are joined, are not alone.
    """
    times = [event.time_ns for event in events]
    if all(earlier <= later for earlier, later in pairwise(times)):
        return list(events), 0
    timed = list(events)
    places: dict[int, list[int]] = {}
    for place, event in enumerate(events):
        places.setdefault(event.cpu, []).append(place)
    wrong = 0
    for cpu in places.values():
        for at in range(2, len(cpu) - 2):
            place = cpu[at]
            before, here, after = times[cpu[at - 1]], times[place], times[cpu[at + 1]]
            is_early = here < before and here < times[cpu[at - 2]] and before <= after
            is_late = here > after and here > times[cpu[at + 2]] and before <= after
            if is_early or is_late:
                times[place] = min(max(before, times[place - 1]), after)
                timed[place] = events[place]._replace(time_ns=times[place])
                wrong += 1
    return timed, wrong


def possible(events: Sequence[Event]) -> list[Event]:
    """The events without requests that no kernel makes: their lines are damaged, and as good as lost."""
    return [event for event in events if _is_possible(event)]


def _is_possible(event: Event) -> bool:
    if event.kind != ALLOC:
        return event.kind != FREE or event.addr + PAGE <= ADDRESSES
    size, align = event.size, event.align
    if size <= 0 or size % PAGE or align <= 0 or align & (align - 1):
        return False
    return max(size, align) < ADDRESSES and (bool(event.failed) or event.addr + size <= ADDRESSES)


def in_time_order(events: Sequence[Event]) -> tuple[list[Event], int]:
    """The events with those put back that stand up to NEAR places too late; and how many were moved.

    A longer way back is no swapped line (files were joined): it is left.
    """
    ordered: list[Event] = []
    moved = 0
    latest = -1
    for event in events:
        if event.time_ns >= latest:
            ordered.append(event)
            latest = event.time_ns
            continue
        place = len(ordered)
        stop = max(0, place - NEAR)
        while place > stop and ordered[place - 1].time_ns > event.time_ns:
            place -= 1
        if place == stop:
            ordered.append(event)
            latest = event.time_ns
        else:
            ordered.insert(place, event)
            moved += 1
    return ordered, moved
