# SPDX-License-Identifier: MIT
"""vmalloc.install(): what becomes a reference and what does not; install, uninstall, the end."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.api.installed import THRESHOLD, Unpicklable, installed_region, sent
from tests.conftest import assert_at_rest
from tests.equivalence.sent import as_stock
from tests.processes.kinds import KINDS, POINT, clear, facts, filled, is_clear

import vmalloc
from vmalloc._core import get_settings, under_way


@pytest.fixture
def region():
    with installed_region() as region:
        yield region


# ---- by reference ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_the_region_arrives_as_the_same_memory(region, kind):
    a = KINDS[kind](region)
    b = sent(a)
    assert type(b) is np.ndarray
    assert facts(b) == facts(a)
    assert vmalloc.region_of(b) is region
    assert not a.size or b.ctypes.data == a.ctypes.data
    if b.flags.writeable:
        clear(b)
        assert is_clear(a)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind](None).nbytes > THRESHOLD])
def test_a_larger_private_array_is_copied_in_once(region, kind):
    a = KINDS[kind](None)
    before, stock = facts(a), as_stock(a)
    b = sent(a)
    assert vmalloc.region_of(b) is region
    assert (b.dtype, b.shape, b.tobytes()) == (stock.dtype, stock.shape, stock.tobytes())
    clear(b)
    assert facts(a) == before
    del b
    assert region.stats().busy_pages == 0


def test_the_threshold_is_what_still_travels_as_before(region):
    for nbytes, is_shared in ((0, False), (1, False), (THRESHOLD, False), (THRESHOLD + 1, True)):
        a = filled(None, nbytes, "u1")
        b = sent(a)
        assert vmalloc.is_shared(b) is is_shared
        assert (b == a).all()
    assert region.stats().busy_pages == 0 or vmalloc.is_shared(b)


def test_a_small_array_of_the_region_is_a_reference_whatever_the_threshold(region):
    a = region.full(1, 7, "u1")
    sent(a)[0] = 8
    assert a[0] == 8


@pytest.mark.parametrize("kind", ["plain", "sliced", "zero-size", "no dimension"])
def test_readonly_is_for_the_receiver(region, kind):
    vmalloc.install(region, THRESHOLD, readonly=True)
    for a in (KINDS[kind](region), filled(None, 2000, "u1")):
        b = sent(a)
        assert a.flags.writeable
        assert not b.flags.writeable
        assert b.tobytes() == a.tobytes()


def test_a_block_arrives_as_a_block(region):
    block = region.alloc(5000)
    memoryview(block)[:] = b"x" * 5000
    other = sent(block)
    assert type(other) is vmalloc.Block
    assert bytes(other) == b"x" * 5000
    block.release()
    assert bytes(other) == b"x" * 5000
    other.release()
    assert region.stats().busy_pages == 0


def test_a_ref_in_a_message_may_be_loaded_again_and_again(region):
    ref = vmalloc.ref(region.full(10, 3))
    text = bytes(ForkingPickler.dumps(ref))
    for _ in range(3):
        assert pickle.loads(text).sum() == 30


def test_containers_keep_their_shape_and_arrays_their_memory(region):
    a = region.full(100, 1)
    b = sent({"list": [a, a[::2], (a, {"deep": a.reshape(10, 10)})], "none": None, "one": 1})
    assert b["list"][1].shape == (50,)
    b["list"][2][1]["deep"][0, 0] = 9
    assert a[0] == b["list"][0][0] == b["list"][1][0] == 9
    assert (b["none"], b["one"]) == (None, 1)


@pytest.mark.parametrize("make", [lambda region: region.full(1000, 5), lambda region: np.full(1000, 5)])
def test_the_same_array_twice_in_a_message_is_one_array(region, make):
    b, c = sent([a := make(region)] * 2)
    assert b is c
    assert (b == a).all()
    assert (region.stats().nr_busy, region.stats().nr_leases) == (1, 0)


def test_another_region_than_the_installed_one_is_told_apart(region):
    other = vmalloc.Region("1M")
    a, b = sent([region.full(3, 1), other.full(3, 2)])
    assert vmalloc.region_of(a) is region
    assert vmalloc.region_of(b) is other


# ---- as before ----


class Named(np.ndarray):
    pass


STOCK = {
    "objects": lambda: np.array([{"a": 1}, None, "text"] * 1000, dtype=object),
    "objects in fields": lambda: np.array([(1, "x")] * 1000, dtype=[("a", "i4"), ("b", "O")]),
    "a subclass": lambda: np.arange(5000).view(Named),
    "masked": lambda: np.ma.masked_less(np.arange(5000), 100),
    "a record array": lambda: np.rec.array(np.zeros(1000, POINT)),
    "a matrix": lambda: np.arange(5000).view(np.matrix),
    "a numpy scalar": lambda: np.float64(3),
    "bytes": lambda: b"x" * 5000,
}


@pytest.mark.parametrize("kind", STOCK)
def test_other_kinds_travel_as_before(region, kind):
    x = STOCK[kind]()
    stock, ours = pickle.loads(pickle.dumps(x)), sent(x)
    assert type(ours) is type(stock)
    assert repr(ours) == repr(stock)
    assert not vmalloc.is_shared(ours)
    assert region.stats().nr_busy == 0


def test_a_memmap_travels_as_before(region, tmp_path):
    a = np.memmap(tmp_path / "file", "u1", "w+", shape=5000)
    a[:] = 3
    stock, ours = pickle.loads(pickle.dumps(a)), sent(a)
    assert type(ours) is type(stock)
    assert (ours == 3).all()
    assert region.stats().nr_busy == 0


def test_a_view_of_a_memmap_is_copied_in(region, tmp_path):
    a = np.asarray(np.memmap(tmp_path / "file", "u1", "w+", shape=5000))
    a[:] = 3
    b = sent(a)
    b[:] = 4
    assert (a == 3).all()


@pytest.mark.parametrize("view", [Named, np.matrix])
def test_a_subclass_on_the_region_travels_by_value(region, view):
    a = region.full((10, 10), 4).view(view)
    b = sent(a)
    assert type(b) is view
    assert not vmalloc.is_shared(b)


def test_plain_pickle_and_deepcopy_stay_by_value(region):
    a = region.full(1000, 6)
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a), copy.copy(a), copy.deepcopy([a])[0]):
        b[:] = 7
        assert not vmalloc.is_shared(b)
    assert (a == 6).all()
    assert region.stats().nr_leases == 0


# ---- install, uninstall ----


def registered():
    return {k: v for k, v in ForkingPickler._extra_reducers.items() if k in (np.ndarray, vmalloc.Block)}


def test_uninstalled_it_is_as_if_it_had_never_been(region):
    vmalloc.uninstall()
    assert registered() == {}
    assert "dump" not in vars(ForkingPickler)
    a = region.full(1000, 1)
    assert not vmalloc.is_shared(sent(a))
    vmalloc.uninstall()


def test_what_another_library_registered_is_there_again_after_uninstall(region):
    vmalloc.uninstall()
    ForkingPickler.register(np.ndarray, theirs)
    try:
        vmalloc.install(region, THRESHOLD)
        assert vmalloc.is_shared(sent(region.zeros(3)))
        vmalloc.uninstall()
        assert registered() == {np.ndarray: theirs}
        assert sent(np.zeros(3)) == "theirs"
    finally:
        del ForkingPickler._extra_reducers[np.ndarray]


def theirs(a):
    return str, ("theirs",)


def passing_on(name):
    """What a library puts in the place of a method of ForkingPickler's, calling the one before."""
    before = getattr(ForkingPickler, name)

    def theirs(*args):
        return before(*args)

    return theirs if name == "dump" else staticmethod(theirs)


