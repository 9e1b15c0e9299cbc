# SPDX-License-Identifier: MIT
"""What lies in a region is found by its address, whatever keeps it; numpy's own arrays, too."""

import asyncio
import ctypes
import os
import pickle
import subprocess
import sys
import threading
from multiprocessing.reduction import ForkingPickler

import pytest

np = pytest.importorskip("numpy")

import vmalloc  # noqa: E402
from vmalloc._core import holding_at  # noqa: E402


@pytest.fixture
def region():
    with vmalloc.Region("64M") as region:
        yield region


@pytest.fixture
def installed(region):
    vmalloc.install(region)
    yield region
    vmalloc.uninstall()


def round_trip(x):
    return pickle.loads(ForkingPickler.dumps(x))


def test_what_other_libraries_make_of_an_array_is_still_in_the_region(region):
    a = region.zeros(100_000)
    as_c = (ctypes.c_double * len(a)).from_buffer(a)
    for view in (
        np.from_dlpack(a),
        np.from_dlpack(a)[50_000:],
        as_c,
        np.ctypeslib.as_array(as_c),
        memoryview(as_c),
    ):
        assert vmalloc.is_shared(view)
        assert vmalloc.region_of(view) is region


def test_what_is_found_goes_by_reference(installed):
    a = installed.zeros(100_000)
    loaded = round_trip(np.from_dlpack(a)[::-2])
    loaded[0] = 7
    assert a[-1] == 7
    assert len(loaded) == 50_000


def test_what_does_not_lie_in_one_range_is_private(region):
    a, b = region.alloc(4096), region.alloc(4096)
    low = min(a.address, b.address)
    assert holding_at(low, 4096, a) is not None
    assert holding_at(low, 4097, a) is None  # into the next range
    assert holding_at(low, 0, a) is None
    assert not vmalloc.is_shared(np.zeros(10))
    assert not vmalloc.is_shared(b"bytes")
    assert not vmalloc.is_shared(np.zeros(10, "M8[s]"))


def test_a_borrowed_reference_keeps_what_keeps_the_pages(region):
    a = region.zeros(100_000)
    reference = vmalloc.ref(np.from_dlpack(a))
    del a
    assert pickle.loads(pickle.dumps(reference)).sum() == 0
    del reference
    assert region.stats().nr_busy == 0


