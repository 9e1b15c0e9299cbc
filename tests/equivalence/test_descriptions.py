# SPDX-License-Identifier: MIT
"""The short way of plain arrays and the general one: the same bytes, the same array, the same errors."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vmalloc
from vmalloc._core import drop_reference, load_reference, pack_plain, rebuild_plain, split_reference
from vmalloc.adapters import Description, holding_of
from vmalloc.adapters.registry import describe, rebuild
from vmalloc.attach import where_of
from vmalloc.description import decode, encode
from vmalloc.reference import load_described, pack

NBYTES = 4096


@pytest.fixture(scope="module")
def region():
    region = vmalloc.Region("16M")
    where_of(region)  # the short way is taken once somebody has asked for it
    vmalloc.install(region, 1000)
    yield region
    vmalloc.uninstall()
    region.close()


@pytest.fixture(scope="module")
def owner(region):
    return holding_of(region.zeros(NBYTES, "u1"))


def facts(a: Any) -> tuple[Any, ...]:
    flags = a.flags
    order = flags.c_contiguous, flags.f_contiguous, flags.writeable, flags.aligned, flags.owndata
    return type(a), a.dtype, a.shape, a.strides, order, a.ctypes.data if a.nbytes else 0, a.tobytes()


dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes(),
    st.sampled_from(["longdouble", "clongdouble", "V7", "i4,f8"]).map(np.dtype),
)
shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def arrays(draw, region):
    """An array of the region of any dtype and order, or any view of one that numpy's indexing makes."""
    dtype, shape = draw(dtypes), draw(shapes)
    a = region.zeros(shape, dtype, draw(st.sampled_from("CF")))
    if a.dtype.subdtype is None and a.nbytes:
        a.reshape(-1, order="A").view("u1")[:] = draw(st.integers(0, 1))  # also as truth values
    if draw(st.booleans()) and a.ndim:
        view = a[draw(hnp.basic_indices(a.shape, allow_newaxis=True, allow_ellipsis=True))]
        a = view if isinstance(view, np.ndarray) else a
    if draw(st.booleans()):
        a = a.transpose(draw(st.permutations(range(a.ndim))))
    if draw(st.booleans()):
        a.flags.writeable = False
    return a


@settings(max_examples=400, deadline=None)
@given(st.data(), st.booleans())
def test_both_ways_write_the_same_description_and_load_the_same_array(region, data, readonly):
    a = data.draw(arrays(region))
    holding = holding_of(a)
    lease = region._lease(holding)[2]
    general = pack(a, holding, lease, readonly=readonly)
    short = pack_plain(a, readonly)
    if short is not None:
        page, id, short_lease, *rest = split_reference(short)
        assert short_lease != lease
        assert (page, id, lease, *rest) == split_reference(general)
        assert rest[1] == encode(describe(a, holding)._replace(readonly=readonly or not a.flags.writeable))
        drop_reference(short)
    expected = facts(a)
    if readonly:
        flags = (*expected[4][:2], False, *expected[4][3:])
        expected = (*expected[:4], flags, *expected[5:])
    loaded = facts(load_reference(general))
    assert (
        facts(load_described(region, *split_reference(general)[:2], 0, *split_reference(general)[3:5]))
        == loaded
    )
    assert loaded[:3] + loaded[4:] == expected[:3] + expected[4:]
    assert loaded[3] == expected[3] or a.flags.c_contiguous  # strides of what has no extent mean nothing


def test_the_short_way_takes_what_it_is_for(region):
    for dtype in ("u1", "<f8", ">i4", "c16", "?", "f2", "longdouble"):
        for shape in ((), (0,), (3, 0, 2), (1, 1), (7, 9)):
            packed = pack_plain(region.zeros(shape, dtype), False)
            assert packed is not None
            drop_reference(packed)
    for a in (region.zeros((3, 4))[:, 1:], region.zeros((3, 4), order="F"), region.zeros(3, "M8[s]")):
        assert pack_plain(a, False) is None


def outcome(work):
    try:
        return facts(work())
    except vmalloc.StaleReference:
        return "stale"


sizes = st.one_of(st.integers(-1, 9), st.sampled_from([NBYTES, 2**31, 2**62, 2**63 - 1, -(2**63)]))
texts = st.one_of(
    dtypes.map(lambda dtype: dtype.str),
    st.sampled_from(["f8", "O", "no", "V4000", "(2,)i4", "i4,f8", "(1,", "i4,(", "[", '"', "\0", "ü"]),
    st.text(min_size=1, max_size=8),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(sizes, max_size=4), st.one_of(st.integers(-9, NBYTES + 9), sizes), texts, st.booleans())
def test_both_ways_accept_and_refuse_the_same_descriptions(owner, shape, offset, text, readonly):
    described = encode(Description(text, tuple(shape), None, offset, readonly))
    general = outcome(lambda: rebuild(owner, decode(described, may_unpickle=True)))
    if len(text.encode()) <= 8 and not text.startswith(("[", '"')):
        assert outcome(lambda: rebuild_plain(owner, described)) == general


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_both_ways_take_damaged_bytes_alike(owner, data):
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=4)))
    described = bytearray(encode(Description("<f4", shape, None, 8)))
    for _ in range(data.draw(st.integers(1, 3))):
        described[data.draw(st.integers(0, len(described) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(described[: data.draw(st.sampled_from([None, None, -1, 24, 30]))])
    general = outcome(lambda: rebuild(owner, decode(damaged)))
    try:
        short = rebuild_plain(owner, damaged)
    except vmalloc.StaleReference:
        assert general == "stale"
        return
    assert short is None or facts(short) == general


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_alone_in_a_message_or_not_an_array_arrives_the_same(region, data):
    a = data.draw(arrays(region))
    alone = pickle.loads(ForkingPickler.dumps(a))
    (within,) = pickle.loads(ForkingPickler.dumps([a]))
    assert facts(alone) == facts(within)
    assert holding_of(alone)._range == holding_of(a)._range