@pytest.mark.parametrize("name", ["dump", "dumps", "loads"])
@pytest.mark.parametrize("is_restored", [False, True], ids=["that stays", "that restores what it found"])
def test_it_may_be_installed_again_under_a_wrapper_of_another_library(region, name, is_restored, monkeypatch):
    found = ForkingPickler.__dict__[name]
    monkeypatch.setattr(ForkingPickler, name, passing_on(name))
    vmalloc.uninstall()
    if is_restored:
        setattr(ForkingPickler, name, found)
    for _ in range(3):
        vmalloc.install(region, THRESHOLD)
        assert vmalloc.is_shared(received([np.zeros(1000)])[0])
        assert vmalloc.is_shared(received(region.zeros(1000)))
        with pytest.raises(RuntimeError):
            ForkingPickler.dumps([region.zeros(1000), Unpicklable()])
        assert region.stats().nr_leases == 0
        vmalloc.uninstall()
        assert not vmalloc.is_shared(received(np.zeros(1000)))
    monkeypatch.undo()
    vmalloc.install(region, THRESHOLD)
    vmalloc.uninstall()
    assert "dump" not in vars(ForkingPickler)
    assert ForkingPickler.loads is pickle.loads


def received(x):
    return ForkingPickler.loads(ForkingPickler.dumps(x))


