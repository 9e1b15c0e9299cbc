# SPDX-License-Identifier: MIT
"""joblib's backend: arguments and results by reference, in loky's workers."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pytest

np = pytest.importorskip("numpy")
joblib = pytest.importorskip("joblib")
pytest.importorskip("joblib.externals.loky.process_executor")

from joblib import Parallel, delayed  # noqa: E402
from joblib.externals.loky import get_reusable_executor  # noqa: E402
from tests.joblib_suites import compare  # noqa: E402

import vmalloc  # noqa: E402
import vmalloc.joblib  # noqa: E402
from vmalloc.adapters import registry  # noqa: E402

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


def comes_to_rest(region):
    """By itself: nobody asks for it. The dead are looked for now and then, and so are messages."""
    ends = time.monotonic() + 60
    while at_rest(region) != (0, 0) and time.monotonic() < ends:
        time.sleep(0.05)
    return at_rest(region) == (0, 0)


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
    assert comes_to_rest(region)
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert not {name for name in after - before if f"_{os.getpid()}_" in name}  # others may use joblib, too


def slow_look(a, name):
    """Keeps its worker busy until there is a file of that name."""
    while not os.path.exists(name):
        time.sleep(0.01)
    return look(a)


def test_calls_of_two_threads_hold_their_own_arguments(region, tmp_path):
    """The second one begins while tasks of the first are on their way, and ends before these are loaded."""
    gate, results = tmp_path / "gate", []

    def first():
        tasks = [delayed(slow_look)(np.full(LARGE, i, "f8"), str(gate)) for i in range(20)]
        with joblib.parallel_config(backend="vmalloc", region=region):
            results.extend(Parallel(n_jobs=2, batch_size=1, pre_dispatch="all")(tasks))

    thread = threading.Thread(target=first)
    thread.start()
    try:
        while region.stats().nr_busy < 3:  # so many are on their way; the last ones are sent later
            time.sleep(0.01)
        with joblib.parallel_config(backend="vmalloc", region=region), Parallel(n_jobs=2):
            pass
    finally:
        gate.touch()
        thread.join()
    assert results == [(True, False, LARGE * i) for i in range(20)]


def make_and_look(i):
    a = np.full(LARGE, i, "f8")
    return a, vmalloc.is_shared(a), vmalloc.sent().copied_in


def test_on_request_numpy_makes_what_tasks_make_in_the_region(region):
    with joblib.parallel_config(backend="vmalloc", region=region, numpy_arrays=True):
        results = Parallel(n_jobs=2)(delayed(make_and_look)(i) for i in range(6))
    assert [(a[-1], *rest) for a, *rest in results] == [(i, True, 0) for i in range(6)]
    assert all(vmalloc.region_of(a) is region and a.flags.writeable for a, *_ in results)
    with joblib.parallel_config(backend="vmalloc", region=region, numpy_arrays="16M"):
        results = Parallel(n_jobs=2)(delayed(make_and_look)(i) for i in range(2))
    assert [rest[0] for _, *rest in results] == [False, False]  # smaller than that
    with joblib.parallel_config(backend="vmalloc", region=region):
        results = Parallel(n_jobs=2)(delayed(make_and_look)(i) for i in range(2))
    assert [rest[0] for _, *rest in results] == [False, False]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mmap_mode": "w"}, ValueError, "'r', 'r\\+', 'w\\+', 'c', None, not 'w'"),
        ({"region": "64M"}, TypeError, "must be a vmalloc.Region, not '64M'"),
        ({"numpy_arrays": "much"}, ValueError, "much"),
        ({"timeout": 5}, ValueError, "idle_worker_timeout"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, says):
    with joblib.parallel_config(backend="vmalloc", **options), pytest.raises(error, match=says):
        Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(2))


def test_a_closed_region_is_refused():
    region = vmalloc.Region("16M")
    region.close()
    with (
        joblib.parallel_config(backend="vmalloc", region=region),
        pytest.raises(vmalloc.RegionClosed, match="closed"),
    ):
        Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(2))


def test_in_a_full_region_arguments_and_results_go_by_value():
    with vmalloc.Region("1M") as region, joblib.parallel_config(backend="vmalloc", region=region):
        filling = region.empty(100_000)
        with pytest.warns(RuntimeWarning, match="arguments go by value"):
            assert (
                Parallel(n_jobs=2)(delayed(look)(np.ones(LARGE)) for _ in range(2))
                == [(False, True, LARGE)] * 2
            )
        del filling


def look_at_each(values):
    return [
        (type(x).__name__, x.dtype.str, x.shape, x.flags.writeable, x.ravel()[:9].tolist()) for x in values
    ]


def test_odd_arrays_arrive_as_under_joblibs_own_backend(region):
    """Not contiguous, without dimensions, empty, of objects, masked, mapped, of another byte order."""
    masked = np.ma.masked_array(np.arange(LARGE, dtype="f8"), np.arange(LARGE) % 2)
    values = [
        np.ones((2, LARGE))[:, ::2],
        np.asfortranarray(np.arange(2.0 * LARGE).reshape(2, LARGE)),
        np.array(3.5),
        np.empty(0),
        np.array(["a", None], "O"),
        masked,
        np.arange(LARGE, dtype=">f8"),
        np.arange(6, dtype=">i4"),
        np.zeros(LARGE, [("a", "i4"), ("b", "f8")]),
    ]
    came = {}
    for backend, options in (("loky", {}), ("vmalloc", {"region": region})):
        with joblib.parallel_config(backend=backend, **options):
            seen, back = Parallel(n_jobs=2)([delayed(look_at_each)(values), delayed(list)(values)])
        came[backend] = [tuple(x) for x in seen]
        for x, value in zip(back, values, strict=True):
            assert type(x) in (type(value), np.memmap)
            assert (x.dtype, x.shape) == (value.dtype, value.shape)
            assert (np.ma.getdata(x) == np.ma.getdata(value)).all()
    stock = [("ndarray" if kind == "memmap" else kind, *rest) for kind, *rest in came["loky"]]
    assert came["vmalloc"] == stock


def look_at_map(a):
    return type(a).__name__, getattr(a, "filename", None), float(a[-1])


def test_a_file_that_the_program_mapped_goes_by_its_name(region, tmp_path):
    """Both ways, and parts of it: none of it is copied."""
    name = str(tmp_path / "mapped")
    mapped = np.memmap(name, "f8", "w+", shape=LARGE)
    mapped[:] = 1
    with joblib.parallel_config(backend="vmalloc", region=region):
        seen = Parallel(n_jobs=2)(delayed(look_at_map)(a) for a in (mapped, mapped[10:]))
        (back,) = Parallel(n_jobs=2)(delayed(np.asanyarray)(mapped) for _ in range(1))
    assert seen == [("memmap", name, 1.0)] * 2
    assert look_at_map(back) == ("memmap", name, 1.0)


SCRIPT = """
    import os, signal, sys
    import numpy as np
    import joblib
    import vmalloc.joblib

    def work(a, i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return a * i

    if __name__ == "__main__":
        a = np.ones(300_000)
        with joblib.parallel_config(backend="vmalloc"):
            for first in (10, 0, 10):
                try:
                    results = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(a, first + i) for i in range(8))
                    assert [x[-1] for x in results] == list(range(10, 18))
                except Exception as e:
                    assert first == 0, e
