# SPDX-License-Identifier: MIT
"""Restore: what a recording itself shows to be missing.

A line can get lost. Events are redundant enough to notice, without any model (tidy.py has put the lines in
order before):

* The lazy counter. It grows by the pages of each free, which prints it, and falls when a purge settles. A
  step up that no later print takes back is a lost free of so many pages. Which area it was is told by the
  next allocation that overlaps a live area of that size; if none does, by there being one such area only that
  nobody frees later.
* Counts. A purge's event says how many areas it took, and the oldest go first, so each fall of the counter is
  so many areas. Those that no event tells, then or later, were settled by a purge whose event is lost, or
  whose count is cut: the digits that are left of it are those that it began with.
* A failed allocation is followed by its task's full purge before the task tries that size again.

What is lost comes back as an event with the text RESTORED. Lost allocations leave no such trace before they
are freed: predict.py finds their place when the model offers what they had taken.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from vmalloc.lab.events import ALLOC, FREE, LOST, PURGE, Event
from vmalloc.model import PAGE, Area

RESTORED = "restored"
CUT_COUNT = "cut count"
NO_TASK = -1
ADDRESSES = 1 << 64
NEAR = 64
"""Events within which the prints of concurrent operations may be out of order."""
STEADY = 16
"""Frees over which a step of the lazy counter must last; a shorter one is two prints out of order."""
RUN = 4
"""Frees in a row that make a step last."""
SHARE_MAX = 0.01
"""A recording that lacks more than this share of its events is used as it is: too much to guess at."""


class Step(NamedTuple):
    """The lazy counter changed by `pages` more than the frees say, seen at event `at`."""

    at: int
    pages: int


def restore(
    events: list[Event], busy: Sequence[Area] = (), lazy: Sequence[Area] | None = None
) -> tuple[list[Event], Counter[str]]:
    """The events with what they show to be lost, and how much of each kind that was.

    `busy` and `lazy` are the start state, None if it is not known. Events that are there stay as they are,
    but for a purge's count that was cut.
    """
    if any(event.kind == LOST for event in events):
        return events, Counter()  # the recorder says so itself: whole pieces are missing
    frees = _frees(events, {area.start: area.pages for area in busy})
    steps = _lasting(_steps(frees, None if lazy is None else sum(area.pages for area in lazy)), frees)
    inserts = _failed_without_purge(events)
    inserts += _lost_frees(events, frees, [step for step in steps if step.pages > 0], busy)
    falls = [step for step in steps if step.pages < 0]
    settled = _untold(events, frees, falls, [area.pages for area in lazy or ()], lazy is not None)
    whole = _whole_counts(events, settled, lazy is not None)
    for index, nr_areas in settled:
        if index not in whole:
            _insert_purge(events, index, nr_areas, inserts)
    if len(inserts) > max(1, SHARE_MAX * len(events)):
        return events, Counter()
    inserts.sort(key=lambda insert: insert[0], reverse=True)
    restored = list(events)
    for purge in whole.values():
        restored[purge.at] = events[purge.at]._replace(npurged=purge.npurged)
    for index, event in inserts:
        restored.insert(index, event)
    return restored, Counter([event.kind for _, event in inserts] + [CUT_COUNT] * len(whole))


def unseen_frees(events: Sequence[Event], busy: Sequence[Area]) -> dict[int, int]:
    """Pages of areas freed without being busy, by the free's event; 0 if nothing tells them."""
    frees = _frees(events, {area.start: area.pages for area in busy})
    unseen = [free for free in frees if not free.seen]
    return {free.at: free.pages if fits(events[free.at].addr, free.pages) else 0 for free in unseen}


def fits(addr: int, pages: int) -> bool:
    """Whether an area can be so long; the counter of a damaged line may tell any number."""
    return pages * PAGE <= ADDRESSES - max(addr, PAGE)