def test_a_message_under_way_outlives_uninstall(region):
    a = region.full(1000, 1)
    text = ForkingPickler.dumps(a)
    vmalloc.uninstall()
    b = pickle.loads(text)
    b[0] = 5
    assert a[0] == 5


def test_the_second_install_counts(region):
    other = vmalloc.Region("1M")
    vmalloc.install(other, 10)
    assert vmalloc.region_of(sent(np.zeros(2))) is other
    vmalloc.install(region, 100)
    assert not vmalloc.is_shared(sent(np.zeros(2)))
    assert vmalloc.region_of(sent(np.zeros(200))) is region
    vmalloc.uninstall()
    assert registered() == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_full": "drop"}, "wait, copy, raise, not 'drop'"),
        ({"threshold": -1}, "not be negative, not -1"),
        ({"timeout": -1}, "timeout must be from 0 to 1e9 seconds, not -1"),
    ],
)
def test_options_are_checked(region, options, text):
    with pytest.raises(ValueError, match=text):
        vmalloc.install(region, **options)


def test_once_the_region_is_closed_arrays_go_by_value(region):
    other = vmalloc.Region("1M")
    a = other.zeros(1000)
    vmalloc.install(other, THRESHOLD)
    other.close()
    for x in (a, np.zeros(1000)):  # an error would be lost in a queue's thread, and its reader wait for ever
        assert not vmalloc.is_shared(sent(x))
        assert (sent(x) == x).all()
    with pytest.raises(vmalloc.RegionClosed, match="closed"):
        vmalloc.install(other)
    vmalloc.install(region, THRESHOLD)


AUTO = """
import pickle, sys
from multiprocessing.reduction import ForkingPickler
import vmalloc.auto
import numpy as np
a = pickle.loads(ForkingPickler.dumps(np.zeros(100_000)))
assert vmalloc.region_of(a) is vmalloc.default_region()
assert not vmalloc.is_shared(pickle.loads(ForkingPickler.dumps(np.zeros(8192))))  # 64 KiB
assert vmalloc.is_shared(pickle.loads(ForkingPickler.dumps(np.zeros(8193))))
vmalloc.uninstall()
assert not vmalloc.is_shared(pickle.loads(ForkingPickler.dumps(a)))
"""


