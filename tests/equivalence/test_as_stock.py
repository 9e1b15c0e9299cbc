# SPDX-License-Identifier: MIT
"""What stock delivers and what arrives with install(), ref(), a name or copy_in(), fact by fact."""

from __future__ import annotations

import gc
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.api.installed import sent
from tests.equivalence.sent import (
    CLASSES,
    CONTAINERS,
    DTYPES,
    OBJECTS,
    arrays,
    as_stock,
    bytes_of,
    facts,
    filled,
)

import vmalloc
from vmalloc.adapters import holding_of

BOTH = DTYPES | OBJECTS


@pytest.fixture(scope="module")
def region():
    """All of whose pages are full of another array's bytes, and every array over the threshold."""
    region = vmalloc.Region("4M")
    region.full((region.nr_pages - 16) * 4096, 0xAA, "u1")
    vmalloc.install(region, 0)
    yield region
    vmalloc.uninstall()
    gc.collect()
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    region.close()


# ---- install() ----


PROTOCOLS = st.sampled_from((None, *range(pickle.HIGHEST_PROTOCOL + 1)))


def protocol_of(pickler_has):
    return pickle.DEFAULT_PROTOCOL if pickler_has is None else pickler_has


@settings(max_examples=800, deadline=None)
@given(arrays(np, BOTH), arrays(np, BOTH), st.sampled_from(list(CONTAINERS.values())), PROTOCOLS)
def test_private_arrays_arrive_as_stock_delivers_them(region, a, b, container, protocol):
    message = container(a, b)
    assert facts(sent(message, protocol)) == facts(as_stock(message, protocol_of(protocol)))


@settings(max_examples=500, deadline=None)
@given(st.data(), st.sampled_from(list(CONTAINERS.values())), PROTOCOLS)
def test_arrays_of_a_region_arrive_as_stock_delivers_them_but_for_layout_and_order(
    region, data, container, protocol
):
    message = container(data.draw(arrays(region)), data.draw(arrays(region)))
    seen, expected = sent(message, protocol), as_stock(message, protocol_of(protocol))
    assert facts(seen, of_layout=False, of_order=False) == facts(expected, of_layout=False, of_order=False)
    assert facts(seen, of_layout=False) == facts(message, of_layout=False)


ORDERS = (">i4", ">f8", ">U3", ">c16", ">M8[s]", ">m8[25us]", ">f2", ">g", ">i4,>f8", "<u2", "S3")


@pytest.mark.parametrize("dtype", ORDERS)
def test_what_lies_in_a_region_keeps_its_order_of_bytes(region, dtype):
    a = filled(region, (3, 4), np.dtype(dtype), "C", 1)
    assert (sent(a).dtype, sent(a).tobytes()) == (a.dtype, a.tobytes())


@pytest.mark.parametrize("threshold", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ORDERS)
def test_the_order_of_bytes_is_as_with_stock_whatever_the_threshold(region, dtype, threshold):
    vmalloc.install(region, threshold)
    try:
        a = filled(np, (3, 4), np.dtype(dtype), "C", 1)
        for x in (a, a.T, a[::2], a[:0], a[0, 0:1].reshape(())):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                assert facts(sent(x, protocol)) == facts(as_stock(x, protocol))
            assert facts(sent(x)) == facts(as_stock(x))
    finally:
        vmalloc.install(region, 0)


@pytest.mark.parametrize("dtype", [">f8", ">i4"])
def test_what_is_turned_is_copied_in_once_and_goes_by_reference(region, dtype):
    copied_in = vmalloc.sent().copied_in
    a = sent(np.arange(1000).astype(dtype))
    assert vmalloc.is_shared(a)
    assert vmalloc.sent().copied_in == copied_in + 1
    assert a.dtype.isnative
    assert a.tolist() == list(range(1000))


def test_numbers_that_are_none_keep_their_bits(region):
    quiet, signalling = 0x7FF8_0000_0000_1234, 0x7FF0_0000_0000_1234
    a = np.array([quiet, signalling], ">u8").view(">f8")
    assert sent(a).view("u8").tolist() == as_stock(a).view("u8").tolist() == [quiet, signalling]


class Nested:
    """A message within a message, as pools wrap what they cannot pickle."""

    def __init__(self, a):
        self.a = a

    def __reduce__(self):
        return pickle.loads, (bytes(ForkingPickler.dumps(self.a)),)


def test_a_message_within_another_one_has_a_protocol_of_its_own(region):
    a = np.arange(10).astype(">i4")
    inner, outer = sent([Nested(a), a], protocol=5)
    assert facts(inner) == facts(as_stock(a))
    assert facts(outer) == facts(as_stock(a, 5))


def test_buffers_beside_a_message_are_small_arrays_as_with_stock(region):
    small, large = np.arange(10.0), np.arange(1000.0)
    vmalloc.install(region, 1000)
    try:
        buffers, file = [], io.BytesIO()
        ForkingPickler(file, 5, True, buffers.append).dump([small, large])
    finally:
        vmalloc.install(region, 0)
    assert [buffer.raw().nbytes for buffer in buffers] == [small.nbytes]
    there = pickle.loads(file.getvalue(), buffers=buffers)
    assert there[0].tolist() == small.tolist()
    assert there[1].tolist() == large.tolist()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("where", ["private", "region"])
def test_classes_of_arrays_arrive_as_stock_delivers_them(region, kind, where):
    a = CLASSES[kind](filled(np if where == "private" else region, (30, 4), np.dtype("f4"), "C", 1))
    assert facts(sent([a, a])) == facts(as_stock([a, a]))


