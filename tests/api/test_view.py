# SPDX-License-Identifier: MIT
"""A description from another process shows bytes of its own range or none: the check is ours, in Python's
integers, because numpy's own can overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmalloc
from vmalloc._core import load_plain
from vmalloc.array import holding_of
from vmalloc.view import from_json, lies_within, rebuild

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
        (NBYTES + 1,),
        (),
    ],
)
def test_a_description_that_reaches_beyond_the_range_is_stale(owner, description):
    with pytest.raises(vmalloc.StaleReference):
        rebuild(owner, description)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"[1e999]",
        b"[[" * 100_000,
        b'["<f8",[2],null]',
        b'[["<i4",[9e99]],[1],null,0,false]',
    ],
)
def test_a_scribbled_name_is_stale_and_not_a_crash(owner, text):
    with pytest.raises(vmalloc.StaleReference):
        rebuild(owner, from_json(text))


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
        a = rebuild(owner, (dtype, shape, strides, offset, False))
    except vmalloc.StaleReference:
        return
    assert a.shape == shape
    if a.size:  # the corners of the box
        ends = [0]
        for n, step in dims:
            ends = [end + reach for end in ends for reach in (0, step * (n - 1))]
        assert offset + min(ends) >= 0
        assert offset + max(ends) + a.itemsize <= NBYTES
        assert lies_within(a, owner)


def test_an_array_of_other_bytes_with_a_region_for_a_base_does_not_lie_within(owner):
    assert lies_within(np.frombuffer(owner, "u1"), owner)
    assert not lies_within(np.zeros(3), owner)


@pytest.mark.parametrize("nbytes", [0, 1, 16, 60, 71])
def test_a_packed_reference_that_is_cut_off_is_stale(nbytes):
    with pytest.raises(vmalloc.StaleReference):
        load_plain(b"\xff" * nbytes)
