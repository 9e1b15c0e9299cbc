# SPDX-License-Identifier: MIT
"""joblib's backend: arguments and results by reference, in loky's workers."""

import gc
import multiprocessing
import os
import signal

import pytest

np = pytest.importorskip("numpy")
joblib = pytest.importorskip("joblib")
pytest.importorskip("joblib.externals.loky.process_executor")

from joblib import Parallel, delayed  # noqa: E402
from joblib.externals.loky import get_reusable_executor  # noqa: E402

import vmalloc  # noqa: E402
import vmalloc.joblib  # noqa: E402

LARGE = 300_000


@pytest.fixture(scope="module", autouse=True)
def _no_worker_outlives_these_tests():
    """Later ones ask whether anybody else could make room in a region."""
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    assert not multiprocessing.active_children()


@pytest.fixture
def region():
    with vmalloc.Region("256M") as region:
        yield region


def look(a):
    return vmalloc.is_shared(a), a.flags.writeable, float(a.sum())


def write(a):
    a[0] = 5
    return float(a[0])


def make(i):
    return np.full(LARGE, i, "f8")


def make_in_region(i):
    """With how many were copied in before."""
    a = vmalloc.joblib.region().empty(LARGE)
    a[:] = i
    return a, vmalloc.sent().copied_in


def die(i):
    if i == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(i)


def nested(i):
    with joblib.parallel_config(backend="vmalloc"):
        return sum(Parallel(n_jobs=2)(delayed(abs)(-x) for x in range(i)))


def at_rest(region):
    gc.collect()
    stats = region.stats()
    return stats.nr_busy, stats.nr_leases


def test_arguments_are_copied_in_once_a_call_and_read_only(region):
    a = np.ones(LARGE)
    with joblib.parallel_config(backend="vmalloc", region=region):
        assert Parallel(n_jobs=2)(delayed(look)(a) for _ in range(6)) == [(True, False, LARGE)] * 6
        assert region.stats().nr_busy <= 1  # a worker may hold the last one still
        assert Parallel(n_jobs=2)(delayed(look)(a[:10]) for _ in range(2)) == [(False, True, 10)] * 2


def test_results_are_references(region):
    with joblib.parallel_config(backend="vmalloc", region=region):
        results = Parallel(n_jobs=2)(delayed(make)(i) for i in range(8))
    assert all(vmalloc.region_of(x) is region and x.flags.writeable for x in results)
    assert [x[-1] for x in results] == list(range(8))
    del results
    assert at_rest(region) == (0, 0)


def test_a_task_is_told_the_region_of_its_call(region):
    with joblib.parallel_config(backend="vmalloc", region=region):
        results = Parallel(n_jobs=2)(delayed(make_in_region)(i) for i in range(4))
    assert [(vmalloc.region_of(a) is region, nr_copied, a[0]) for a, nr_copied in results] == [
        (True, 0, i) for i in range(4)
    ]
    assert vmalloc.joblib.region() is vmalloc.default_region()  # elsewhere


def test_workers_write_where_the_caller_says_so(region):
    a = region.zeros(LARGE)
    with joblib.parallel_config(backend="vmalloc", region=region, mmap_mode="r+"):
        assert Parallel(n_jobs=2)(delayed(write)(a) for _ in range(2)) == [5, 5]
    assert a[0] == 5
    a[0] = 1
    with joblib.parallel_config(backend="vmalloc", region=region, mmap_mode="c"):
        assert Parallel(n_jobs=2)(delayed(write)(a) for _ in range(2)) == [5, 5]
    assert a[0] == 1
    with (
        joblib.parallel_config(backend="vmalloc", region=region),
        pytest.raises(ValueError, match="read-only"),
    ):
        Parallel(n_jobs=2)(delayed(write)(a) for _ in range(2))


def test_calls_within_calls_work(region):
    with joblib.parallel_config(backend="vmalloc", region=region):
        assert Parallel(n_jobs=2)(delayed(nested)(i) for i in (3, 4)) == [3, 6]


def test_it_takes_turns_with_joblibs_own_backend(region):
    for backend, options in (("loky", {}), ("vmalloc", {"region": region}), ("loky", {})):
        with joblib.parallel_config(backend=backend, **options):
            results = Parallel(n_jobs=2)(delayed(make)(i) for i in range(2))
        assert all(vmalloc.is_shared(x) == (backend == "vmalloc") for x in results)


def test_a_killed_worker_leaves_nothing(region):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with joblib.parallel_config(backend="vmalloc", region=region):
        with pytest.raises(Exception, match=r"terminated|killed|SIGKILL"):
            Parallel(n_jobs=2)(delayed(die)(i) for i in range(8))
        assert Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    region.recover()
    region.expire_leases()
    assert at_rest(region) == (0, 0)
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert not {name for name in after - before if "joblib" in name}


def test_the_leak_check_sees_what_a_worker_holds():
    from vmalloc.joblib import memory_usage

    assert memory_usage(os.getpid(), force_gc=True) <= vmalloc.resident() * 1.5