class _Free(NamedTuple):
    """A free: its event, its pages (0: unknown), the counter that it prints, and whether it was busy."""

    at: int
    pages: int
    nr_lazy: int
    seen: bool


def _frees(events: Sequence[Event], live: dict[int, int]) -> list[_Free]:
    """All frees, with their sizes where the allocation was seen, and else as the counter tells."""
    frees: list[_Free] = []
    for index, event in enumerate(events):
        kind = event.kind
        if kind == ALLOC:
            if not event.failed:
                live[event.addr] = event.size // PAGE
        elif kind == FREE:
            pages = live.pop(event.addr, 0)
            frees.append(_Free(index, pages, event.nr_lazy, pages > 0))
    for at, free in enumerate(frees):
        if not free.seen and at:
            frees[at] = free._replace(pages=_told_pages(frees, at))
    return frees


def _told_pages(frees: Sequence[_Free], at: int) -> int:
    """By how much a free has raised the counter.

    If the prints before it are lower, and those after it higher, that is its print less the one before. Else
    it is how much higher the counter, less the pages of the frees around, is after it than before it.
    """
    before, after = frees[max(0, at - STEADY) : at], frees[at : at + STEADY]
    raised = min(free.nr_lazy for free in after) - max(free.nr_lazy for free in before[-RUN:])
    own = frees[at].nr_lazy - frees[at - 1].nr_lazy
    if raised == own > 0:
        return own
    levels = _levels([*before, *after])
    was, is_now = Counter(levels[: len(before)]), Counter(levels[len(before) :])
    step = is_now.most_common(1)[0][0] - was.most_common(1)[0][0]
    return step if step > 0 else max(own, 0)


def _levels(frees: Sequence[_Free]) -> list[int]:
    """The counter less the pages of these frees, at each of them."""
    added = accumulate(free.pages for free in frees)
    return [free.nr_lazy - pages for free, pages in zip(frees, added, strict=True)]


def _steps(frees: Sequence[_Free], lazy_pages: int | None) -> list[Step]:
    """Where the counter, less the frees' pages, goes to another value and stays there."""
    if not frees:
        return []
    levels = _levels(frees)
    steps = []
    level = levels[0] if lazy_pages is None else lazy_pages
    at = 0
    while at < len(levels):
        if levels[at] != level:
            steady = _steady(levels[at : at + STEADY], level)
            if steady != level:
                first = levels.index(steady, at)
                steps.append(Step(frees[first].at, steady - level))
                level, at = steady, first
        at += 1
    return steps


def _steady(levels: Sequence[int], level: int) -> int:
    """The next value that lasts: the first that comes RUN times in a row, or else most of STEADY frees."""
    for value, run in groupby(levels):
        if sum(1 for _ in run) >= RUN:
            return value
    most, times = Counter(levels).most_common(1)[0]
    return most if 2 * times >= len(levels) == STEADY else level


def _failed_without_purge(events: Sequence[Event]) -> list[tuple[int, Event]]:
    """Purges that tasks must have made between two tries of the same failed allocation."""
    inserts = []
    failed: dict[int, Event] = {}
    for index, event in enumerate(events):
        before = failed.pop(event.pid, None)
        if event.kind != ALLOC:
            continue
        if before is not None and (before.size, before.align) == (event.size, event.align):
            inserts.append((index, _purge_event(before, 0)))
        if event.failed:
            failed[event.pid] = event
    return inserts


def _purge_event(beside: Event, npurged: int) -> Event:
    """The event of a lost purge, by the task of the event beside it."""
    return beside._replace(kind=PURGE, addr=0, size=0, failed=0, npurged=npurged, text=RESTORED)


def _lasting(steps: Sequence[Step], frees: Sequence[_Free]) -> list[Step]:
    """The steps without those of a task that was held up before its print: a step up that it takes back."""
    lasting: list[Step] = []
    for step in steps:
        up = next((up for up in reversed(lasting) if up.pages == -step.pages), None)
        if step.pages < 0 and up is not None and _printed_late(frees, up, step):
            lasting.remove(up)
        else:
            lasting.append(step)
    return lasting