def test_what_a_message_is_to_its_sender_is_as_stock_makes_it(region):
    for a in (np.zeros(3), np.zeros(300), region.zeros(3), region.zeros((3, 4)).T, [np.zeros(3)], "text"):
        message, buffer = ForkingPickler.dumps(a), ForkingPickler.dumps(None)
        told = [
            (type(m), m.format, m.itemsize, m.ndim, m.readonly, m.contiguous, len(m) == len(m.tobytes()))
            for m in (message, buffer)
        ]
        assert told[0] == told[1]
        pickle.loads(message)


def test_a_pickler_derived_from_forking_pickler_has_its_own_way(region):
    class Own(ForkingPickler):
        def reducer_override(self, x):
            return (str, ("mine",)) if isinstance(x, np.ndarray) else NotImplemented

    assert pickle.loads(Own.dumps(region.zeros(3))) == "mine"
    assert pickle.loads(Own.dumps(np.zeros(3))) == "mine"


def test_what_another_library_registered_since_counts(region):
    ours = ForkingPickler._extra_reducers[np.ndarray]
    ForkingPickler.register(np.ndarray, lambda a: (str, ("theirs",)))
    try:
        assert sent(region.zeros(3)) == sent(np.zeros(3)) == sent([np.zeros(3)])[0] == "theirs"
    finally:
        ForkingPickler.register(np.ndarray, ours)


# ---- ref(), names, copy_in() ----


def by_ref(x, region):
    ref = vmalloc.ref(x, region)
    return pickle.loads(pickle.dumps(ref))


def by_name(x, region):
    region["x"] = x
    try:
        return region["x"]
    finally:
        del region["x"]


WAYS = {"ref": by_ref, "a name": by_name, "copy_in": vmalloc.copy_in}
NO_NAME = (
    "of ml_dtypes",
    "numbers with fields",
    "big-endian with fields",
)  # of dtypes that JSON does not keep


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), is_private=st.booleans())
def test_by_every_way_an_array_is_what_it_was(region, way, data, is_private):
    dtypes = {k: dtype for k, dtype in DTYPES.items() if way != "a name" or not k.startswith(NO_NAME)}
    a = data.draw(arrays(np if is_private else region, dtypes))
    there = WAYS[way](a, region)
    assert facts(there, of_layout=False) == facts(a, of_layout=False)
    assert bytes_of(there) == bytes_of(a)
    assert vmalloc.region_of(there) is region
    if is_private:
        assert facts(there, of_order=False) == facts(as_stock(a))


@pytest.mark.parametrize("kind", [k for k in DTYPES if k.startswith(NO_NAME)])
def test_a_name_refuses_a_dtype_that_it_cannot_keep(region, kind):
    before = region.stats().busy_pages
    with pytest.raises(TypeError, match=r"view the array as a plainer one, or pass vmalloc.ref\(\)"):
        region["x"] = np.zeros(100, DTYPES[kind])
    assert "x" not in region
    assert region.stats().busy_pages == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_refused_with_what_to_do(region, way, kind):
    with pytest.raises(TypeError, match="send such an array by value, or convert it"):
        WAYS[way](np.zeros(5, OBJECTS[kind]), region)


class Table:
    """What numpy can make an array of, with something beside it."""

    def __init__(self, a):
        self.a, self.title = a, "a title"

    def __array__(self, dtype=None, copy=None):
        return self.a


MORE_THAN_ARRAYS = {
    **CLASSES,
    "a table": Table,
    "a list of masked arrays": lambda a: [CLASSES["masked"](a)] * 2,
    "bytes": lambda a: b"ends with zeros\0\0",
    "text": lambda a: "ends with zeros\0\0",
    "a record": lambda a: np.zeros(2, "i4,f8")[0],
    "a dictionary": lambda a: {"a": a},
}


@pytest.mark.parametrize("way", ["ref", "a name"])
@pytest.mark.parametrize("kind", MORE_THAN_ARRAYS)
@pytest.mark.parametrize("where", ["private", "region"])
def test_nothing_of_what_is_more_than_an_array_is_dropped_in_silence(region, way, kind, where):
    a = filled(np if where == "private" else region, (4, 5), np.dtype("f8"), "C", 1)
    with pytest.raises(TypeError, match=r"more than an array.*: pass (np|x\.data)"):
        WAYS[way](MORE_THAN_ARRAYS[kind](a), region)


@pytest.mark.parametrize("kind", MORE_THAN_ARRAYS)
def test_copy_in_refuses_it_too_unless_it_lies_there(region, kind):
    private, there = np.ones((4, 5)), region.full((4, 5), 1.0)
    with pytest.raises(TypeError, match="more than an array"):
        vmalloc.copy_in(MORE_THAN_ARRAYS[kind](private), region)
    x = MORE_THAN_ARRAYS[kind](there)
    if holding_of(x) is not None:
        assert vmalloc.copy_in(x, region) is x


@pytest.mark.parametrize("value", [[1, 2, 3], (1.5, 2), range(5), [[True], [False]], 7, np.float32(3), 1j])
def test_numbers_and_sequences_of_them_are_arrays(region, value):
    there = vmalloc.copy_in(value, region)
    assert facts(there) == facts(np.array(value))


# ---- no other array's bytes ----


@pytest.mark.parametrize("kind", ["padding", "aligned", "with padding within", "nested"])
def test_padding_never_shows_another_arrays_bytes(region, kind):
    dtype = DTYPES[kind]
    for a in (
        region.array(np.zeros(50, dtype)),
        region.full(50, np.zeros((), dtype), dtype),
        region.zeros(50, dtype),
    ):
        assert bytes_of(a) == bytes(a.nbytes)
    a = np.zeros((6, 50), dtype)[::2, ::3]
    for way in WAYS.values():
        assert bytes_of(way(a, region)) == bytes(a.nbytes)
    assert bytes_of(sent(a)) == bytes(a.nbytes)
