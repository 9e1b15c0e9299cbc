# SPDX-License-Identifier: MIT
"""SharedMemory and ShareableList: what the standard library's own tests ask of them, and what differs."""

from __future__ import annotations

import errno
import gc
import inspect
import multiprocessing
import multiprocessing.shared_memory as stock
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.test_attach import METHODS
from tests.processes.workers import NOBODY, WAIT_S, child, forked, join, needs_root, python

import vmalloc
from vmalloc import shared_memory as ours_module
from vmalloc.attach import attach_found
from vmalloc.facts import NAMES_MAX
from vmalloc.find import find_regions
from vmalloc.shared_memory import ShareableList, SharedMemory, SharedMemoryManager

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(autouse=True)
def default(monkeypatch):
    """A small default region of this test's own, empty again when it is over."""
    vmalloc.uninstall()  # an earlier test may have imported vmalloc.auto
    if vmalloc.region._default is not None:  # its default region; a child looks for its parent's by name
        vmalloc.region._default.close()
        vmalloc.region._default = None
        gc.collect()
    region = vmalloc.Region("16M", name="default")
    monkeypatch.setattr(vmalloc.region, "_default", region)
    monkeypatch.setattr(ours_module, "_more", more := [])
    yield region
    for other in more:
        other.close()
    for name in region:
        del region[name]
    region.recover()
    assert_at_rest(region)
    assert region.stats().busy_pages == 0
    region.close()


@pytest.fixture
def name(request):
    """A name that no other test run uses at the same time."""
    return f"{os.getpid()}-{request.node.name}"[:59]


# ---- the shape ----


def test_memory_is_made_written_and_found_by_its_name(name):
    made = SharedMemory(name, create=True, size=512)
    assert (made.name, made.size, len(made.buf)) == (name, 512, 512)
    assert repr(made) == f"SharedMemory({name!r}, size=512)"
    made.buf[0] = 42
    found = SharedMemory(name)
    assert found.buf[0] == 42
    assert found.size == 512
    found.buf[1:4] = b"abc"
    assert bytes(made.buf[:5]) == b"*abc\0"
    assert SharedMemory(name, size=20 * 512).size == 512  # ignored, as ever
    assert (found.buf.readonly, found.buf.format, found.buf.ndim) == (False, "B", 1)


def test_the_signature_is_that_of_the_standard_library():
    ours = list(inspect.signature(SharedMemory).parameters.values())
    theirs = list(inspect.signature(stock.SharedMemory).parameters.values())
    plain = [(p.name, p.default, p.kind) for p in ours if p.name not in ("track", "region")]
    assert plain == [(p.name, p.default, p.kind) for p in theirs if p.name != "track"]
    public = {n for n in dir(stock.SharedMemory) if not n.startswith("_")}
    assert {n for n in dir(SharedMemory) if not n.startswith("_")} == public


def test_new_memory_is_zeros_whatever_its_pages_held(default):
    for _ in range(3):
        default.full(5 * PAGE, 255, "u1")  # dropped at once, its pages reused
        memory = SharedMemory(create=True, size=4 * PAGE + 5)
        assert bytes(memory.buf) == bytes(4 * PAGE + 5)
        memory.unlink()
    large = default.full(3 << 20, 255, "u1")
    del large
    memory = SharedMemory(create=True, size=(2 << 20) + 7)
    assert bytes(memory.buf) == bytes((2 << 20) + 7)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"create": True, "size": -2}, "positive integer"),
        ({"create": True}, "different from zero"),
        ({}, "only be None if create"),
        ({"name": "a\0b"}, "embedded null"),
        ({"name": "a\0b", "create": True, "size": 1}, "embedded null"),
    ],
    ids=str,
)
def test_what_is_no_name_or_size_is_a_value_error(arguments, text):
    with pytest.raises(ValueError, match=text):
        SharedMemory(**arguments)


