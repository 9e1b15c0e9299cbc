# SPDX-License-Identifier: MIT
"""Where an array lies is told in C, for what is a buffer, and in Python: both tell the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import vmalloc
from vmalloc._core import holding_below, holding_of
from vmalloc.adapters.array import lies_within
from vmalloc.adapters.registry import holding_by_adapter

PAGE = 4096
NBYTES = 2 * PAGE
COUNTS = st.integers(0, 5) | st.sampled_from([PAGE, 1 << 20])
STRIDES = st.integers(-16, 16) | st.sampled_from([-PAGE, PAGE, NBYTES, 1 << 40, -(1 << 62)])


@pytest.fixture(scope="module")
def owned():
    with vmalloc.Region("1M") as region:
        yield region.zeros(NBYTES, "u1")


@st.composite
def layouts(draw):
    """(first byte, dtype, shape, strides) of views that often reach beyond what they are views of."""
    ndim = draw(st.integers(0, 3))
    shape = tuple(draw(st.lists(COUNTS, min_size=ndim, max_size=ndim)))
    strides = tuple(draw(st.lists(STRIDES, min_size=ndim, max_size=ndim)))
    return (
        draw(st.integers(0, NBYTES - 8)),
        draw(st.sampled_from(["u1", "<f8", "S3", "u1,<i4"])),
        shape,
        strides,
    )


@given(layouts())
def test_an_array_is_held_where_python_finds_that_all_of_it_lies(owned, layout):
    first, dtype, shape, strides = layout
    start = owned[first:]
    try:
        a = as_strided(start[: np.dtype(dtype).itemsize].view(dtype)[:1], shape, strides)
    except ValueError:  # more bytes than an array of numpy's may have
        return
    expected = owned.base if lies_within(a, owned.base) else None
    assert holding_below(a) is holding_of(a) is holding_by_adapter(a) is expected


def test_what_is_no_buffer_is_looked_at_too(owned):
    days = owned[:64].view("M8[D]")
    assert holding_of(days) is holding_of(days[::-2]) is owned.base
    assert holding_of(as_strided(days, (NBYTES,), (8,))) is None


def test_blocks_memoryviews_and_private_arrays_are_told_alike():
    with vmalloc.Region("1M") as region, region.alloc(PAGE) as block:
        for x in (block, memoryview(block)[8:], np.frombuffer(block, "u2")):
            assert holding_of(x) is holding_by_adapter(x) is block
        for x in (np.empty(3), memoryview(b"private"), b"private", None, 3):
            assert holding_of(x) is holding_by_adapter(x) is None
            assert holding_below(x) is None
        del x