"""


def test_a_program_whose_worker_was_killed_leaves_no_file(tmp_path):
    """In the folder that joblib is told to use in place of the temporary one and of /dev/shm."""
    script, temporary = tmp_path / "script.py", tmp_path / "temporary"
    script.write_text(textwrap.dedent(SCRIPT))
    temporary.mkdir()
    env = os.environ | {"TMPDIR": str(temporary), "JOBLIB_TEMP_FOLDER": str(temporary)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(temporary) == []


def large_and_gone(i):
    return os.getpid(), np.full(1 << 19, i, "f8").sum(), vmalloc.joblib.region().zeros(1 << 19)


def test_no_worker_is_ended_by_the_leak_check(region):
    """Each of them touches far more of the region than it may grow by; loky looks at most once a second."""
    from joblib.externals.loky import process_executor

    assert process_executor._MAX_MEMORY_LEAK_SIZE <= 300 << 20
    pids, until = set(), time.monotonic() + 3
    with joblib.parallel_config(backend="vmalloc", region=region):
        while time.monotonic() < until or len(pids) < 2:
            pids.update(pid for pid, *_ in Parallel(n_jobs=2)(delayed(large_and_gone)(i) for i in range(16)))
    assert len(pids) == 2


def fit(i):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    x = np.random.default_rng(i).normal(size=(2000, 10))
    search = GridSearchCV(RandomForestClassifier(3, random_state=0), {"max_depth": [2, 3]}, cv=2, n_jobs=2)
    return search.fit(x, x[:, 0] > x[:, 1]).cv_results_["mean_test_score"].tolist()


def test_scikit_learn_finds_the_same(region):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    found = []
    for backend, options in (("loky", {}), ("vmalloc", {"region": region, "max_nbytes": 1000})):
        with joblib.parallel_config(backend=backend, **options):
            found.append(fit(1))
    assert found[0] == found[1]
    assert at_rest(region) == (0, 0)


def test_without_joblib_the_error_says_which_one_works(tmp_path):
    for text in ("raise ImportError('no module')", ""):  # missing, or without what is needed
        (tmp_path / "joblib.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", "import vmalloc.joblib"],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "ImportError: vmalloc.joblib needs joblib 1.4 or newer" in done.stderr


def test_an_error_of_a_task_is_raised_and_the_region_is_left_at_rest(region):
    a = np.ones(LARGE)
    with (
        joblib.parallel_config(backend="vmalloc", region=region, mmap_mode="r"),
        pytest.raises(ValueError, match="read-only"),
    ):
        Parallel(n_jobs=2)(delayed(write)(a) for _ in range(20))
    with joblib.parallel_config(backend="vmalloc", region=region):
        assert Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    assert comes_to_rest(region)


def test_results_of_a_generator_that_is_left_early_end_by_themselves(region):
    with joblib.parallel_config(backend="vmalloc", region=region):
        results = Parallel(n_jobs=2, return_as="generator")(delayed(make)(i) for i in range(30))
        assert [float(next(results)[0]) for _ in range(3)] == [0, 1, 2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib says that workers were ended
            del results
            gc.collect()
    assert comes_to_rest(region)


def fail_with(i):
    raise ValueError(i, make(i))


def test_what_a_tasks_error_carries_goes_with_the_error(region):
    with joblib.parallel_config(backend="vmalloc", region=region):
        for _ in range(3):
            with pytest.raises(ValueError) as error:
                Parallel(n_jobs=2)(delayed(fail_with)(i) for i in range(6))
            i, a = error.value.args
            assert vmalloc.is_shared(a)
            assert a[-1] == i
            del error, a
    assert comes_to_rest(region)


def test_the_leak_check_sees_what_a_worker_holds():
    from vmalloc.joblib import memory_usage

    assert memory_usage(os.getpid(), force_gc=True) <= vmalloc.resident() * 1.5


def test_a_call_that_ends_while_a_copy_is_made_for_it_sends_by_value_and_keeps_nothing(region, monkeypatch):
    """An abandoned generator is closed wherever the collector runs, in the midst of its feeder's copy too."""
    call = vmalloc.joblib.Call(region, 0, "r", None)
    place = registry.place

    def place_and_end(x, into):
        call.end()
        return place(x, into)

    monkeypatch.setattr(registry, "place", place_and_end)
    load, args = call.reduced(np.arange(9.0))
    assert load(*args).tolist() == list(range(9))
    assert not vmalloc.is_shared(load(*args))
    assert at_rest(region) == (0, 0)