@pytest.mark.parametrize("module", [ours_module, stock], ids=["ours", "stock"])
@pytest.mark.parametrize(
    ("bad", "number"),
    [("", errno.EINVAL), ("/", errno.EINVAL), ("a/b", errno.EINVAL), ("n" * 256, errno.ENAMETOOLONG)],
)
def test_a_name_that_the_system_refuses_is_refused(module, bad, number):
    for options in ({}, {"create": True, "size": 1}):
        with pytest.raises(OSError) as caught:
            module.SharedMemory(bad, **options)
        assert caught.value.errno == number


@pytest.mark.parametrize("module", [ours_module, stock], ids=["ours", "stock"])
@pytest.mark.parametrize("length", [1, 59, 60, 63, 64, 200, 255])
def test_a_name_has_up_to_255_bytes(module, length):
    long = f"{os.getpid()}-{module.__name__}".ljust(255, "n")[-length:]
    made = module.SharedMemory(long, create=True, size=5)
    try:
        assert made.name == long
        found = module.SharedMemory(long)
        made.buf[0] = 7
        assert (found.name, found.buf[0]) == (long, 7)
        found.close()
        with pytest.raises(FileExistsError):
            module.SharedMemory(long, create=True, size=5)
    finally:
        made.close()
        made.unlink()


@pytest.mark.parametrize("module", [ours_module, stock], ids=["ours", "stock"])
def test_leading_slashes_make_no_other_name(module, name):
    name = name[:30] + module.__name__[:10]
    made = module.SharedMemory("/" + name, create=True, size=5)
    try:
        assert made.name == "/" + name
        found = module.SharedMemory(name)
        assert found.name == name
        found.close()
    finally:
        made.close()
        made.unlink()


@pytest.mark.parametrize("module", [ours_module, stock], ids=["ours", "stock"])
def test_fd_is_a_descriptor_until_close(module):
    made = module.SharedMemory(create=True, size=5)
    assert os.fstat(made._fd).st_size >= 5
    made.close()
    assert made._fd == -1
    made.unlink()


@pytest.mark.parametrize("module", [ours_module, stock], ids=["ours", "stock"])
def test_a_subclass_may_end_itself(module, capfd):
    class Owned(module.SharedMemory):
        def __del__(self):
            self.close()
            self.unlink()
            super().__del__()

    made = Owned(create=True, size=5)
    name = made.name
    del made
    with pytest.raises(FileNotFoundError):
        module.SharedMemory(name)
    with pytest.raises(ValueError, match="different from zero"):
        Owned(create=True)  # __init__ fails, __del__ runs
    gc.collect()
    assert capfd.readouterr().err == ""


def open_all(names, answers):
    answers.put(sum(SharedMemory(name).buf[0] for name in names))


def test_there_may_be_more_segments_than_a_region_has_names(default):
    made = [SharedMemory(create=True, size=1) for _ in range(NAMES_MAX + 50)]
    for memory in made:
        memory.buf[0] = 1
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    names = [memory.name for memory in made[-60:]]
    process = context.Process(target=open_all, args=(names, answers))
    process.start()
    assert answers.get() == 60
    process.join()
    for memory in made:
        memory.unlink()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_manager_s_segments_end_with_it(method):
    with SharedMemoryManager(ctx=multiprocessing.get_context(method)) as manager:
        memory, numbers = manager.SharedMemory(size=100), manager.ShareableList(range(5))
        memory.buf[0] = 3
        assert SharedMemory(memory.name).buf[0] == 3
        assert list(ShareableList(name=numbers.shm.name)) == list(range(5))
    for name in (memory.name, numbers.shm.name):
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def test_a_taken_name_exists_and_a_missing_one_is_not_found(name):
    with pytest.raises(FileNotFoundError) as missing:
        SharedMemory(name)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, name)
    made = SharedMemory(name, create=True, size=5)
    with pytest.raises(FileExistsError) as taken:
        SharedMemory(name, create=True, size=9)
    assert (taken.value.errno, taken.value.filename) == (errno.EEXIST, name)
    assert made.size == 5