def test_importing_auto_installs_with_the_default_region():
    done = subprocess.run([sys.executable, "-c", AUTO], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_install_does_not_import_numpy():
    code = "import sys, vmalloc, vmalloc.message; assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ---- is_shared, region_of, copy_in ----


def test_copy_in_copies_once_and_never_what_is_there(region):
    a = np.arange(1000)
    b = vmalloc.copy_in(a, region)
    assert vmalloc.region_of(b) is region
    assert (a == b).all()
    assert vmalloc.copy_in(b, region) is b
    assert vmalloc.copy_in(b) is b
    view = b[::3]
    assert vmalloc.copy_in(view, region) is view
    other = vmalloc.Region("1M")
    assert vmalloc.region_of(vmalloc.copy_in(b, other)) is other
    with pytest.raises(TypeError, match="private to a process"):
        vmalloc.copy_in(np.array([None]), region)


def test_what_arrived_is_shared_and_its_copy_is_not(region):
    b = sent(region.full(1000, 1))
    assert vmalloc.is_shared(b)
    assert vmalloc.is_shared(b[3:].reshape(-1, 1).T)
    assert not vmalloc.is_shared(b.copy())
    assert not vmalloc.is_shared(b + 1)


# ---- the end of the interpreter ----


ENDINGS = {
    "globals": "kept = [sent(a), a, text]",
    "cycles": "class C: pass\nc = C(); c.me, c.a, c.text, c.b = c, a, text, sent(a)",
    "atexit": "atexit.register(lambda: (sent(a), a.sum()))",
    "atexit sends": "atexit.register(lambda: ForkingPickler.dumps(a))",
    "builtins": "builtins.kept = sent(a); sys.kept = bytes(ForkingPickler.dumps(a))",
    "a thread": "t = threading.Thread(target=lambda: [sent(a) for _ in range(200)]); t.start()",
    "a daemon thread": "t = threading.Thread(target=lambda: [sent(a) for _ in iter(int, 1)], daemon=True)\n"
    "t.start(); time.sleep(0.05)",
    "the region first": "del region; gc.collect(); kept = sent(a)",
    "closed": "region.close(); b = pickle.loads(text)",
    "uninstalled": "vmalloc.uninstall(); kept = pickle.loads(text)",
    "sys.exit": "kept = sent(a)\nsys.exit(0)",
    "a queue that is full": "q = fork.Queue(); [q.put(a) for _ in range(20)]; q.cancel_join_thread()",
    "a queue that was read": "q = multiprocessing.SimpleQueue(); q.put(a); kept = q.get()",
    "a child": "p = fork.Process(target=a.sum); p.start(); p.join()",
    "a child not waited for": "fork.Process(target=a.sum).start()",
    "a daemon child": "fork.Process(target=time.sleep, args=(9,), daemon=True).start()",
    "a pool not closed": "pool = fork.Pool(1); kept = pool.apply(np.copy, (a,))\n"
    "pool.terminate()",
    "an executor": "ex = concurrent.futures.ProcessPoolExecutor(1, mp_context=fork)\n"
    "kept = ex.submit(np.negative, a).result()",
    "modules gone": "kept = sent(a)\n"
    "for n in [n for n in sys.modules if n.startswith(('vmalloc', 'numpy'))]: del sys.modules[n]",
}  # fmt: skip
ENDING = """
import atexit, builtins, concurrent.futures, gc, multiprocessing, pickle, sys, threading, time
from multiprocessing.reduction import ForkingPickler
import numpy as np, vmalloc
region, fork = vmalloc.Region.attach(int(sys.argv[1])), multiprocessing.get_context("fork")
vmalloc.install(region, 1000)
sent = lambda x: pickle.loads(ForkingPickler.dumps(x))
a = region.full(10_000, 3)
text = bytes(ForkingPickler.dumps(np.full(10_000, 4)))
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_in_silence_and_leaves_nothing(ending):
    region = vmalloc.Region("16M", lease_ttl_s=1e-6)
    code, fd = ENDING + ENDINGS[ending], region.fileno()
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, str(fd)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # from 3.12 on fork warns of numpy's threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, pass_fds=[fd], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    region.recover()
    region.expire_leases(all=False)
    s = region.stats()
    assert (s.busy_pages, s.nr_leases, s.nr_processes) == (0, 0, 1)
    assert_at_rest(region)


def test_nothing_of_install_stays_behind_in_the_module():
    vmalloc.uninstall()
    assert get_settings() is None
    assert under_way.references is None