STRICTER = """
[tool.pytest.ini_options]
addopts = ["--strict-markers", "--strict-config"]
"""


def test_joblibs_own_suites_run_below_a_project_with_stricter_rules(tmp_path):
    (tmp_path / "pyproject.toml").write_text(STRICTER)
    logs = tmp_path / "logs"
    logs.mkdir()
    found = compare.run("test_config", logs, ["test_parallel_config_bad_params"], swapped=False)
    assert set(found.values()) == {"passed"}


def test_suites_of_joblibs_that_do_not_begin_do_not_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run", lambda *_, **__: {"": "error"})
    with pytest.raises(SystemExit, match="no test of it ran"):
        compare.compare("test_parallel", tmp_path)


OUTCOMES = {"test_steady": "passed", "test_backend_context_manager[loky]": "passed"}


@pytest.mark.parametrize(
    ("stock_again", "with_us", "told"),
    [("passed", "failure", 0), ("failure", "failure", 0), ("passed", "passed", 1)],
    ids=["as it is known to", "as stock for once", "as stock always"],
)
def test_a_known_difference_is_gone_only_where_the_test_passes_with_us(
    monkeypatch, stock_again, with_us, told
):
    known = "test_backend_context_manager[loky]"

    def run(suite, out, tests, *, swapped):
        return OUTCOMES | {known: with_us if swapped else stock_again if tests else "passed"}

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(compare, "DIFFERENT", {"test_parallel.test_backend_context_manager": "the class"})
    monkeypatch.setattr(sys, "argv", ["compare.py", "test_parallel"])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert int(ended.value.code) == told