def test_names_are_made_up_until_one_is_free(monkeypatch):
    texts = iter(["one", "one", "two"])
    monkeypatch.setattr("secrets.token_hex", lambda n: next(texts))
    first, second = SharedMemory(create=True, size=1), SharedMemory(create=True, size=1)
    assert (first.name, second.name) == ("psm_one", "psm_two")


def test_memory_is_unlinked_once_and_stays_valid_where_it_is_open(name, default):
    made = SharedMemory(name, create=True, size=5000)
    found = SharedMemory(name)
    found.unlink()
    found.close()
    made.buf[4999] = 7
    assert default.stats().busy_pages == 2
    with pytest.raises(FileNotFoundError):
        made.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    again = SharedMemory(name, create=True, size=1)
    assert made.buf[4999] == 7
    made.close()
    again.close()
    again.unlink()
    assert default.stats().busy_pages == 0


def test_close_lets_go_here_and_keeps_the_memory(name, default):
    made = SharedMemory(name, create=True, size=PAGE)
    made.buf[0] = 3
    made.close()
    made.close()
    assert made.buf is None
    assert (made.name, made.size) == (name, PAGE)
    assert default.stats().busy_pages == 1
    assert SharedMemory(name).buf[0] == 3


VIEWS = [lambda buf: buf[8:], lambda buf: buf.cast("d"), lambda buf: np.frombuffer(buf)]


@pytest.mark.parametrize("view", VIEWS, ids=["slice", "cast", "array"])
def test_close_refuses_while_a_view_exists(view):
    memory = SharedMemory(create=True, size=64)
    held = view(memory.buf)
    for _ in range(2):
        with pytest.raises(BufferError, match="drop them, or drop the SharedMemory"):
            memory.close()
    assert memory.buf is None  # as in the standard library
    held[0] = 1
    del held
    memory.close()


def test_close_refuses_while_somebody_uses_buf_itself():
    memory = SharedMemory(create=True, size=64)
    user = pickle.PickleBuffer(memory.buf)
    with pytest.raises(BufferError, match="drop them, or drop the SharedMemory"):
        memory.close()
    assert memory.buf[0] == 0
    user.release()
    memory.close()
    assert memory.buf is None


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "dropped"])
def test_an_array_keeps_its_memory_whatever_becomes_of_the_object(default, is_closed):
    memory = SharedMemory(create=True, size=8 * PAGE)
    array = np.ndarray(PAGE, "f8", memory.buf)  # no view of buf that close() could see
    memory.unlink()
    if is_closed:
        memory.close()
    del memory
    array[:] = 2
    others = [default.zeros(8 * PAGE, "u1") for _ in range(20)]
    assert (array == 2).all()
    assert len(others) == 20


def test_memory_that_is_too_large_is_out_of_pages(name, default):
    with pytest.raises(vmalloc.OutOfPages):
        SharedMemory(name, create=True, size=1 << 30)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    assert default.stats().busy_pages == 0


def test_tracking_is_accepted_and_ignored(name):
    made = SharedMemory(name, create=True, size=1, track=False)
    assert SharedMemory(name, track=True).size == made.size == 1


def test_a_region_may_be_named_and_is_then_the_only_one_looked_at(name, default):
    region = vmalloc.Region("1M")
    made = SharedMemory(name, create=True, size=9, region=region)
    assert list(region) == [f"shm:{name}"]
    assert list(default) == []
    with pytest.raises(FileNotFoundError):
        SharedMemory(name, region=default)
    made.buf[0] = 1
    assert SharedMemory(name, region=region).buf[0] == 1
    assert SharedMemory(name).buf[0] == 1  # any region of this process
    assert pickle.loads(pickle.dumps(made)).buf[0] == 1
    with pytest.raises(FileExistsError):
        SharedMemory(name, create=True, size=9)
    here = SharedMemory(name, create=True, size=9, region=default)
    assert SharedMemory(name).buf[0] == here.buf[0] == 0  # the default region first


