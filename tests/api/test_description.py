# SPDX-License-Identifier: MIT
"""A description from another process shows bytes of its own range or none: the check is ours, in Python's
integers, because numpy's own can overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmalloc
from vmalloc._core import load_reference, rebuild_plain, split_reference
from vmalloc.adapters import Description, holding_of
from vmalloc.adapters.registry import describe, rebuild
from vmalloc.description import decode, encode

NBYTES = 4096


@pytest.fixture(scope="module")
def owner():
    region = vmalloc.Region("1M")
    holding = holding_of(region.zeros(NBYTES, "u1"))
    yield holding
    region.close()


@pytest.mark.parametrize(
    "description",
    [
        ("<f8", (2,), None, 2**63 - 8, False),
        ("<f8", (2,), None, NBYTES - 8, False),
        ("<f8", (2,), None, -8, False),
        ("<f8", (5,), (2**62,), 0, False),
        ("|u1", (2**62 + 1,), (4,), 0, False),
        ("|u1", (2**62 + 1,), (-4,), 0, False),
        ("|u1", (2**64,), None, 0, False),
        ("|u1", (NBYTES + 1,), None, 0, False),
        ("|u1", (2,), (1, 1), 0, False),
        ("|u1", (-1,), None, 0, False),
        ("|u1", (0,), None, NBYTES + 1, False),
        ("O", (1,), None, 0, False),
        ("no dtype", (1,), None, 0, False),
        (None, (1,), None, 0, False),
        (None, (NBYTES + 1,), None, 0, False, b"", "block"),
        (None, (-1,), None, 0, False, b"", "block"),
        (None, (), None, 0, False, b"", "block"),
        (),
        ("|u1", (1,), None, 0, False, b"", "no such kind"),
    ],
)
def test_a_description_that_reaches_beyond_the_range_is_stale(owner, description):
    with pytest.raises(vmalloc.StaleReference):
        rebuild(owner, Description(*description))


FIELDS = np.dtype([("x", "f4"), ("path", "i1", (3,))])
DESCRIPTIONS = [
    Description("<f8", (2, 3), None, 8, True),
    Description("<f8", (2, 3), (-8, 16), 64, False),
    Description(FIELDS, (7,), None, 0, False),
    Description(shape=(NBYTES,), kind="block"),
    Description(extra=b"of its adapter", kind="a kind"),
]


@pytest.mark.parametrize("description", DESCRIPTIONS)
@pytest.mark.parametrize("pickled", [False, True])
def test_a_description_is_what_was_encoded(description, pickled):
    text = encode(description, may_pickle=pickled)
    assert decode(text, may_unpickle=pickled) == description


def test_every_dtype_comes_back_with_its_flags_from_a_pickle():
    aligned = np.dtype([("a", "u1"), ("b", "f8")], align=True, metadata={"unit": "m"})
    text = encode(Description(aligned, (1,)), may_pickle=True)
    dtype = decode(text, may_unpickle=True).dtype
    assert (dtype, dtype.isalignedstruct, dict(dtype.metadata)) == (aligned, True, {"unit": "m"})
    with pytest.raises(vmalloc.StaleReference, match="pickled"):
        decode(text)  # a name may have been written by anybody


def altered(text):
    """All that is cut off, and all with one byte changed."""
    yield from (text[:end] for end in range(len(text)))
    for place in range(len(text)):
        for flip in (1, 16, 128, 255):
            yield text[:place] + bytes([text[place] ^ flip]) + text[place + 1 :]
    yield text + b"x"


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_a_scribbled_description_is_stale_or_another_one_within_the_range(owner, description):
    for text in altered(encode(description)):
        try:
            x = rebuild(owner, decode(text))
        except vmalloc.StaleReference:
            continue
        assert holding_of(x) is owner


@pytest.mark.parametrize("text", [b"", b"[", b"[]", b"\xff" * 24, b"[[" * 100_000])
def test_a_scribbled_name_is_stale_and_not_a_crash(owner, text):
    with pytest.raises(vmalloc.StaleReference):
        rebuild(owner, decode(text))


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'[["<i4",[9e99]]]', b'"<i4', b"(1,", b"i4,(", b"\xff", b"O"]
)
def test_a_scribbled_dtype_is_stale_and_not_a_crash(owner, text):
    plain = encode(Description("<f8", (1,)))
    scribbled = plain[:4] + len(text).to_bytes(4, "little") + plain[8:-3] + text
    with pytest.raises(vmalloc.StaleReference):
        rebuild(owner, decode(scribbled))
    try:
        assert rebuild_plain(owner, scribbled) is None
    except vmalloc.StaleReference:
        pass


sizes = st.one_of(st.integers(0, 9), st.sampled_from([NBYTES, 2**31, 2**62, 2**63 - 1]))
steps = st.one_of(st.integers(-9, 9), st.sampled_from([-(2**62), 2**31, 2**62]))


@given(
    st.lists(st.tuples(sizes, steps), max_size=4),
    st.one_of(st.integers(-9, NBYTES + 9), st.sampled_from([2**62, 2**63 - 1])),
    st.sampled_from(["|u1", "<f8"]),
)
def test_what_is_accepted_lies_within_the_range(owner, dims, offset, dtype):
    shape, strides = tuple(n for n, _ in dims), tuple(step for _, step in dims)
    try:
        a = rebuild(owner, Description(dtype, shape, strides, offset, False))
    except vmalloc.StaleReference:
        return
    assert a.shape == shape
    if a.size:  # the corners of the box
        ends = [0]
        for n, step in dims:
            ends = [end + reach for end in ends for reach in (0, step * (n - 1))]
        assert offset + min(ends) >= 0
        assert offset + max(ends) + a.itemsize <= NBYTES
        assert holding_of(a) is owner


class Elsewhere(np.ndarray):
    """Says that it lies in a region, and does not."""

    @property
    def base(self):
        return self.said


def test_an_array_of_other_bytes_with_a_region_for_a_base_does_not_lie_within(owner):
    assert holding_of(np.frombuffer(owner, "u1")) is owner
    a = np.zeros(3).view(Elsewhere)
    a.said = owner
    assert holding_of(a) is None


@pytest.mark.parametrize("nbytes", [0, 1, 16, 48, 71, 72, 100])
def test_a_packed_reference_that_is_cut_off_is_stale(nbytes):
    for load in (load_reference, split_reference):
        with pytest.raises(vmalloc.StaleReference):
            load(b"\xff" * nbytes)


def test_descriptions_of_arrays_blocks_and_memoryviews_name_their_kind(owner):
    a = np.frombuffer(owner, "u1")
    assert describe(a[3:], owner) == Description("|u1", (NBYTES - 3,), None, 3)
    assert describe(memoryview(owner)[5:9], owner) == Description("|u1", (4,), None, 5)
    block = owner.region.alloc(10)
    assert describe(block, block) == Description(shape=(10,), kind="block")
