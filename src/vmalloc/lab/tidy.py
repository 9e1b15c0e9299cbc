# SPDX-License-Identifier: MIT
"""Tidy: lines that stand in the wrong place, twice, with a wrong time, or that no kernel prints.

* Time. The recorder writes the lines of one CPU in order, and merges CPUs by time. A line that is earlier
  than the one before moves back. One line alone that is earlier than the two before it on its CPU, or later
  than the two after it, has a wrong time and stays where it stands. So do lines of a clock that was set back.
* A line that comes twice in a row with the same time: the same range cannot be given out, or freed, twice.
* An allocation of no pages, of half a page, aligned to no power of two or reaching beyond the last address is
  a damaged line. It is left out, so it counts as lost.

It needs no start state and no design; restore.py goes on with what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from vmalloc.lab.events import ALLOC, FREE, Event
from vmalloc.lab.restore import ADDRESSES, NEAR, SHARE_MAX
from vmalloc.model import PAGE

MOVED_MIN = 4
"""So many lines may be put back in the shortest recording, in others SHARE_MAX of all; if more, none is."""


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
    wrong = 0
    for places in _places_by_cpu(events):
        for at, place in enumerate(places):
            before = [times[near] for near in places[max(0, at - 2) : at]]
            after = [times[near] for near in places[at + 1 : at + 3]]
            if _is_alone(before, times[place], after):
                earlier = before[-1:] + times[max(0, place - 1) : place]
                times[place] = min([max(earlier, default=times[place]), *after[:1]])
                timed[place] = events[place]._replace(time_ns=times[place])
                wrong += 1
    return timed, wrong


def _places_by_cpu(events: Sequence[Event]) -> list[list[int]]:
    places: dict[int, list[int]] = {}
    for place, event in enumerate(events):
        places.setdefault(event.cpu, []).append(place)
    return list(places.values())


def _is_alone(before: list[int], here: int, after: list[int]) -> bool:
    """Whether a time is earlier than the two before it, or later than the two after it, and these agree."""
    if before and after and before[-1] > after[0]:
        return False
    return (len(before) == 2 and here < min(before)) or (len(after) == 2 and here > max(after))


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

    A longer way back is no swapped line. Where a CPU's clock was set back (or files were joined) its lines
    stand as they were written, from there on; and all do where so many would move that the clocks disagree.
    """
    set_back = _set_back(events)
    ordered: list[Event] = []
    moved = 0
    latest = -1
    for at, event in enumerate(events):
        place = len(ordered)
        if at >= set_back.get(event.cpu, at + 1):
            ordered.append(event)
            continue
        if event.time_ns < latest:
            stop = max(0, place - NEAR)
            while place > stop and ordered[place - 1].time_ns > event.time_ns:
                place -= 1
            if place > stop or stop == 0:
                ordered.insert(place, event)
                moved += 1
                continue
        ordered.append(event)
        latest = event.time_ns
    if moved > max(MOVED_MIN, SHARE_MAX * len(events)):
        return list(events), 0
    return ordered, moved


def _set_back(events: Sequence[Event]) -> dict[int, int]:
    """For each CPU whose clock was set back: from which line on. One line alone that is early is swapped."""
    found: dict[int, int] = {}
    for places in _places_by_cpu(events):
        latest = accumulate((events[place].time_ns for place in places), max)
        for before, (place, after) in zip(latest, pairwise(places[1:]), strict=False):
            if max(events[place].time_ns, events[after].time_ns) < before:
                found[events[place].cpu] = place
                break
    return found