# ---- pickles ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickled_it_is_the_same_memory(protocol):
    memory = SharedMemory(create=True, size=512)
    memory.buf[:6] = b"pickle"
    loaded = pickle.loads(pickle.dumps(memory, protocol))
    assert (loaded.name, loaded.size) == (memory.name, memory.size)
    loaded.buf[0:6] = b"oldval"
    assert bytes(memory.buf[:6]) == b"oldval"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_what_was_unlinked_is_not_found(protocol):
    memory = SharedMemory(create=True, size=512)
    message = pickle.dumps(memory, protocol)
    memory.close()
    memory.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(message)


def test_a_pickle_from_a_region_that_ended_is_not_found():
    code = """
import pickle, sys
from vmalloc.shared_memory import SharedMemory
print(pickle.dumps(SharedMemory(create=True, size=1)).hex())
"""
    message = bytes.fromhex(python(code).stdout)
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        pickle.loads(message)


# ---- processes ----


def write(name_or_object, data):
    memory = SharedMemory(name_or_object) if isinstance(name_or_object, str) else name_or_object
    memory.buf[: len(data)] = data
    memory.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_child_writes_what_it_finds_by_name_or_is_given(method):
    memory = SharedMemory(create=True, size=512)
    with child(method, write, memory.name, b"howdy") as process:
        join(process)
    assert bytes(memory.buf[:5]) == b"howdy"
    with child(method, write, memory, b"HELLO") as process:
        join(process)
    assert bytes(memory.buf[:5]) == b"HELLO"


def create(name):
    SharedMemory(name, create=True, size=5).buf[:] = b"child"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_child_creates_outlives_it_in_its_parents_region(method, name, default):
    with child(method, create, name) as process:
        join(process)
    default.recover()
    assert bytes(SharedMemory(name).buf) == b"child"
    assert f"shm:{name}" in default


def test_a_child_makes_memory_in_the_first_of_its_parents_regions(name, default):
    made = [SharedMemory(create=True, size=1) for _ in range(NAMES_MAX + 1)]
    made[0].unlink()  # the first has room again, ...
    made[-1].buf[0] = 1
    (other,) = ours_module._more
    other.alloc(PAGE).release()
    other.purge()  # ... and the other changed last
    with child("spawn", create, name) as process:
        join(process)
    assert f"shm:{name}" in default
    for memory in made[1:]:
        memory.unlink()


def test_an_unrelated_program_finds_it_by_name(name):
    memory = SharedMemory(name, create=True, size=10)
    code = """
import sys
from vmalloc.shared_memory import SharedMemory
memory = SharedMemory(sys.argv[1])
memory.buf[:5] = b"there"
print(memory.size)
try:
    SharedMemory(sys.argv[1], create=True, size=3)
except FileExistsError:
    memory.unlink()
"""
    done = python(code, name)
    assert (done.stdout, done.stderr) == ("10\n", "")
    assert bytes(memory.buf) == b"there\0\0\0\0\0"
    with pytest.raises(FileNotFoundError):
        memory.unlink()


def race(region, names, gate, won):
    gate.wait(WAIT_S)
    for name in names:
        try:
            SharedMemory(name, create=True, size=1, region=region)
        except FileExistsError:
            continue
        won.put((name, os.getpid()))
    won.put(None)


def test_of_processes_that_create_one_name_exactly_one_succeeds(default):
    context = multiprocessing.get_context("fork")
    names = [f"race{i}" for i in range(100)]
    gate, won = context.Barrier(3), context.Queue()
    racers = [context.Process(target=race, args=(default, names, gate, won)) for _ in range(3)]
    for racer in racers:
        racer.start()
    winners = [won.get(timeout=WAIT_S) for _ in range(len(names) + len(racers))]
    for racer in racers:
        join(racer)
    assert sorted(w[0] for w in winners if w is not None) == sorted(names)


