# SPDX-License-Identifier: MIT
"""A recording's requests on the real allocator: every one is served once, whoever frees what."""

from __future__ import annotations

import mmap
import os
import random
from array import array

import pytest

from vmalloc import AddressSpace, _core
from vmalloc.facts import POOLS
from vmalloc.lab.events import ALLOC, FREE, Event
from vmalloc.lab.replay import Recording, run_on_model
from vmalloc.lab.replay_on_core import load_of, run_on_core, summary
from vmalloc.model import PAGE, CachingDesign

WINDOW = (1 << 40, 2 << 40)


def alloc(cpu, addr, pages=2, align=1, window=WINDOW, failed=0):
    return Event(
        cpu=cpu, kind=ALLOC, addr=addr, size=pages * PAGE, align=align, vstart=window[0], vend=window[1],
        failed=failed,
    )  # fmt: skip


def free(cpu, addr):
    return Event(cpu=cpu, kind=FREE, addr=addr)


def load(*events):
    return load_of(Recording(list(events), WINDOW, 4))


def test_each_cpu_gets_its_events_in_order_and_a_free_names_its_allocation():
    asked = load(alloc(0, 7, pages=2), alloc(1, 8, pages=5, align=4 * PAGE), free(1, 7), free(0, 8))
    assert {cpu: list(requests) for cpu, requests in asked.requests.items()} == {
        0: [0, 2, 1, 1, 0, 0],
        1: [1, 5, 4, 0, 0, 0],
    }
    assert asked.live_pages_max == 7


def test_a_free_printed_after_the_next_use_of_its_address_frees_the_first():
    asked = load(alloc(0, 7), alloc(1, 7), free(0, 7), free(1, 7))
    assert list(asked.requests[0]) == [0, 2, 1, 0, 0, 0]
    assert list(asked.requests[1]) == [1, 2, 1, 1, 0, 0]


def test_what_is_left_out_is_counted():
    asked = load(alloc(0, 7), alloc(0, 8, window=(1, 2)), alloc(0, 9, failed=1), free(0, 8), free(0, 5))
    assert (asked.allocations, asked.frees) == (1, 0)
    assert (asked.other_windows, asked.failed_in_recording, asked.frees_of_unseen) == (1, 1, 2)


def test_an_alignment_beyond_any_address_space_is_a_request_that_fails_on_core_and_model():
    events = [alloc(0, at, pages=1, align=1 << at) for at in range(64)] + [free(0, at) for at in range(64)]
    asked = load(*events)
    told = summary(asked, run_on_core(asked, repeats=1))
    window = WINDOW[0], WINDOW[0] + asked.nr_pages * PAGE
    moved = [event._replace(vstart=window[0], vend=window[1]) for event in events]
    for design in told["designs"]:
        model = run_on_model(Recording(moved, window, 1), CachingDesign("vmalloc", design["pools"]))
        assert design["failed"] == model.failed > sum(1 << at > asked.nr_pages * PAGE for at in range(64))


def test_a_recording_without_a_request_is_told():
    with pytest.raises(ValueError, match="no allocation"):
        load(free(0, 1))


def test_threads_that_free_one_anothers_ranges_all_come_to_an_end():
    events = []
    for at in range(6000):  # each CPU's ranges are freed by the next one
        events.append(alloc(at % 16, at, pages=at % 40 * 10 + 1))
        if at >= 100:
            events.append(free((at - 99) % 16, at - 100))
    results = run_on_core(load(*events), repeats=1)
    told = summary(load(*events), results)
    assert [design["pools"] for design in told["designs"]] == list(POOLS)
    assert (told["threads"], told["allocations"], told["frees"]) == (16, 6000, 5900)
    for design in told["designs"]:
        assert design["failed"] == 0
        assert sum(design["hit_share"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("pools", POOLS)
def test_the_core_serves_one_cpu_by_the_same_levels_as_the_model(pools):
    chance = random.Random(7)
    events, live = [], []
    for at in range(3000):
        if live and (len(live) > 60 or chance.random() < 0.45):
            events.append(free(0, live.pop(chance.randrange(len(live)))))
        else:
            live.append(at)
            pages, align = int(2 ** chance.uniform(0, 9)), chance.choice([1, 1, 4 * PAGE])
            events.append(alloc(0, at, pages, align))
    recording = Recording(events, WINDOW, os.sysconf("SC_NPROCESSORS_ONLN"))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # as the recording's; else another node's pools serve too
    try:
        told = summary(load_of(recording), run_on_core(load_of(recording), [pools], repeats=1))
    finally:
        os.sched_setaffinity(0, before)
    model = run_on_model(recording, CachingDesign("vmalloc", pools))
    shares = told["designs"][0]["hit_share"]
    assert {level: share for level, share in shares.items() if share} == model.as_dict()["hit_share"]
    if pools == "magazine":
        assert shares["magazine"] > 0.5


def work(requests, slots=1, nr_threads=1, stop=False):
    with AddressSpace(0, 64 * PAGE) as space:
        board = mmap.mmap(-1, _core.replay_board_bytes(slots))
        if stop:
            _core.replay_stop(board)
        return _core.replay_work(space, board, nr_threads, array("I", requests)), space.stats().busy_pages


def test_a_request_without_room_fails_and_its_free_is_skipped():
    told, busy = work([0, 65, 1, 1, 3, 1, 0, 0, 0], slots=2)
    assert (told[5], told[-1], busy) == (1, 0, 3)


def test_a_stopped_replay_waits_neither_at_the_gate_nor_for_a_range():
    assert work([0, 0, 0], nr_threads=2, stop=True)[0][-1] == -4


@pytest.mark.parametrize("slot", [1, 0xFFFFFFFF])
def test_a_slot_that_the_board_does_not_have_is_refused(slot):
    with pytest.raises(ValueError, match="the board has fewer"):
        work([slot, 1, 1])
