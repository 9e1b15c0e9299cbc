# SPDX-License-Identifier: MIT
"""What stock delivers and what arrives with install(), ref(), a name or copy_in(), fact by fact."""

from __future__ import annotations

import gc
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


@settings(max_examples=500, deadline=None)
@given(arrays(np, BOTH), arrays(np, BOTH), st.sampled_from(list(CONTAINERS.values())))
def test_private_arrays_arrive_as_stock_delivers_them(region, a, b, container):
    message = container(a, b)
    assert facts(sent(message)) == facts(as_stock(message))


@settings(max_examples=500, deadline=None)
@given(st.data(), st.sampled_from(list(CONTAINERS.values())))
def test_arrays_of_a_region_arrive_as_stock_delivers_them_but_for_their_layout(region, data, container):
    message = container(data.draw(arrays(region)), data.draw(arrays(region)))
    assert facts(sent(message), of_layout=False) == facts(as_stock(message), of_layout=False)


@pytest.mark.parametrize("dtype", [">i4", ">U3", ">M8[s]", "<u2"])
def test_the_byte_order_is_that_of_the_sender(region, dtype):
    for make in (np, region):
        a = filled(make, (3, 4), np.dtype(dtype), "C", 1)
        assert (sent(a).dtype, sent(a).tobytes()) == (a.dtype, a.tobytes())


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
NO_NAME = ("of ml_dtypes", "numbers with fields")  # of dtypes that JSON does not keep


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
        assert facts(there) == facts(as_stock(a))


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