def _printed_late(frees: Sequence[_Free], up: Step, down: Step) -> bool:
    """Whether a free between two steps has their pages, and prints the counter from before the first."""
    first, end = bisect_left(frees, up.at, key=_at), bisect_left(frees, down.at, key=_at)
    until = frees[first].nr_lazy
    return any(free.pages == up.pages and free.nr_lazy < until for free in frees[first:end])


def _at(free: _Free) -> int:
    return free.at


def _lost_frees(
    events: Sequence[Event], frees: Sequence[_Free], steps: list[Step], busy: Sequence[Area]
) -> list[tuple[int, Event]]:
    """Frees where the counter stepped up by the pages of an area that was live before and not after."""
    inserts: list[tuple[int, Event]] = []
    pages = {free.at: free.pages for free in frees}
    for step in steps:
        lost = _not_live_after(events, step, busy, inserts)
        if lost is not None:
            beside = events[step.at]
            before = beside.nr_lazy - pages[step.at]  # what the lost line had printed
            inserts.append((step.at, beside._replace(addr=lost, nr_lazy=before, text=RESTORED)))
    return inserts


def _not_live_after(
    events: Sequence[Event], step: Step, busy: Sequence[Area], restored: Sequence[tuple[int, Event]]
) -> int | None:
    """Of the live areas of the step's size the first that a later allocation overlaps: its start.

    If there is none, the only one that is not freed later either: a range that goes to a pool which nobody
    uses any more is not given out again. What is restored already is not live any more.
    """
    live = {area.start: area.pages for area in busy}
    given = dict.fromkeys(live, -1)
    for index, event in enumerate(events[: step.at]):
        if event.kind == ALLOC and not event.failed:
            live[event.addr] = event.size // PAGE
            given[event.addr] = index
        elif event.kind == FREE:
            live.pop(event.addr, None)
    for index, event in restored:
        if given.get(event.addr, index) < index:
            live.pop(event.addr, None)
    starts = sorted(start for start, pages in live.items() if pages == step.pages)
    size = step.pages * PAGE
    gone: set[int] = set()
    for event in events[step.at :]:
        if event.kind == FREE:
            gone.add(event.addr)
        elif event.kind == ALLOC and not event.failed:
            first = bisect_right(starts, event.addr - size)
            for start in starts[first:]:
                if start >= event.addr + event.size:
                    break
                if start not in gone:
                    return start
    left = [start for start in starts if start not in gone]
    return left[0] if len(left) == 1 else None


def _untold(
    events: Sequence[Event], frees: list[_Free], falls: list[Step], waiting: list[int], known: bool
) -> list[tuple[int, int]]:
    """Falls, by the event that shows them, and how many of their areas the printed purges cannot stand for.

    `waiting` are the pages of the areas lazy at the start. Areas settled and not told yet by an event come
    back to none after each purge; what never comes back is told by no event.
    """
    cuts = _settled_at(frees, falls, waiting)
    tolds = _told_at(events, frees, [index for index, _ in cuts])
    if not known and tolds:  # the first took areas besides that were lazy before anything was seen
        first = min(tolds)
        tolds[first] = min(tolds[first], sum(nr_areas for index, nr_areas in cuts if index <= first))
    points: list[tuple[int, int]] = []  # event, change of the areas settled and not told; falls come first
    points += [(index, nr_areas) for index, nr_areas in cuts]
    points += [(index, -nr_areas) for index, nr_areas in tolds.items()]
    points.sort(key=lambda point: (point[0], -point[1]))
    untold = list(accumulate(change for _, change in points))
    least = untold[-1:]
    for value in reversed(untold):
        least.append(min(least[-1], value))
    least.reverse()  # least[n]: the least of untold[n:]
    lost, found = 0, []
    for at, (index, change) in enumerate(points):
        nr_areas = least[at] - lost
        if change > 0 and nr_areas > 0 and 2 * nr_areas >= change:
            lost += nr_areas
            found.append((index, nr_areas))
    return _joined(found, tolds)