HOLD = """
import sys, time
from vmalloc.shared_memory import SharedMemory
memory = SharedMemory(sys.argv[1], create=True, size=10)
memory.buf[:4] = b"kept"
print(memory.name, flush=True)
sys.stdin.read(1)
"""


def test_it_ends_with_the_last_process_that_has_the_region(name):
    before = set(os.listdir("/dev/shm"))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    creator = subprocess.Popen([sys.executable, "-c", HOLD, name], **pipes)
    assert creator.stdout.readline().decode() == f"{name}\n"
    (found,) = (f for f in find_regions() if f.name == "default" and f.pids == [creator.pid])
    region = attach_found(vmalloc.Region, found)
    creator.kill()
    assert creator.communicate(timeout=WAIT_S)[1] == b""
    region.recover()
    assert bytes(SharedMemory(name).buf[:4]) == b"kept"  # we have it still
    assert {f for f in os.listdir("/dev/shm") if "psm" in f or name in f} <= before
    del region
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_one_that_is_dropped_without_close_is_dropped_in_silence():
    code = """
from vmalloc.shared_memory import ShareableList, SharedMemory
memory = SharedMemory(create=True, size=10)
part, kept = memory.buf[:5], ShareableList([1, "a"])
SharedMemory(create=True, size=10)
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_root
def test_the_default_regions_of_other_users_are_left_alone(name):
    def as_another_user():
        region = vmalloc.Region("1M", name="default")
        return region, SharedMemory(name, create=True, size=5, region=region)

    with forked(as_another_user, uid=NOBODY), pytest.raises(FileNotFoundError):
        SharedMemory(name)


# ---- lists ----

ITEMS = ["howdy", b"HoWdY", -273.154, 100, None, True, 42]


def test_a_list_holds_what_the_standard_librarys_holds(name):
    ours = ShareableList(ITEMS, name=name)
    theirs = stock.ShareableList(ITEMS)
    try:
        assert isinstance(ours.shm, SharedMemory)
        assert isinstance(ours, stock.ShareableList)
        assert list(ours) == list(theirs) == ITEMS
        assert (len(ours), ours.format, ours.index(100)) == (7, theirs.format, 3)
        ours[3] = theirs[3] = "some"
        assert (ours[3], ours.format) == ("some", theirs.format)
        with pytest.raises(ValueError, match="exceeds available storage"):
            ours[3] = "far too many"
        with pytest.raises(IndexError):
            ours[7]
        assert bytes(ours.shm.buf) == bytes(theirs.shm.buf[: theirs.shm.size])[: ours.shm.size]
        assert repr(ours) == f"ShareableList({list(ours)!r}, name={name!r})"
    finally:
        theirs.shm.close()
        theirs.shm.unlink()
    found = ShareableList(name=name)
    found[-1] = 880
    assert ours[-1] == 880
    copy = ShareableList(ours)
    copy[0] = "copied"
    assert (ours[0], copy[0]) == ("howdy", "copied")
    empty = ShareableList()
    assert (len(empty), empty.format) == (0, "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickled_list_is_the_same_list(protocol):
    made = ShareableList(range(10))
    loaded = pickle.loads(pickle.dumps(made, protocol))
    assert type(loaded) is ShareableList
    loaded[4] = "changed"
    made[3] = "newvalue"
    assert (made[4], loaded[3]) == ("changed", "newvalue")
    message = pickle.dumps(made, protocol)
    made.shm.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(message)


def put(items, value):
    items[0] = value


@pytest.mark.parametrize("method", METHODS)
def test_a_child_writes_a_list(method):
    items = ShareableList([0, 1])
    with child(method, put, items, 17) as process:
        join(process)
    assert list(items) == [17, 1]
