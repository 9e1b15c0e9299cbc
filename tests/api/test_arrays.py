# SPDX-License-Identifier: MIT
"""Arrays, views, copies; blocks as buffers."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import resource
from functools import partial

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest

import vmalloc
from vmalloc._core import stream_rows
from vmalloc.facts import MAPPED_AROUND_BYTES, STREAMED_BYTES

POINT = np.dtype([("x", "f4"), ("id", "u2"), ("path", "i1", (3,))])
PADDED = np.dtype([("a", "u1"), ("b", "f8"), ("c", [("d", "i2"), ("e", "M8[ms]")])], align=True)
DTYPES = [
    "u1",
    ">i4",
    "f8",
    "c16",
    "?",
    "M8[ns]",
    "U7",
    "S5",
    "V3",
    "f2",
    POINT,
    PADDED,
    np.float32,
    bool,
    None,
]


@pytest.fixture
def region():
    region = vmalloc.Region("16M")
    yield region
    for name in region:
        del region[name]
    assert_at_rest(region)
    assert region.stats().busy_pages == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [7, (3, 4), (2, 0, 5), (), 0, [2, 3]], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_empty_is_what_numpy_makes(region, dtype, shape, order):
    ours, theirs = region.empty(shape, dtype, order), np.empty(shape, dtype, order)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.strides == theirs.strides or not ours.size
    assert type(ours) is np.ndarray
    assert ours.flags.writeable
    assert ours.flags.aligned
    assert vmalloc.is_shared(ours)
    assert vmalloc.region_of(ours) is region
    zeros = region.zeros(shape, dtype, order)
    assert (zeros == np.zeros(shape, dtype, order)).all()
    assert zeros.strides == ours.strides


def numpy_makes(shape, dtype, order):
    """By its constructor, of a buffer; the error it raises, for more dimensions than this numpy has."""
    try:
        return np.ndarray(shape, dtype, bytearray(1 << 16), order=order)
    except (TypeError, ValueError) as e:
        return type(e)


@pytest.mark.parametrize("dtype", [*DTYPES, ("f4", (2, 3)), "V0"], ids=str)
def test_empty_is_what_numpy_s_constructor_makes_of_a_buffer(region, dtype):
    shapes = [(3, 4), (2, 0, 5), (), (1, 6), (2,) * 5, (1,) * 33, (1,) * 64, (1,) * 65]
    for shape, order in itertools.product(shapes, "CF"):
        theirs = numpy_makes(shape, dtype, order)
        if isinstance(theirs, type):
            with pytest.raises(theirs):
                region.empty(shape, dtype, order)
            continue
        ours = region.empty(shape, dtype, order)
        assert (ours.dtype, ours.shape, ours.strides) == (theirs.dtype, theirs.shape, theirs.strides)
        assert str(ours.flags) == str(theirs.flags)
        assert bytes(memoryview(ours.base)[: ours.nbytes]) == ours.tobytes(order)


def test_full_array_and_empty_like(region):
    assert region.full((2, 2), 7).dtype == int
    assert region.full(3, 2.5, "i4").tolist() == [2, 2, 2]
    assert region.full(2, "ab").tolist() == ["ab", "ab"]
    source = np.asfortranarray(np.arange(12).reshape(3, 4))
    copied = region.array(source)
    assert (copied == source).all()
    assert copied.flags.c_contiguous
    assert region.array([1, 2], "f4").dtype == np.float32
    like = region.empty_like(source)
    assert (like.shape, like.dtype, like.strides) == (source.shape, source.dtype, source.strides)
    assert region.empty_like(source, "u1").dtype == np.uint8


def test_an_array_takes_whole_pages_from_a_page_on(region):
    a = region.empty(PAGE + 1, "u1")
    assert region.stats().busy_pages == 2
    assert a.ctypes.data % PAGE == 0


def test_views_keep_the_memory(region):
    a = region.full((100, 100), 3, "u1")
    view = a[10:20, ::2].T
    owner = a.base
    del a
    gc.collect()
    assert (view == 3).all()
    assert vmalloc.region_of(view) is region
    assert vmalloc.is_shared(view)
    assert type(owner).__name__ == "ArrayOwner"
    assert not hasattr(owner, "release")
    del owner
    assert region.stats().busy_pages == 3
    del view
    assert region.stats().busy_pages == 0


def test_private_memory_lies_in_no_region():
    for x in (np.zeros(3), [1], b"abc", None, memoryview(b"abc"), 3):
        assert vmalloc.region_of(x) is None
        assert not vmalloc.is_shared(x)


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, copy.copy, np.copy, lambda a: pickle.loads(pickle.dumps(a, 5))]
)
def test_plain_copies_are_by_value(region, copier):
    a = region.array(np.arange(1000))
    b = copier(a)
    assert not vmalloc.is_shared(b)
    b[0] = 77
    assert a[0] == 0
    assert (a[1:] == b[1:]).all()


def test_a_block_in_a_reference_cycle_is_collected_and_freed(region):
    cycle = [region.alloc(PAGE), region.zeros(10), vmalloc.ref(region.zeros(20))]
    cycle.append(cycle)
    cycle.append(region.alloc(PAGE))
    kept = region.alloc(PAGE)
    del cycle
    gc.collect()
    assert region.stats().busy_pages == 1
    del kept


def test_a_region_in_a_cycle_with_its_block_ends():
    class Tagged(vmalloc.Region):
        me: vmalloc.Region
        block: vmalloc.Block

    region = Tagged("1M", name="cycle")
    region.me, region.block = region, region.alloc(PAGE)
    fd = region.fileno()
    del region
    gc.collect()
    with pytest.raises(vmalloc.RegionUnavailable):
        vmalloc.Region.attach(fd)


# ---- blocks ----


def test_a_block_is_a_buffer_that_cannot_be_released_under_a_view(region):
    block = region.alloc(1000)
    a = np.frombuffer(block, "u2")
    a[:] = 513
    with pytest.raises(BufferError, match="1 views"):
        block.release()
    with pytest.raises(BufferError):
        region.free_bulk([block])
    assert bytes(block)[:4] == b"\1\2\1\2"
    del a
    with memoryview(block) as view:
        assert (view.format, view.shape, view.readonly, view.contiguous) == ("B", (1000,), False, True)
    block.release()
    assert block.released


def test_a_block_is_a_dlpack_tensor(region):
    block = region.alloc(PAGE)
    memoryview(block)[:] = b"\7" * PAGE
    a = np.from_dlpack(block)
    assert (a.dtype, a.shape, int(a.sum())) == (np.dtype("u1"), (PAGE,), 7 * PAGE)
    with pytest.raises(BufferError):
        block.release()
    del a
    capsule = block.__dlpack__()
    with pytest.raises(BufferError):
        block.release()
    del capsule
    for wrong in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            block.__dlpack__(**wrong)
    assert block.__dlpack_device__() == (1, 0)
    block.release()


def test_leaving_a_block_releases_it(region):
    with region.alloc(10) as block:
        assert len(block) == 10
    assert block.released
    with pytest.raises(TypeError, match=r"vmalloc\.ref"):
        pickle.dumps(block)


def test_a_block_outlives_the_name_of_its_region():
    block = vmalloc.Region("1M").alloc(100)
    gc.collect()
    memoryview(block)[:] = b"z" * 100
    assert bytes(block) == b"z" * 100
    assert block.region.stats().busy_pages == 1


# ---- named references ----


def test_a_name_keeps_the_memory_until_deleted(region):
    region["a"] = region.full(PAGE, 4, "u1")
    gc.collect()
    assert "a" in region
    assert list(region) == region.names() == ["a"]
    assert len(region) == 1
    a = region["a"]
    a[0] = 9
    assert region["a"][0] == 9
    del region["a"]
    assert a[0] == 9
    assert region.stats().busy_pages == 1
    del a
    assert region.stats().busy_pages == 0
    assert not list(region)
    assert region  # a region without names is still true
    for use in (lambda: region["a"], lambda: region.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            use()


def test_a_name_can_be_given_again(region):
    for i in range(5):
        region["x"] = region.full(10, i)
    assert region["x"].tolist() == [4] * 10
    assert region.stats().busy_pages == 1
    kept = region["x"]
    region["y"] = kept
    region["x"] = kept
    del region["x"]
    assert region["y"].tolist() == [4] * 10


def test_what_lies_elsewhere_is_copied_in_once(region):
    source = np.arange(5)
    region["é日本"] = source
    source[0] = 99
    assert region["é日本"].tolist() == [0, 1, 2, 3, 4]
    region["list"] = [[1, 2], [3, 4]]
    assert region["list"].shape == (2, 2)


def test_a_named_block_is_a_memoryview(region):
    block = region.alloc(1000)
    memoryview(block)[:] = b"b" * 1000
    region["block"] = block
    block.release()
    assert bytes(region["block"]) == b"b" * 1000


VIEWS = {
    "whole": lambda a: a,
    "strided": lambda a: a[2:40:3, ::2],
    "transposed": lambda a: a.T,
    "backwards": lambda a: a[::-1, ::-1],
    "one": lambda a: a[3, 4:5],
    "scalar": lambda a: a[3, 4:5].reshape(()),
    "empty": lambda a: a[5:5],
    "broadcast": lambda a: np.broadcast_to(a[0], (7, 30)),
}


@pytest.mark.parametrize("dtype", ["u2", ">f4", POINT, PADDED, "U3"], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_names_and_references_keep_a_view_as_it_is(region, dtype, view):
    a = region.zeros((50, 30), dtype)
    a.view("u1").reshape(-1)[:] = np.arange(a.nbytes, dtype="u1") if a.dtype.kind != "U" else 0
    seen = VIEWS[view](a)
    region["v"] = seen
    for other in (region["v"], pickle.loads(pickle.dumps(vmalloc.ref(seen)))):
        assert (other.dtype, other.shape, other.strides) == (seen.dtype, seen.shape, seen.strides)
        assert other.flags.writeable == seen.flags.writeable
        assert dtype is PADDED or other.tobytes() == seen.tobytes()  # numpy does not copy padding
        assert other.ctypes.data == seen.ctypes.data or seen.size == 0


def test_read_only_stays_read_only(region):
    a = region.array([1, 2, 3])
    a.flags.writeable = False
    region["a"] = a
    for other in (region["a"], pickle.loads(pickle.dumps(vmalloc.ref(a)))):
        with pytest.raises(ValueError, match="read-only"):
            other[0] = 1


# ---- references ----


def test_a_reference_loads_any_number_of_times_and_shares_writes(region):
    a = region.zeros(10, "i4")
    ref = vmalloc.ref(a)
    assert ref.get() is a
    for protocol in range(2, 6):
        pickle.loads(pickle.dumps(ref, protocol))[protocol] = protocol
    assert a.tolist() == [0, 0, 2, 3, 4, 5, 0, 0, 0, 0]
    assert "Ref to array" in repr(ref)


def test_a_reference_to_a_block_loads_as_a_block(region):
    block = region.alloc(5000)
    memoryview(block)[:5] = b"hello"
    loaded = pickle.loads(pickle.dumps(vmalloc.ref(block)))
    assert type(loaded) is vmalloc.Block
    assert (bytes(loaded)[:5], loaded.nbytes, loaded.offset) == (b"hello", 5000, block.offset)
    block.release()
    assert bytes(loaded)[:5] == b"hello"
    loaded.release()
    assert region.stats().busy_pages == 0


def test_a_reference_to_a_part_of_a_block_loads_as_an_array(region):
    block = region.alloc(5000)
    memoryview(block)[:5] = b"hello"
    part = pickle.loads(pickle.dumps(vmalloc.ref(memoryview(block)[1:3])))
    assert bytes(part) == b"el"


def test_what_lies_in_no_region_is_copied_into_the_default_one(monkeypatch):
    monkeypatch.setenv("VMALLOC_DEFAULT_SIZE", "32M")
    monkeypatch.setattr(vmalloc.region, "_default", None)
    source = np.arange(6)
    ref = vmalloc.ref(source)
    assert vmalloc.region_of(ref.get()) is vmalloc.default_region()
    assert vmalloc.default_region().nr_pages == (32 << 20) // PAGE
    source[0] = 5
    assert pickle.loads(pickle.dumps(ref)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("nbytes", [1, 15, 16, 63, 64, 65, 1000, 4099])
@pytest.mark.parametrize("offset", [0, 1, 17, 64])
def test_rows_are_copied_one_behind_the_other(nbytes, offset):
    rows = np.random.default_rng(nbytes).integers(0, 256, (3, nbytes + 1), "u1")[:, 1:]
    with vmalloc.Region("1M") as region:
        into = region.zeros(offset + 3 * nbytes + 1, "u1")
        stream_rows(into, offset, [row.ctypes.data for row in rows], nbytes)
        assert (into[offset:-1] == rows.ravel()).all()
        assert into[-1] == 0
        assert not into[:offset].any()
        del into


def faults_of(work):
    """Page faults of `work` in a new child, which has nothing of the region mapped yet."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            work()
            os.write(write_end, str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    nr = int(os.read(read_end, 100))
    os.close(read_end)
    os.close(write_end)
    return nr


def test_a_new_process_writes_rows_to_warm_pages_with_a_fault_for_many_of_them():
    nr_pages = 1024
    with vmalloc.Region("16M") as region:
        into, row = region.full(nr_pages * PAGE, 1, "u1"), np.ones(nr_pages * PAGE, "u1")
        reading = faults_of(partial(bytes, into[::PAGE]))
        writing = faults_of(partial(stream_rows, into, 0, [row.ctypes.data], row.nbytes))
        del into
    if reading > nr_pages // 2:
        pytest.skip("this system maps one page at a fault, also of those that are there")
    assert writing < nr_pages // 2


AROUND = MAPPED_AROUND_BYTES


@pytest.mark.parametrize("nbytes", [AROUND - 1, AROUND, 3 * AROUND + 77])
@pytest.mark.parametrize("offset", [0, 3, AROUND - 1])
def test_rows_across_what_is_mapped_at_once_are_copied(nbytes, offset):
    row = np.random.default_rng(nbytes).integers(0, 256, nbytes, "u1")
    with vmalloc.Region("1M") as region:
        into = region.zeros(offset + nbytes + 1, "u1")
        stream_rows(into, offset, [row.ctypes.data], nbytes)
        assert (into[offset:-1] == row).all()
        assert not into[:offset].any()
        assert into[-1] == 0
        del into


def test_rows_that_do_not_fit_are_refused():
    into, row = np.zeros(100, "u1"), np.ones(64, "u1")
    for nr, offset, nbytes in ((2, 0, 64), (1, 37, 64), (1, -1, 64), (1, 0, 0), (1, 0, -1), (1, 101, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            stream_rows(into, offset, [row.ctypes.data] * nr, nbytes)
    with pytest.raises((BufferError, ValueError)):
        stream_rows(bytes(100), 0, [row.ctypes.data], 64)
    assert not into.any()


def large_arrays():
    """Just as large as is copied past the caches, and a little larger."""
    numbers = np.arange(STREAMED_BYTES // 8 + 4096, dtype="f8")
    padded = np.zeros(STREAMED_BYTES // PADDED.itemsize + 1, PADDED)
    padded.view("u1")[:] = np.arange(padded.nbytes) % 251
    square = numbers[: 725 * 724].reshape(725, 724)
    return {
        "exact": numbers[: STREAMED_BYTES // 8],
        "unaligned": numbers.view("u1")[3:],
        "padded": padded,
        "fortran": np.asfortranarray(square),
        "turned": square.T,
        "strided": np.arange(STREAMED_BYTES // 2)[::2],
        "dates": numbers.astype("M8[s]"),
        "readonly": np.frombuffer(numbers.tobytes(), "f8"),
    }


@pytest.mark.parametrize("name", list(large_arrays()))
def test_a_large_copy_has_every_byte_and_the_order_of_its_source(name):
    source = large_arrays()[name]
    with vmalloc.Region("16M") as region:
        copy = vmalloc.copy_in(source, region)
        assert vmalloc.region_of(copy) is region
        assert copy.tobytes("A") == source.tobytes("A")
        assert (copy.dtype, copy.shape) == (source.dtype, source.shape)
        assert name == "strided" or copy.flags.f_contiguous == source.flags.f_contiguous
        assert copy.flags.writeable
        del copy