class _Count(NamedTuple):
    """How many areas the purge of event `at` took."""

    at: int
    npurged: int


def _whole_counts(
    events: Sequence[Event], untold: Sequence[tuple[int, int]], known: bool
) -> dict[int, _Count]:
    """The counts that were cut, by the fall that shows it: with what is untold they begin as they are told.

    The first of an unseen start may have taken any number of areas besides.
    """
    whole: dict[int, _Count] = {}
    purges = [at for at, event in enumerate(events) if event.kind == PURGE and event.npurged]
    for index, nr_areas in untold:
        place = bisect_left(purges, index)
        for at in purges[max(0, place - 1) : place + 1]:  # a purge prints after its falls, most often at once
            count = events[at].npurged + nr_areas
            is_near = abs(index - at) <= NEAR
            is_cut = str(count).startswith(str(events[at].npurged)) and (is_near or at > index)
            if is_cut or (not known and is_near and at == purges[0]):
                whole[index] = _Count(at, count)
                break
    return whole


def _joined(found: Sequence[tuple[int, int]], tolds: Iterable[int]) -> list[tuple[int, int]]:
    """Falls with no purge told between them are the nodes of one: helpers settle them at different times."""
    printed = sorted(tolds)
    joined: list[tuple[int, int]] = []
    for index, nr_areas in found:
        if joined and bisect_left(printed, joined[-1][0]) == bisect_left(printed, index):
            nr_areas += joined.pop()[1]
        joined.append((index, nr_areas))
    return joined


def _settled_at(
    frees: Sequence[_Free], falls: Sequence[Step], waiting: Sequence[int]
) -> list[tuple[int, int]]:
    """For each fall: its event, and how many areas it settled; the oldest are settled first."""
    sums = [0, *accumulate([*waiting, *(free.pages for free in frees)])]
    place = {free.at: at for at, free in enumerate(frees)}
    settled, cuts = 0, []
    for fall in falls:
        end = place[fall.at] + len(waiting) + 1
        left = bisect_left(sums, sums[end] - frees[place[fall.at]].nr_lazy)
        if left > settled:
            cuts.append((fall.at, left - settled))
            settled = left
    return cuts


def _told_at(events: Sequence[Event], frees: Sequence[_Free], cuts: Sequence[int]) -> dict[int, int]:
    """Areas told by purges, by the event that shows them settled: a fall nearby, or the first free after.

    Too few frees at the end of a recording show no fall, so what is told there is left out.
    """
    indices = [free.at for free in frees]
    told: dict[int, int] = {}
    for index, event in enumerate(events):
        if event.kind == PURGE and event.npurged:
            cut = bisect_right(cuts, index)
            at = bisect_right(indices, index)
            if cut < len(cuts) and cuts[cut] - index <= NEAR:
                shown = cuts[cut]
            elif at < len(indices) - STEADY or (cut and at < len(indices) and index - cuts[cut - 1] <= NEAR):
                shown = indices[at]
            else:
                continue
            told[shown] = told.get(shown, 0) + event.npurged
    return told


def _insert_purge(
    events: Sequence[Event], index: int, nr_areas: int, inserts: list[tuple[int, Event]]
) -> None:
    """A purge of so many areas before event `index`; one that a failed allocation has proved is the same."""
    for at, (where, event) in enumerate(inserts):
        if event.kind == PURGE and not event.npurged and where <= index:
            inserts[at] = where, event._replace(npurged=nr_areas)
            return
    drain = events[index]._replace(pid=NO_TASK, comm="kworker")
    inserts.append((index, _purge_event(drain, nr_areas)))
