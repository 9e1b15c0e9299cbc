# SPDX-License-Identifier: MIT
"""Views of one array in one message: one lease, one adoption, and each view what it was."""

from __future__ import annotations

import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.api.installed import Unpicklable, installed_region, sent
from tests.equivalence.sent import DTYPES, facts, filled

import vmalloc
from vmalloc._core import load_beside
from vmalloc.adapters import Description, holding_of
from vmalloc.description import encode
from vmalloc.facts import LEASES_MAX

NBYTES = 4096


@pytest.fixture(scope="module")
def region():
    with installed_region() as region:
        yield region


@st.composite
def views(draw, region):
    """Of one array of any dtype: slices, transposes, fields, read-only ones, the same bytes as numbers."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    a = filled(region, (4, 3, 5), dtype, draw(st.sampled_from("CF")), 1)
    found = []
    for _ in range(draw(st.integers(1, 6))):
        view = a[draw(hnp.basic_indices(a.shape, allow_newaxis=True))]
        if not isinstance(view, np.ndarray):
            view = a
        match draw(st.sampled_from(["as it is", "transpose", "field", "bytes", "read-only", "whole"])):
            case "transpose":
                view = view.T
            case "field" if view.dtype.names:
                view = view[view.dtype.names[0]]
            case "bytes" if view.flags.c_contiguous and view.ndim and view.nbytes:
                view = view.view("u1")
            case "read-only":
                view = view.view()
                view.flags.writeable = False
            case "whole":
                view = a
        found.append(view)
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_each_view_arrives_as_it_is_and_all_share_one_lease(region, data):
    sent_views = data.draw(views(region))
    message = ForkingPickler.dumps(sent_views)
    assert region.stats().nr_leases == 1
    arrived = pickle.loads(message)
    assert region.stats().nr_leases == 0
    assert facts(arrived) == facts(sent_views)
    assert len({id(holding_of(a)) for a in arrived}) == 1
    for a, b in zip(sent_views, arrived, strict=True):
        assert not a.nbytes or a.__array_interface__["data"] == b.__array_interface__["data"]


def test_views_of_two_arrays_have_two_leases(region):
    a, b = region.zeros((5, 100)), region.zeros((5, 100), "i4")
    message = ForkingPickler.dumps([*a, *b, a, b, {"a": a.T}, b[::-1]])
    assert region.stats().nr_leases == 2
    for x in pickle.loads(message)[:-2]:
        assert vmalloc.region_of(x) is region


def test_a_message_of_many_rows_is_as_many_references(region):
    rows = list(region.zeros((100_000, 8)))
    message = ForkingPickler.dumps(rows)
    assert region.stats().nr_leases == 1
    arrived = pickle.loads(message)
    arrived[-1][:] = 7
    assert rows[-1].tolist() == [7] * 8
    assert all(vmalloc.is_shared(row) for row in arrived)


@pytest.mark.soak
def test_a_million_rows_are_a_million_references():
    region = vmalloc.Region("1G")
    vmalloc.install(region)
    arrived = sent(list(region.zeros((1_000_000, 8))))
    vmalloc.uninstall()
    assert {id(holding_of(row)) for row in arrived} == {id(holding_of(arrived[0]))}


def test_a_pickler_without_memo_has_a_lease_for_each(region):
    a = region.full((3, 4), 5)
    buffer = io.BytesIO()
    pickler = ForkingPickler(buffer)
    pickler.fast = True
    pickler.dump([a[0], a[1], a[0]])
    assert [x.tolist() for x in pickle.loads(buffer.getvalue())] == [[5] * 4] * 3
    region.expire_leases()


def test_two_messages_of_one_pickler_each_have_their_lease(region):
    a = region.full((3, 4), 5)
    buffer = io.BytesIO()
    pickler = ForkingPickler(buffer)
    pickler.dump([a[0], a[1]])
    pickler.dump([a[1], a[2]])
    assert region.stats().nr_leases == 2
    buffer.seek(0)
    unpickler = pickle.Unpickler(buffer)
    for _ in range(2):
        assert [x.tolist() for x in unpickler.load()] == [[5] * 4] * 2


def test_a_message_that_fails_leaves_no_lease(region):
    with pytest.raises(RuntimeError, match="cannot be sent"):
        ForkingPickler.dumps([*region.zeros((3, 4)), Unpicklable()])
    assert region.stats().nr_leases == 0


# ---- when the leases run out ----


def test_what_finds_no_lease_in_a_large_message_goes_as_a_copy():
    region = vmalloc.Region("1G")
    vmalloc.install(region, 100, on_full="raise")
    arrays = [region.full(8, i) for i in range(LEASES_MAX + 10)]
    message = ForkingPickler.dumps([*arrays, np.zeros(1000)])
    assert region.stats().nr_leases == LEASES_MAX
    *arrived, private = pickle.loads(message)
    assert [int(a[-1]) for a in arrived] == list(range(LEASES_MAX + 10))
    assert [vmalloc.is_shared(a) for a in arrived] == [True] * LEASES_MAX + [False] * 10
    assert not vmalloc.is_shared(private)
    del arrived
    messages = [ForkingPickler.dumps(a) for a in arrays[:LEASES_MAX]]
    with pytest.raises(vmalloc.OutOfPages, match="leases of the region are taken"):
        ForkingPickler.dumps([arrays[0]])  # a message that gets none at all: as on_full says
    vmalloc.install(region, 100, on_full="copy")
    assert sent(arrays[0]).tolist() == [0] * 8
    with pytest.raises(vmalloc.OutOfPages, match="one by each Ref, and by each range in each message"):
        vmalloc.ref(arrays[0])
    del messages
    vmalloc.uninstall()
    region.expire_leases()


# ---- forged ones ----


@pytest.fixture(scope="module")
def first():
    return vmalloc.Region("1M").zeros(NBYTES, "u1")


sizes = st.one_of(
    st.integers(-2, 9), st.sampled_from([NBYTES, NBYTES + 1, 2**31, 2**62, 2**63 - 1, -(2**63)])
)


@settings(max_examples=2000, deadline=None)
@given(st.data(), st.lists(sizes, max_size=4), st.one_of(st.integers(-9, NBYTES + 9), sizes))
def test_a_forged_description_is_stale_or_lies_within_the_range(first, data, shape, offset):
    strides = data.draw(st.one_of(st.none(), st.tuples(*[sizes] * len(shape))))
    dtype = data.draw(st.sampled_from([None, "u1"]))  # None: that of the first, by the short way
    described = encode(Description(dtype, tuple(shape), strides, offset))
    try:
        a = load_beside(first, described)
    except vmalloc.StaleReference:
        return
    assert holding_of(a) is holding_of(first)


def test_the_short_way_and_the_general_one_accept_the_same(first):
    for shape, strides, offset in [
        ((NBYTES,), None, 0),
        ((NBYTES - 1,), None, 1),
        ((NBYTES,), None, 1),
        ((2,), (-1,), 1),
        ((2,), (-1,), 0),
        ((5, 0), None, NBYTES),
        ((5, 0), None, NBYTES + 1),
        ((), None, NBYTES - 1),
        ((), None, NBYTES),
        ((NBYTES, 9), (1, 0), 0),
        ((2, 2), (NBYTES // 2, NBYTES // 2), 0),
    ]:
        outcomes = []
        for dtype in (None, "u1"):
            try:
                outcomes.append(facts(load_beside(first, encode(Description(dtype, shape, strides, offset)))))
            except vmalloc.StaleReference:
                outcomes.append("stale")
        assert outcomes[0] == outcomes[1], (shape, strides, offset)


@pytest.mark.parametrize("first", [np.zeros(3), None, 5, np.zeros((3, 4))[0]])
def test_beside_what_lies_in_no_region_there_is_nothing(first):
    with pytest.raises(vmalloc.StaleReference, match="lies in no pages"):
        load_beside(first, encode(Description(None, (1,))))


def test_a_description_that_is_cut_off_is_stale(first):
    described = encode(Description(None, (3,), (1,), 2))
    for end in range(len(described)):
        with pytest.raises(vmalloc.StaleReference):
            load_beside(first, described[:end])
