# SPDX-License-Identifier: MIT
"""The compiled part of the predictor does what the Python beside it does, to the last count."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vmalloc.lab._predict import Ledger
from vmalloc.lab.ledger import LedgerSpace
from vmalloc.lab.predict import Prediction, Predictor
from vmalloc.lab.replay import Recording, load
from vmalloc.lab.state import State
from vmalloc.model import KERNEL_PRESETS, PAGE

DATA = Path(__file__).parent.parent / "data"
TOP = 1 << 64
EVENTS_MAX = 3000


def test_both_ledgers_give_the_same_answers():
    draw = random.Random(5)
    for _ in range(20):
        at = TOP - 4000 * PAGE
        ledgers = LedgerSpace([(at, TOP)]), Ledger([(at, TOP)])
        for _ in range(600):
            start, size = at + draw.randrange(4000) * PAGE, draw.randint(1, 40) * PAGE
            step = draw.choice(["fit", "fit", "add", "discard", "rejoin", "copy"])
            if step == "copy":
                ledgers = ledgers[0].copy(), ledgers[1].copy()
            answers = [changed(ledger, step, start, min(size, TOP - start)) for ledger in ledgers]
            assert answers[0] == answers[1], step
        assert asked(ledgers[0], at) == asked(ledgers[1], at)


def changed(ledger: LedgerSpace, step: str, start: int, size: int) -> object:
    """One change, if it is allowed, and what was answered."""
    if step == "fit":
        align = PAGE << (start >> 12) % 3
        found = ledger.bounds(size, align, start, TOP)
        if found[1] is not None:
            ledger.take(found[1], size)
        return found
    if step == "discard":
        return ledger.discard(start, size)
    taken = ledger.overlapping(start, size)
    if step == "rejoin" and ledger.covering(start) is None and ledger.next_free(start) >= start + size:
        if all(at >= start and at + length <= start + size for at, length in taken):
            ledger.rejoin(start, size)
    elif step == "add" and taken:
        try:
            ledger.add(*taken[0])
        except ValueError:  # a part of it is free: refused by both
            return "refused"
    return taken


def asked(ledger: LedgerSpace, at: int) -> object:
    """Everything that a ledger tells."""
    places = range(at - PAGE, TOP, 7 * PAGE)
    return (
        list(ledger),
        ledger.areas,
        len(ledger),
        ledger.longest,
        [ledger.covering(place) for place in places],
        [ledger.next_free(place) for place in places],
        [ledger.next_known(place, TOP) for place in places],
        [ledger.is_out(place) for place in places],
        [ledger.find(pages * PAGE) for pages in (1, 30, 5000)],
    )


def test_a_ledger_refuses_what_is_not_free_and_what_is():
    for ledger in (LedgerSpace([(0, 8 * PAGE)]), Ledger([(0, 8 * PAGE)])):
        with pytest.raises(ValueError, match="is not free as a whole"):
            ledger.take(7 * PAGE, 2 * PAGE)
        with pytest.raises(ValueError, match="is free already"):
            ledger.add(4 * PAGE, PAGE)


def cases() -> list[Any]:
    guests = [path.name.removesuffix(".trace.xz") for path in sorted((DATA / "guest").glob("*.trace.xz"))]
    known = [pytest.param("guest", name, True, id=name) for name in guests]
    unseen = [("guest", name) for name in ("random_size", "mix_smp8", "mix_smp1", "pcpu_1t")]
    unseen += [("live", name) for name in ("l8_consist", "l2_proc", "l1_admin", "l7_lost_overwrite")]
    return known + [pytest.param(*case, False, id=f"{case[1]}, start unseen") for case in unseen]


@pytest.mark.parametrize(("folder", "name", "start_known"), cases())
def test_both_predict_the_same(folder, name, start_known):
    state = DATA / folder / f"{name}.state0.xz" if start_known else None
    whole = load(DATA / folder / f"{name}.trace.xz", state)
    events = whole.events[:EVENTS_MAX]
    draw = random.Random(name)
    at_random = draw.sample(range(len(events) - 1), 20)
    for at in sorted(at_random, reverse=True):  # faults: lines that are missing, and swapped ones
        events[at : at + 2] = draw.choice([[events[at]], [events[at + 1], events[at]]])
    recording = Recording(events, whole.window, whole.cpus, whole.start, whole.complete)
    for design in ("linux-6.8", "linux-6.9", "llist"):
        compiled, plain = (predicted(recording, design, compiled) for compiled in (True, False))
        assert compiled == plain, design


def test_a_damaged_counter_is_no_error():
    """It may be any number of 64 bits; a free is compared with it while a purge is under way."""
    whole = load(DATA / "guest" / "random_size.trace.xz", DATA / "guest" / "random_size.state0.xz")
    events = whole.events[:EVENTS_MAX]
    for at in range(2000, EVENTS_MAX, 50):
        events[at] = events[at]._replace(nr_lazy=TOP - 1)
    recording = Recording(events, whole.window, whole.cpus, whole.start, whole.complete)
    assert predicted(recording, "linux-6.9", True) == predicted(recording, "linux-6.9", False)


TOP_PAGE = TOP - PAGE
DAMAGE: list[dict[str, Any]] = [
    {"align": 0},
    {"align": 3},
    {"align": TOP >> 1},
    {"align": TOP - 1},
    {"size": 0},
    {"size": 1},
    {"size": TOP_PAGE},
    {"size": TOP - 1},
    {"size": TOP_PAGE, "align": 0},
    {"size": TOP >> 1, "vstart": 0, "addr": PAGE},
    {"addr": 0},
    {"addr": 5},
    {"addr": TOP_PAGE},
    {"addr": TOP - 1},
    {"vstart": 0},
    {"vstart": TOP - 1},
    {"vend": 0},
    {"vstart": 0, "vend": TOP - 1},
    {"cpu": 1000},
    {"failed": 1, "size": TOP_PAGE},
    {"failed": 1, "align": 0},
    {"kind": "free", "addr": 0, "nr_lazy": TOP - 1},
    {"kind": "free", "addr": TOP_PAGE, "nr_lazy": TOP - 1},
    {"kind": "free", "addr": TOP - 1},
    {"kind": "free", "nr_lazy": TOP - 1},
    {"kind": "purge", "npurged": TOP - 1},
]


@pytest.mark.parametrize("start_known", [True, False], ids=["start known", "start unseen"])
def test_damaged_lines_are_the_same_for_both(start_known):
    """A number of a line may be any of 64 bits: each kind of damage, five times in 300 events."""
    state = DATA / "guest" / "random_size.state0.xz" if start_known else None
    whole = load(DATA / "guest" / "random_size.trace.xz", state)
    for number, damage in enumerate(DAMAGE):
        events = whole.events[:300]
        allocs = [at for at, event in enumerate(events) if event.kind == "alloc"]
        for at in random.Random(number).sample(allocs, 5):
            events[at] = events[at]._replace(**damage)
        recording = Recording(events, whole.window, whole.cpus, whole.start, whole.complete)
        for design in ("linux-6.8", "linux-6.9"):
            compiled, plain = (predicted(recording, design, compiled) for compiled in (True, False))
            assert compiled == plain, (damage, design)


def test_requests_that_no_kernel_makes_are_left_out_and_counted():
    whole = load(DATA / "guest" / "random_size.trace.xz", DATA / "guest" / "random_size.state0.xz")
    events = whole.events[:300]
    at = next(at for at, event in enumerate(events) if event.kind == "alloc")
    for damage in ({"align": 0}, {"align": 3}, {"size": 0}, {"size": 5000}, {"size": TOP_PAGE}):
        events[at] = whole.events[at]._replace(**damage)
        recording = Recording(events, whole.window, whole.cpus, whole.start, whole.complete)
        assert recording.restored["damaged"] == 1
        assert len(recording.events) == len(events) - 1


def predicted(recording: Recording, design: str, compiled: bool) -> tuple[object, ...]:
    """All that a prediction finds, and the state that it ends in."""
    kernel = recording.kernel(KERNEL_PRESETS[design])
    predictor = Predictor(kernel, recording.line, recording.complete, compiled)
    result = predictor.run()
    return (
        asdict_plain(result),
        bytes(predictor.verdicts),
        State.of(predictor.kernel),
        predictor.kernel.lazy_pages,
    )


def asdict_plain(result: Prediction) -> dict[str, object]:
    """Of a prediction; `asdict` itself cannot copy a defaultdict."""
    return {
        name: {key: asdict(tally) for key, tally in value.items()} if name.startswith("by_") else value
        for name, value in vars(result).items()
    }