def test_numpys_large_arrays_are_made_in_the_region(region):
    with region.numpy_arrays():
        large, small = np.arange(100_000) * 2.0, np.zeros(100)
        zeros, grown = np.zeros(100_000), np.fromiter(range(100_000), "f8")
    after = np.zeros(100_000)
    assert [vmalloc.is_shared(x) for x in (large, zeros, grown, small, after)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert large.base is None
    assert (zeros.sum(), grown.sum(), large[-1]) == (0, sum(range(100_000)), 199_998)
    del large, zeros, grown
    assert region.stats().nr_busy == 0


def test_they_go_by_reference_whatever_their_size(installed):
    with installed.numpy_arrays(min_size=1):
        a = np.zeros(10)
    round_trip(a)[3] = 5
    assert a[3] == 5


OBJECTS = [
    lambda: np.array([{"n": i} for i in range(10)], dtype=object),
    lambda: np.array([(i, str(i)) for i in range(10)], [("n", "i4"), ("text", object)]),
    lambda: np.array([f"text {i} that is no longer short" for i in range(10)], np.dtypes.StringDType()),
]


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy before 2.0 has no such text")
@pytest.mark.parametrize("make", OBJECTS, ids=["objects", "records", "texts"])
def test_arrays_of_pointers_go_by_value_though_numpy_made_them_in_the_region(installed, make):
    with installed.numpy_arrays(min_size=1):
        a = make()
    assert installed.stats().nr_busy == 1
    assert not vmalloc.is_shared(a)
    for sent in (a, a[::2], a.reshape(2, 5).T):
        np.testing.assert_array_equal(round_trip(sent), sent)
    assert installed.stats().nr_leases == 0


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy before 2.0 has no such text")
@pytest.mark.parametrize("make", OBJECTS, ids=["objects", "records", "texts"])
def test_references_to_arrays_of_pointers_are_refused_wherever_those_lie(region, make):
    with region.numpy_arrays(min_size=1):
        a = make()
    for refer in (vmalloc.ref, vmalloc.copy_in, lambda x: region.__setitem__("name", x)):
        with pytest.raises(TypeError, match="Python objects"):
            refer(a)
    with pytest.raises(TypeError):
        vmalloc.ref(memoryview(np.empty(5, object)))
    del a
    assert region.stats().nr_busy == 0


def test_a_memoryview_of_records_lies_in_the_region_whatever_their_fields_are_called(region):
    with region.numpy_arrays(min_size=1):
        numbers, pointers = np.zeros(5, [("O", "i4")]), np.zeros(5, [("i", object)])
    assert [vmalloc.is_shared(memoryview(a)) for a in (numbers, pointers)] == [True, False]


def test_zeros_are_zeros_where_others_were(region):
    with region.numpy_arrays():
        for value in range(1, 5):
            assert not np.zeros(30_000).any()
            np.full(30_000, value)


def test_resize_keeps_the_bytes_and_the_readers_old_ones(installed):
    with installed.numpy_arrays():
        a = np.arange(20_000.0)
    sent = round_trip(a)
    a.resize(400_000, refcheck=False)
    assert vmalloc.is_shared(a)
    a[:] += 1
    assert a[19_999] == 20_000
    assert sent[19_999] == 19_999
    a.resize(10, refcheck=False)
    assert not vmalloc.is_shared(a)
    assert a[9] == 10


def test_contexts_nest_and_belong_to_their_thread(region):
    other = vmalloc.Region("64M")
    elsewhere = []
    with region.numpy_arrays():
        with other.numpy_arrays():
            inner = np.zeros(100_000)
        outer = np.zeros(100_000)
        thread = threading.Thread(target=lambda: elsewhere.append(np.zeros(100_000)))
        thread.start()
        thread.join()
    assert vmalloc.region_of(inner) is other
    assert vmalloc.region_of(outer) is region
    assert not vmalloc.is_shared(elsewhere[0])


def test_contexts_belong_to_their_task_where_several_take_turns(region):
    """One object in two tasks: the second enters before the first leaves."""
    other = vmalloc.Region("64M")
    same = region.numpy_arrays()
    entered, left = asyncio.Event(), asyncio.Event()

    def there():
        a = np.zeros(100_000)
        return vmalloc.region_of(a) if vmalloc.is_shared(a) else None

    async def first():
        with other.numpy_arrays():
            with same:
                await entered.wait()
            after = there()
        left.set()
        return after, there()

    async def second():
        with same:
            entered.set()
            await left.wait()
            within = there()
        return within, there()

    async def both():
        return await asyncio.gather(first(), second())

    assert asyncio.run(both()) == [(other, None), (region, None)]


def test_a_full_region_is_no_error_for_code_that_knows_nothing_of_it():
    with vmalloc.Region("1M") as region, region.numpy_arrays():
        assert np.ones(1 << 20).sum() == 1 << 20


def test_arrays_outlive_the_context_and_close():
    region = vmalloc.Region("64M")
    with region.numpy_arrays():
        a = np.ones(100_000)
    region.close()
    del region
    assert a.sum() == 100_000
    a = a * 2
    assert a.sum() == 200_000


def test_a_forked_child_has_its_parents_arrays(region):
    with region.numpy_arrays():
        a, b = np.ones(100_000), np.ones(100_000)
    pid = os.fork()
    if pid == 0:
        del a
        good = b.sum() == 100_000 and vmalloc.is_shared(b)
        region.drop_inherited()
        with region.numpy_arrays():
            mine = np.full(100_000, 3.0)
        del b  # its pages may be others' by now
        os._exit(0 if good and mine.sum() == 300_000 else 1)
    del b
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert a.sum() == 100_000
    region.recover()
    assert region.stats().nr_busy == 1


@pytest.mark.parametrize("is_resized", [False, True])
def test_what_a_child_let_go_of_takes_nothing_away_from_what_lies_there_now(region, is_resized):
    """The child's new array gets the pages of one that it inherited and let go of; its parent freed it."""
    with region.numpy_arrays():
        theirs = np.ones(100_000)
    there = theirs.ctypes.data
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        region.drop_inherited()
        os.read(told, 1)
        with region.numpy_arrays():
            mine = np.full(100_000, 3.0)
            is_same_place = mine.ctypes.data == there
            if is_resized:
                theirs.resize(100_001, refcheck=False)
                theirs[:] = 4
            del theirs
            others = np.full(100_000, 5.0)
        good = is_same_place and (mine == 3).all() and (others == 5).all()
        del mine, others
        os._exit(0 if good and region.stats().nr_busy == 0 else 1)
    del theirs
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(told)
    os.close(tell)


@pytest.mark.parametrize("are_some_made_before", [False, True])
def test_a_child_that_gave_the_address_space_back_makes_and_frees_arrays_there(are_some_made_before):
    """The mapping is gone, and the handler is in force: numpy's own memory lies where the region was."""
    region, nbytes = vmalloc.Region("1G"), 256 << 20
    with region.numpy_arrays():
        if are_some_made_before:
            np.ones(100_000)
        pid = os.fork()
        if pid == 0:
            is_unmapped, where = region._unmap(), set()
            for _ in range(3):
                a = np.empty(nbytes, "u1")
                where.add(a.ctypes.data)
                a[:3] = 1, 2, 3
                a.resize(nbytes // 16, refcheck=False)
                is_whole = a[:3].tolist() == [1, 2, 3]
                del a
            os._exit(0 if is_unmapped and is_whole and len(where) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_arrays_may_be_there_at_the_interpreters_end():
    text = (
        "import vmalloc, numpy as np\n"
        "r = vmalloc.Region('64M'); c = r.numpy_arrays(); c.__enter__()\n"
        "a = np.ones(100_000); np.kept = np.ones(100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_resident_counts_what_is_held_and_not_what_was_freed(region):
    before = vmalloc.resident()
    a = region.empty(4 << 20, "u1")
    a[:] = 1
    held = vmalloc.resident() - before
    del a
    freed = vmalloc.resident() - before
    assert 4 << 20 <= held < 6 << 20
    assert freed < held - (3 << 20)
