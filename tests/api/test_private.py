# SPDX-License-Identifier: MIT
"""install(private=...): what a receiver writes is its own."""

from __future__ import annotations

import gc
import multiprocessing

import numpy as np
import pytest
from tests.api.installed import THRESHOLD, sent
from tests.conftest import PAGE
from tests.equivalence.sent import DTYPES, as_stock, facts, filled

import vmalloc
from vmalloc import private
from vmalloc._core import nr_private_mappings
from vmalloc.facts import PRIVATE_COPY_BYTES

LARGE = PRIVATE_COPY_BYTES // 8 + 512  # numbers of 8 bytes, too many to be copied


@pytest.fixture
def region():
    region = vmalloc.Region("64M")
    yield region
    vmalloc.uninstall()
    gc.collect()
    region.recover()
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    assert nr_private_mappings() == 0


@pytest.mark.parametrize("mode", [True, "copy"])
@pytest.mark.parametrize("nbytes", [THRESHOLD // 2, THRESHOLD * 2, LARGE * 8])
@pytest.mark.parametrize("where", ["private", "region"])
def test_the_receivers_writes_are_its_own(region, mode, nbytes, where):
    vmalloc.install(region, THRESHOLD, private=mode)
    a = (np if where == "private" else region).zeros(nbytes // 8)
    b, c = sent(a), sent([a])[0]
    b += 1
    assert (a.max(), b.min(), c.max()) == (0, 1, 0)


def test_what_was_copied_in_has_the_bytes_of_that_moment(region):
    vmalloc.install(region, THRESHOLD, private=True)
    a = np.zeros(LARGE)
    b = sent(a)
    a += 1
    assert b.max() == 0
    assert nr_private_mappings() == 1


def test_one_made_in_a_region_shows_later_writes_in_pages_that_the_receiver_has_not_written(region):
    vmalloc.install(region, THRESHOLD, private=True)
    a = region.zeros(LARGE)
    b = sent(a)
    b[0] = 5
    a += 1
    a_page = PAGE // 8
    assert b[:a_page].tolist() == [5, *[0] * (a_page - 1)]
    assert (b[a_page:] == 1).all()


def test_copied_at_the_send_it_has_the_bytes_of_that_moment(region):
    vmalloc.install(region, THRESHOLD, private="copy")
    a = region.zeros(LARGE)
    b = sent(a)
    a += 1
    assert b.max() == 0
    assert nr_private_mappings() == 1


def test_what_was_received_counts_as_private_memory(region):
    vmalloc.install(region, THRESHOLD, private=True)
    b = sent(region.zeros(LARGE))
    assert not vmalloc.is_shared(b)
    assert vmalloc.region_of(b) is None
    b += 1
    c = sent(b)
    b += 1
    assert (c.min(), c.max()) == (1, 1)


def test_small_arrays_are_copied(region):
    vmalloc.install(region, THRESHOLD, private=True)
    b = sent(region.zeros(PRIVATE_COPY_BYTES // 8))
    assert b.flags.owndata
    assert region.stats().nr_busy == 0


def test_past_a_share_of_the_mappings_arrays_are_copied(region, monkeypatch):
    monkeypatch.setattr(private, "mappings_max", lambda: 2)
    vmalloc.install(region, THRESHOLD, private=True)
    arrived = [sent(region.zeros(LARGE)) for _ in range(4)]
    assert nr_private_mappings() == 2
    for a in arrived:
        a += 1
        assert (a.min(), a.max()) == (1, 1)
    assert [a.flags.owndata for a in arrived] == [False, False, True, True]


def test_views_of_one_array_in_one_message_are_independent_as_with_stock(region):
    vmalloc.install(region, THRESHOLD, private=True)
    a = region.zeros((2, LARGE))
    whole, row = sent([a, a[0]])
    whole += 1
    assert row.max() == 0


def test_elements_that_lie_upon_each_other_are_apart_there(region):
    vmalloc.install(region, THRESHOLD, private=True)
    b = sent(np.broadcast_to(region.zeros(LARGE), (2, LARGE)))
    b[0] = 1
    assert b[1].max() == 0


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("rows", [3, 30000])
def test_it_arrives_as_stock_delivers_it(region, kind, rows):
    vmalloc.install(region, THRESHOLD, private=True)
    for make in (np, region):
        a = filled(make, (rows, 20), DTYPES[kind], "F", 1)
        a.flags.writeable = False
        assert facts(sent([a, a.T])) == facts(as_stock([a, a.T]))


def test_blocks_and_refs_stay_shared(region):
    vmalloc.install(region, THRESHOLD, private=True)
    ref, block = vmalloc.ref(region.zeros(LARGE)), region.alloc(PAGE)
    b, c = sent([ref, block])
    assert np.shares_memory(b, ref.get())
    assert c.offset == block.offset


def test_only_known_modes_are_taken(region):
    with pytest.raises(ValueError, match="private must be False, True or 'copy', not 'no'"):
        vmalloc.install(region, private="no")


def add(a):
    a += 1
    return float(a[0]), a


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_write_do_not_see_each_other(region, method):
    vmalloc.install(region, THRESHOLD, private=True)
    with multiprocessing.get_context(method).Pool(2) as pool:
        (told, a), *_ = pool.map(add, [np.zeros(LARGE)])
        answers = pool.map(add, [a] * 6, chunksize=1)
        assert (told, [told for told, _ in answers], a[0]) == (1, [2] * 6, 1)
        pool.close()
        pool.join()
    del answers, a
