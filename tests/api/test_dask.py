# SPDX-License-Identifier: MIT
"""Dask: a real cluster of worker processes on this machine; what goes by reference, and what does not."""

import copy
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
import warnings

import pytest

np = pytest.importorskip("numpy")
distributed = pytest.importorskip("distributed")

import vmalloc  # noqa: E402
import vmalloc.adapters.dask as wire  # noqa: E402
import vmalloc.dask  # noqa: E402
from vmalloc.reference import pack  # noqa: E402

LARGE = 300_000
PATIENCE_S = 150


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, memory_limit="1GiB", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        client.wait_for_workers(3)
        vmalloc.dask.install(client, size="256M")
        yield client
        vmalloc.dask.uninstall(client)


@pytest.fixture
def region(client):
    return vmalloc.Region.attach(f"dask-{client.scheduler_info()['id']}")


def workers_of(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def until(is_so, client=None):
    """Whether it becomes so: Dask tells its workers in its own time what they may forget.

    What a worker forgot may lie in cycles, which one that has nothing to do does not collect.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not is_so() and time.monotonic() < deadline:
        gc.collect()
        if client is not None:
            client.run(gc.collect)
        time.sleep(0.02)
    return is_so()


def make(n=LARGE, inside=False):
    if not inside:
        return np.arange(n, dtype="f8")
    a = vmalloc.dask.region().empty(n)
    a[:] = np.arange(n)
    return a


def look(a, _=None):
    return vmalloc.is_shared(a), a.flags.writeable, float(a[-1])


def write(a, _=None):
    a[0] = 5
    return float(a[0])


def first(a, _=None):
    return float(a[0])


def give(a, _=None):
    return a


def read_by_all(client, future, function=look):
    """By each worker that did not make it."""
    distributed.wait(future)
    (maker,) = client.who_has(future)[future.key]
    readers = [w for w in workers_of(client) if w != maker]
    return client.gather([client.submit(function, future, w, workers=w, pure=False) for w in readers])


def test_a_private_array_is_copied_in_once_however_many_read_it(client, region):
    made = client.submit(make, pure=False, workers=workers_of(client)[0])
    distributed.wait(made)
    assert region.stats().nr_busy == 0
    assert read_by_all(client, made) == [(True, False, LARGE - 1)] * 2
    assert (region.stats().nr_busy, region.stats().nr_leases) == (1, 0)
    del made
    assert until(lambda: region.stats().nr_busy == 0)


def test_an_array_made_in_the_region_is_not_copied(client, region):
    made = client.submit(make, inside=True, pure=False, workers=workers_of(client)[0])
    distributed.wait(made)
    assert region.stats().nr_busy == 1
    assert read_by_all(client, made) == [(True, False, LARGE - 1)] * 2
    assert region.stats().nr_busy == 1
    del made
    assert until(lambda: region.stats().nr_busy == 0)


def test_views_of_an_array_in_the_region_keep_their_strides(client, region):
    made = client.submit(lambda: make(inside=True)[::-2], pure=False, workers=workers_of(client)[0])
    assert read_by_all(client, made) == [(True, False, 1.0)] * 2
    assert region.stats().nr_busy == 1


@pytest.mark.parametrize(("mode", "seen"), [("r+", 5.0), ("c", 0.0)])
def test_readers_write_where_install_says_so(client, mode, seen):
    vmalloc.dask.install(client, size="256M", mmap_mode=mode)
    maker = workers_of(client)[0]
    made = client.submit(make, inside=True, pure=False, workers=maker)
    assert read_by_all(client, made, write) == [5.0, 5.0]
    assert client.submit(first, made, workers=maker, pure=False).result() == seen


def test_readers_cannot_write_by_default(client):
    made = client.submit(make, pure=False, workers=workers_of(client)[0])
    with pytest.raises(ValueError, match="read-only"):
        read_by_all(client, made, write)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(10),
        np.array([1, "two", None], dtype=object),
        np.zeros((0, 3)),
        np.float64(2.5) * np.ones(()),
        np.arange("2026-01-01", 20_000, dtype="M8[D]"),
        np.ma.masked_array(np.arange(20_000), np.arange(20_000) % 2),
        np.asfortranarray(np.arange(30_000).reshape(300, 100)),
        np.broadcast_to(np.arange(3.0), (50_000, 3)),
        np.zeros(20_000, [("a", "i4"), ("b", "f8")]),
        [np.arange(20_000), {"x": np.arange(20_000)}],
        b"b" * 100_000,
    ],
    ids=lambda value: getattr(getattr(value, "dtype", None), "str", type(value).__name__),
)
def test_every_value_arrives_as_it_was(client, value):
    maker, reader = workers_of(client)[:2]
    # a copy: workers keep functions that they have seen, and with them what those keep
    made = client.submit(lambda: copy.deepcopy(value), workers=maker, pure=False)
    got = client.submit(give, made, workers=reader, pure=False).result()
    assert type(got) is type(value)
    if isinstance(value, np.ndarray):
        assert (got.dtype, got.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(got, value)
    elif isinstance(value, list):
        assert (got[0] == value[0]).all()
        assert (got[1]["x"] == value[1]["x"]).all()
    else:
        assert got == value


def test_frames_and_tables_go_by_their_buffers(client, region):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    maker, reader = workers_of(client)[:2]

    def frame():
        return pd.DataFrame({"a": np.arange(50_000), "b": [f"text {i}" for i in range(50_000)]})

    def look_at_frame(f):
        return vmalloc.is_shared(f["a"].to_numpy()), int(f["a"].sum()), f["b"].iloc[-1]

    def look_at_table(t):
        return vmalloc.is_shared(t["a"].chunk(0).to_numpy()), t["b"][49_999].as_py()

    made = client.submit(frame, workers=maker, pure=False)
    told = client.submit(look_at_frame, made, workers=reader, pure=False).result()
    assert told == (True, sum(range(50_000)), "text 49999")
    table = client.submit(lambda f: pa.Table.from_pandas(f), made, workers=maker, pure=False)
    assert client.submit(look_at_table, table, workers=reader, pure=False).result() == (True, "text 49999")
    assert region.stats().nr_leases == 0
    del made, table
    assert until(lambda: region.stats().nr_busy == 0, client)


def test_a_client_gets_and_gives_references_where_it_asks_workers_itself(client, region):
    made = client.submit(make, pure=False, workers=workers_of(client)[0])
    assert not vmalloc.is_shared(client.gather(made, direct=False))
    got = client.gather(made, direct=True)
    assert vmalloc.region_of(got) is region
    np.testing.assert_array_equal(got, make())
    spread = client.scatter(make(), direct=True, hash=False)
    assert client.submit(look, spread, pure=False).result() == (True, False, LARGE - 1)
    del made, got, spread
    assert until(lambda: region.stats().nr_busy == 0, client)


def test_answers_that_nobody_keeps_go_by_value(client):
    assert all(not vmalloc.is_shared(a) for a in client.run(make, inside=True).values())


def test_what_does_not_fit_goes_by_value(client):
    made = client.submit(make, 40 << 20, pure=False, workers=workers_of(client)[0])  # 320 MiB
    assert read_by_all(client, made) == [(False, True, (40 << 20) - 1)] * 2


def test_what_was_read_survives_its_maker(client, region):
    maker, reader = workers_of(client)[:2]
    made = client.submit(make, inside=True, pure=False, workers=maker, allow_other_workers=True)
    kept = client.submit(give, made, workers=reader, pure=False)
    distributed.wait(kept)
    client.run(
        os.kill, client.run(os.getpid, workers=[maker])[maker], signal.SIGKILL, workers=[maker], nanny=True
    )
    assert until(lambda: maker not in workers_of(client))
    assert client.submit(look, kept, workers=reader, pure=False).result()[2] == LARGE - 1
    client.wait_for_workers(3)
    again = client.submit(make, pure=False, workers=workers_of(client)[0])
    assert read_by_all(client, again) == [(True, False, LARGE - 1)] * 2  # the new worker has the region too
    del made, kept, again
    assert until(lambda: region.recover() is None or region.stats().nr_busy == 0)
    assert until(lambda: region.stats().nr_busy == 0)


def test_workers_killed_in_the_middle_of_transfers_lose_no_task(client, region):
    sources = [client.submit(make, pure=False, inside=i % 2 == 0) for i in range(12)]
    sums = [client.submit(look, s, i, pure=False) for s in sources for i in range(4)]
    pids = client.run(os.getpid)
    victim = workers_of(client)[1]
    client.run(os.kill, pids[victim], signal.SIGKILL, workers=[victim], nanny=True)
    assert {told[2] for told in client.gather(sums)} == {LARGE - 1}
    client.wait_for_workers(3)
    del sources, sums
    assert until(lambda: region.recover() is None or region.stats().nr_busy == 0)
    assert until(lambda: (region.stats().nr_busy, region.stats().nr_leases) == (0, 0))


def test_what_is_spilled_is_bytes_on_disk(client, region):
    maker = workers_of(client)[0]
    made = client.submit(make, inside=True, pure=False, workers=maker)
    distributed.wait(made)

    def spill(dask_worker):
        while dask_worker.data.fast:
            dask_worker.data.evict()

    client.run(spill, workers=[maker])
    assert until(lambda: region.stats().nr_busy == 0)
    assert read_by_all(client, made) == [(True, False, LARGE - 1)] * 2


def test_what_was_received_weighs_nothing_in_a_workers_budget(client):
    maker, reader = workers_of(client)[:2]
    made = client.submit(make, pure=False, workers=maker)
    kept = client.submit(first, made, workers=reader, pure=False)
    distributed.wait(kept)

    def weights(key, dask_worker):
        return dask_worker.data.fast.weights[key]

    told = client.run(weights, made.key, workers=[maker, reader])
    assert told[maker] > 8 * LARGE - 1
    assert told[reader] == 0


def touch(arrays):
    return sum(float(a[::512].sum()) for a in arrays)


def looks_of_a_nanny(dask_worker):
    return os.getpid(), dask_worker.status.name, dask_worker.monitor.get_process_memory()


def test_a_worker_that_only_reads_is_not_ended_for_its_memory():
    """It touches 400 MiB of its client's under a limit of 400 MiB."""
    psutil = pytest.importorskip("psutil")
    limit = 400 << 20
    with (
        distributed.LocalCluster(n_workers=1, memory_limit=limit, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        vmalloc.dask.install(client, size="1G")
        region = vmalloc.Region.attach(f"dask-{client.scheduler_info()['id']}")
        arrays = [region.zeros(5 << 20) for _ in range(10)]
        futures = client.scatter(arrays, direct=True, hash=False)
        assert client.submit(touch, futures).result() == 0
        ((pid, _, _),) = client.run(looks_of_a_nanny).values()
        assert psutil.Process(pid).memory_info().rss > limit
        time.sleep(1)  # it is looked at ten times a second
        ((same, status, memory),) = client.run(looks_of_a_nanny).values()
        assert (same, status) == (pid, "running")
        assert memory < limit // 2
        vmalloc.dask.uninstall(client)


def test_memory_that_was_freed_or_is_anothers_does_not_count():
    psutil = pytest.importorskip("psutil")
    from vmalloc.dask import _look_after, _memory_of

    with vmalloc.Region("128M") as region:
        me = psutil.Process()
        a = region.zeros(64 << 20, "u1")
        a += 1
        with_it = _memory_of(me)
        del a
        without = _memory_of(me)
        assert with_it - without > 48 << 20

    class Manager:
        memory_limit, memory_terminate_fraction = 1 << 50, 0.95

    class Nanny:
        pid, memory_manager = os.getpid(), Manager

    looks = []
    _look_after(lambda: looks.append(1), Nanny)
    assert looks == []
    Manager.memory_limit = 1
    _look_after(lambda: looks.append(1), Nanny)
    Nanny.pid = None
    _look_after(lambda: looks.append(1), Nanny)
    assert looks == [1, 1]


def test_where_a_region_cannot_tell_all_that_is_resident_counts(monkeypatch):
    psutil = pytest.importorskip("psutil")

    def damaged(pid):
        raise vmalloc.RegionCorrupt("damaged")

    monkeypatch.setattr("vmalloc.dask.held", damaged)
    with open("/proc/self/status") as file:
        rss = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS:"))
    assert abs(vmalloc.dask._memory_of(psutil.Process()) - rss) < 16 << 20


def made_of(nbytes):
    return np.ones(nbytes // 8)


def seen(a):
    return vmalloc.is_shared(a), float(a[::512].sum())


def test_where_a_copy_would_reach_the_limit_an_array_goes_by_value():
    """256 MiB and their copy are more than 80% of 600 MiB; they and what a worker takes itself are not."""
    nbytes = 256 << 20
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=600 << 20, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        vmalloc.dask.install(client, size="1G")
        pids = client.run(os.getpid)
        maker, reader = workers_of(client)
        made = client.submit(made_of, nbytes, workers=maker, pure=False)
        assert client.submit(seen, made, workers=reader).result() == (False, nbytes // 8 / 512)
        small = client.submit(made_of, 1 << 20, workers=reader, pure=False)
        assert client.submit(seen, small, workers=maker).result() == (True, (1 << 20) / 8 / 512)
        assert client.run(os.getpid) == pids
        vmalloc.dask.uninstall(client)


@pytest.mark.parametrize(
    ("limit", "nbytes", "may"), [(None, 1 << 60, True), (1 << 50, 1 << 20, True), (1 << 20, 1, False)]
)
def test_a_copy_may_be_made_below_the_limit_at_which_dask_pauses(limit, nbytes, may):
    psutil = pytest.importorskip("psutil")
    manager = types.SimpleNamespace(memory_limit=limit, memory_pause_fraction=0.8)
    worker = types.SimpleNamespace(
        memory_manager=manager, monitor=types.SimpleNamespace(proc=psutil.Process())
    )
    assert vmalloc.dask._may_copy(worker, nbytes) is may


def test_nothing_is_sent_by_reference_outside_a_transfer_or_to_others():
    with vmalloc.Region("16M") as region:
        w = wire.Wire(region, 0, "r", pack)
        ours = {"recipient": {"vmalloc": w.id}}
        assert not w.reaches(ours)
        with wire._transfer():
            assert w.reaches(ours)
            assert not w.reaches(None)
            assert not w.reaches({"recipient": {}})
            assert not w.reaches({"recipient": {"vmalloc": "another"}})
            inherited = wire._sending.get()
        assert not inherited.is_under_way


def test_a_reference_that_cannot_be_loaded_breaks_the_connection():
    with vmalloc.Region("16M") as region:
        w = wire.Wire(region, 0, "r", pack)
        with wire._transfer():
            packed = w.array(region.zeros(10))
        with pytest.raises(EOFError, match="cannot be loaded"):
            wire._load(packed)  # its sender holds it no more


def test_wrong_options_are_refused(client):
    with pytest.raises(ValueError, match="mmap_mode"):
        vmalloc.dask.install(client, mmap_mode="w")
    with pytest.raises(ValueError, match="threshold"):
        vmalloc.dask.install(client, threshold=-1)


def test_after_uninstall_workers_send_copies(client):
    vmalloc.dask.uninstall(client)
    made = client.submit(make, pure=False, workers=workers_of(client)[0])
    assert read_by_all(client, made) == [(False, True, LARGE - 1)] * 2
    vmalloc.dask.install(client)


def test_workers_that_join_later_have_it_too(client, cluster):
    cluster.scale(4)
    client.wait_for_workers(4)
    made = client.submit(make, pure=False, workers=workers_of(client)[0])
    assert read_by_all(client, made) == [(True, False, LARGE - 1)] * 3


def test_a_cluster_of_threads_needs_no_references():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.Client(processes=False, n_workers=1, dashboard_address=None) as client:
            vmalloc.dask.install(client, size="64M")
            assert client.submit(look, client.submit(make)).result() == (False, True, LARGE - 1)
            vmalloc.dask.uninstall(client)


def test_the_page_of_the_documents_runs(tmp_path):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "dask.md").read_text()
    script = tmp_path / "page.py"
    script.write_text("".join(re.findall(r"(?ms)^```python\n(.*?)^```$", page)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
