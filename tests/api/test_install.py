"""vmalloc.install(): what becomes a reference, what does not, and what a message leaves."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.kinds import KINDS, POINT, clear, facts, filled, is_clear

import vmalloc
from vmalloc import message
from vmalloc._core import get_settings

THRESHOLD = 1000  # bytes; of the tests


@pytest.fixture
def region():
    region = vmalloc.Region("16M", name="install")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    for name in region:
        del region[name]
    assert region.stats().nr_leases == 0
    assert_at_rest(region)
    assert region.stats().busy_pages == 0


byte_bounds = getattr(np.lib, "array_utils", np).byte_bounds  # moved in numpy 2


def sent(x):
    """What arrives at the other end of any queue, pipe or pool."""
    return pickle.loads(ForkingPickler.dumps(x))


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
    before = facts(a)
    b = sent(a)
    assert vmalloc.region_of(b) is region
    assert (b.dtype, b.shape, b.tobytes()) == (a.dtype, a.shape, a.tobytes())
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
    [({"on_full": "wait"}, "raise, copy, not 'wait'"), ({"threshold": -1}, "not be negative, not -1")],
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


# ---- a message's life ----


def test_a_message_holds_its_array_until_it_is_loaded(region):
    text = ForkingPickler.dumps(region.full(PAGE, 9, "u1"))
    assert (region.stats().nr_leases, region.stats().busy_pages) == (1, 1)
    a = pickle.loads(text)
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 1)
    assert (a == 9).all()
    del a
    assert region.stats().busy_pages == 0


def test_a_message_may_be_loaded_twice_while_somebody_holds_the_array(region):
    text = ForkingPickler.dumps(region.full(PAGE, 9, "u1"))
    first, second = pickle.loads(text), pickle.loads(text)
    first[0] = 1
    assert second[0] == 1
    del first, second
    with pytest.raises(vmalloc.StaleReference, match="page"):
        pickle.loads(text)


def test_a_message_that_nobody_loads_is_ended_by_expire_leases(region):
    texts = [ForkingPickler.dumps(region.full(PAGE, i, "u1")) for i in range(5)]
    assert region.expire_leases(all=False) == 0
    assert (region.stats().nr_leases, region.stats().busy_pages) == (5, 5)
    assert region.expire_leases() == 5
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    for text in texts:
        with pytest.raises(vmalloc.StaleReference):
            pickle.loads(text)


def test_a_stale_reference_shows_no_other_arrays_bytes(region):
    stale = []
    for value in range(50):
        a = region.full(PAGE, value, "u1")
        stale.append((a.ctypes.data, ForkingPickler.dumps(a)))
        region.expire_leases()
        del a
        new = region.full(PAGE, 200, "u1")
        for address, text in stale:
            assert address == new.ctypes.data  # hot reuse: the same page every time
            with pytest.raises(vmalloc.StaleReference):
                pickle.loads(text)
        assert (new == 200).all()
        del new


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("cannot be sent")


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickling_that_fails_half_way_leaves_no_lease(region, protocol):
    a = region.full(PAGE, 1, "u1")
    with pytest.raises(RuntimeError, match="cannot be sent"):
        ForkingPickler.dumps([a, a[3:], np.zeros(1000), Unpicklable()], protocol)
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 1)


class Inner:
    """Pickles another message while it is pickled, as some wrappers do."""

    def __init__(self, text=None, array=None):
        self.text, self.array = text, array

    def __reduce__(self):
        return Inner, (bytes(ForkingPickler.dumps(self.array)),)


def test_a_message_within_a_failing_message_is_its_own(region):
    a = region.full(PAGE, 1, "u1")
    inner = sent([a, Inner(array=a)])[1]
    assert pickle.loads(inner.text)[0] == 1
    with pytest.raises(RuntimeError):
        ForkingPickler.dumps([Inner(array=a), a, Unpicklable()])
    assert region.stats().nr_leases == 1  # the inner message was complete, for all we know
    assert region.expire_leases() == 1


def test_a_message_that_fails_to_load_half_way_leaves_what_it_did_not_reach(region):
    text = ForkingPickler.dumps([region.zeros(3), Explodes(), region.zeros(3)])
    with pytest.raises(ZeroDivisionError):
        pickle.loads(text)
    gc.collect()
    assert (region.stats().nr_leases, region.stats().busy_pages) == (1, 1)
    assert region.expire_leases() == 1


class Explodes:
    def __reduce__(self):
        return divmod, (1, 0)


def test_a_lease_is_claimed_by_the_first_load_only_in_whatever_order(region):
    a = region.full(PAGE, 2, "u1")
    texts = [ForkingPickler.dumps(a) for _ in range(100)]
    del a
    for text in texts[::-1]:
        assert pickle.loads(text)[0] == 2
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    for text in texts:
        with pytest.raises(vmalloc.StaleReference):
            pickle.loads(text)


def test_a_replayed_lease_ends_no_other(region):
    a = region.full(PAGE, 2, "u1")
    old = ForkingPickler.dumps(a)
    pickle.loads(old)
    new = ForkingPickler.dumps(a)  # its entry in the table is the one that the old message had
    pickle.loads(old)
    del a
    assert region.stats().nr_leases == 1
    assert pickle.loads(new)[0] == 2


@pytest.mark.parametrize("end", [1, 10, 50, 100, -30, -2, -1])
def test_a_truncated_message_is_an_error_of_pickle(region, end):
    text = bytes(ForkingPickler.dumps([region.full(PAGE, 1, "u1")]))
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        pickle.loads(text[:end])
    region.expire_leases()


def test_every_byte_of_a_message_may_be_wrong(region):
    """Whatever a damaged message loads as, it loads within its range, or it is an error."""
    a = region.full(PAGE, 1, "u1")
    guard = region.full(PAGE, 77, "u1")
    text = bytes(ForkingPickler.dumps(a[10:20]))
    pickle.loads(text)
    pages = a.ctypes.data, a.ctypes.data + PAGE
    for place in range(2, len(text)):
        for flip in (1, 16, 128):
            damaged = bytearray(text)
            damaged[place] ^= flip
            try:
                b = pickle.loads(damaged)
            except Exception:
                continue
            if isinstance(b, np.ndarray) and vmalloc.is_shared(b) and b.size:
                low, high = byte_bounds(b)
                assert pages[0] <= low < high <= pages[1]
    assert (guard == 77).all()
    region.check()
    region.expire_leases()


# ---- a full region ----


def test_a_full_region_raises_where_the_message_is_pickled(region):
    held = region.alloc(region.nr_pages * PAGE)
    with pytest.raises(vmalloc.OutOfPages, match="100 pages requested"):
        sent([np.zeros(100 * PAGE, "u1")])
    assert sent(np.zeros(10)).shape == (10,)
    held.release()


def test_a_full_region_may_fall_back_to_stock_pickling(region):
    vmalloc.install(region, THRESHOLD, on_full="copy")
    held = region.alloc(region.nr_pages * PAGE)
    a = filled(None, (100, 100), "f4")
    b = sent(a)
    assert (a == b).all()
    assert not vmalloc.is_shared(b)
    held.release()
    assert vmalloc.is_shared(sent(a))


def test_65536_messages_may_be_under_way_and_the_next_is_told(region):
    a = region.zeros(10)
    texts = [ForkingPickler.dumps(a) for _ in range(1 << 16)]
    with pytest.raises(vmalloc.OutOfPages, match="65536 leases of the region are taken"):
        ForkingPickler.dumps(a)
    pickle.loads(texts[1000])
    assert pickle.loads(ForkingPickler.dumps(a)) is not None
    vmalloc.install(region, THRESHOLD, on_full="copy")
    kept = ForkingPickler.dumps(a)
    assert not vmalloc.is_shared(sent(a))
    assert region.expire_leases() == 1 << 16
    del a
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(kept)


# ---- threads ----


def test_threads_send_and_receive_at_once(region):
    wrong = []

    def work(number):
        try:
            for i in range(150):
                a = region.full(1 + i % 40 * 100, number, "u1")
                b = sent([a, np.full(2000, number), a[::2]])
                if not all((x == number).all() for x in b):
                    wrong.append((number, i))
                if i % 10 == 0:
                    try:
                        ForkingPickler.dumps([a, Unpicklable()])
                    except RuntimeError:
                        pass
        except Exception as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)


def test_settings_and_leases_of_a_failing_message_belong_to_its_thread(region):
    """One thread's failure drops no lease of another's message."""
    a = region.full(PAGE, 3, "u1")
    inside, go_on, texts = threading.Event(), threading.Event(), []

    class Waits:
        def __reduce__(self):
            inside.set()
            go_on.wait(60)
            return int, ()

    other = threading.Thread(target=lambda: texts.append(ForkingPickler.dumps([a, Waits()])))
    other.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError):
        ForkingPickler.dumps([a, Unpicklable()])
    assert region.stats().nr_leases == 1
    go_on.set()
    other.join()
    a = None
    assert (pickle.loads(texts[0])[0] == 3).all()


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
    assert message._under_way.references is None
