# SPDX-License-Identifier: MIT
"""What a message says of its region leads there, by one way or another, or to a clear error."""

from __future__ import annotations

import ctypes
import errno
import inspect
import json
import os
import pickle
import signal
import socket
import subprocess
import sys

import pytest
from tests.conftest import PAGE
from tests.processes.workers import CAN_BE_NOBODY, WAIT_S, child, forked, join, python

import vmalloc
from vmalloc import attach, serve
from vmalloc.attach import where_of
from vmalloc.region import region_at

NOBODY = 65534 if CAN_BE_NOBODY else None  # root may look into every process
PR_SET_DUMPABLE = 4

LOAD = """
import pickle, sys
a = pickle.loads(bytes.fromhex(sys.argv[1]))
print(int(a.sum()))
"""


@pytest.fixture
def region():
    region = vmalloc.Region("16M")
    yield region
    if not region.closed:
        region.check()


def changed(where, **changes):
    """What a message says of a region, with some of it forged."""
    fields = ("id", "pid", "fd", "inode", "device", "socket", "given")
    return tuple((dict(zip(fields, where, strict=True)) | changes).values())


def unavailable(where):
    with pytest.raises(vmalloc.RegionUnavailable) as caught:
        region_at(where)
    return str(caught.value)


# ---- the ways ----


def test_what_is_attached_here_is_found_without_a_look_at_the_system(region, monkeypatch):
    where = where_of(region)
    monkeypatch.setattr(attach, "_find", None)
    assert region_at(where) is region
    assert pickle.loads(pickle.dumps(region)) is region
    space = vmalloc.AddressSpace(0, 1 << 20)
    assert pickle.loads(pickle.dumps(space)) is space


class OnlyGiven:
    """Pickles as the region itself, for a process that finds no other way to it."""

    def __init__(self, region):
        self.region = region

    def __reduce__(self):
        return find_given, (where_of(self.region),)


def find_given(where):
    attach._open_same = no_way
    return region_at(where)


def no_way(path, file):
    raise PermissionError(errno.EACCES, "closed by the test", path)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_that_is_started_gets_a_descriptor_and_closes_it(region, method):
    region["a"] = region.full(1000, 3, "u1")
    arguments = OnlyGiven(region), vmalloc.ref(region["a"]), region
    with child(method, uses_what_was_given, *arguments) as process:
        join(process)
    assert region["a"].sum() == 1000


def uses_what_was_given(region, a, again):
    assert region is again is vmalloc.region_of(a)
    a[:] = 1
    here = [f for f in os.listdir("/proc/self/fd") if is_memfd(f"/proc/self/fd/{f}")]
    assert len(here) == 2  # the region's own, and that of its locks


def is_memfd(path):
    try:
        return os.readlink(path).startswith("/memfd:vmalloc:")
    except OSError:
        return False


def test_a_given_descriptor_that_means_another_file_is_not_used(region):
    class Given:
        def detach(self):
            return 0

    where = changed(where_of(region), given=Given())
    region.close()
    again = region_at(where)
    assert again is not region
    assert not again.closed
    assert os.stat(0)  # it was not closed either
    assert "descriptor given" in unavailable(changed(GOOD, given=Given()))


def test_an_unrelated_process_goes_through_proc(region):
    ref = vmalloc.ref(region.full(1000, 4, "u1"))
    done = python(LOAD, pickle.dumps(ref).hex())
    assert (done.stdout, done.stderr) == ("4000\n", "")


def test_a_region_outlives_the_sender_of_a_message(region):
    kept = region.full(1000, 5, "u1")
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(ends[1], json.dumps(where_text(where_of(region))).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    where = json.loads(os.read(ends[0], 10_000))
    assert where[1] == pid
    region["kept"] = kept
    code = """
import json, sys
from vmalloc.region import region_at
id, *rest = json.loads(sys.argv[1])
print(region_at((bytes.fromhex(id), *rest))["kept"].sum())
"""
    done = python(code, json.dumps(where))
    assert (done.stdout, done.stderr) == ("5000\n", "")
    for fd in ends:
        os.close(fd)


def where_text(where):
    return [where[0].hex(), *where[1:]]


def test_a_forked_child_says_where_it_is_itself(region):
    before = where_of(region)
    ends = os.pipe()
    with forked(lambda: os.write(ends[1], str(where_of(region)[1]).encode())) as pid:
        assert int(os.read(ends[0], 100)) == pid != before[1]
    assert where_of(region) == before
    for fd in ends:
        os.close(fd)


SAME = """
import pickle, sys, threading
message = bytes.fromhex(sys.argv[1])
gate, found = threading.Barrier(8), []
def load():
    gate.wait()
    found.append(pickle.loads(message))
threads = [threading.Thread(target=load) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(found), len(set(map(id, found))), found[0].stats().nr_processes)
"""


def test_threads_that_attach_at_once_get_one_region(region):
    done = python(SAME, pickle.dumps(region).hex())
    assert (done.stdout, done.stderr) == ("8 1 2\n", "")


# ---- the socket ----


def hide():
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def show():
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


class Post:
    """Messages from forked children."""

    def __init__(self):
        self.here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.here.settimeout(WAIT_S)

    def put(self, message):
        self.there.send(pickle.dumps(message))

    def get(self):
        return pickle.loads(self.here.recv(100_000))

    def close(self):
        self.here.close()
        self.there.close()


@pytest.fixture
def post():
    post = Post()
    yield post
    post.close()


def hidden_region(post):
    """A region of a process into which nobody of its user may look."""
    hide()
    region = vmalloc.Region("1M", name="hidden")
    region["a"] = region.full(10, 7, "u1")
    post.put(where_of(region))
    return region


@pytest.mark.skipif(os.geteuid() == 0 and NOBODY is None, reason="nothing is hidden from this root")
def test_a_process_that_hides_its_descriptors_serves_them_to_its_user(post):
    with forked(lambda: hidden_region(post), uid=NOBODY):
        where = post.get()

        def receive():
            show()
            region = region_at(where)
            region["b"] = region["a"] + 1
            post.put(int(region["b"].sum()))
            del region
            post.put(unavailable(changed(where, socket=None)))

        with forked(receive, uid=NOBODY):
            assert post.get() == 80
            text = post.get()
    assert "Permission denied (the process belongs to another user, or hides its descriptors)" in text
    assert "call region.serve() there" in text


@pytest.mark.skipif(NOBODY is None, reason="needs root to be two users")
def test_both_sides_of_the_socket_refuse_another_user(post):
    with forked(lambda: hidden_region(post), uid=NOBODY):
        where = post.get()

        def receive():
            post.put(unavailable(where))
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
                there.settimeout(WAIT_S)
                there.connect("\0" + where[5])
                try:
                    there.send(where[0])
                    post.put(socket.recv_fds(there, 100, 4)[:2])
                except OSError:  # it was closed before we could say anything
                    post.put((b"", []))

        with forked(receive, uid=65533):
            assert f"the sender's socket: the socket belongs to user {NOBODY}" in post.get()
            assert post.get() == (b"", [])


def test_a_socket_is_opened_by_serve_and_not_before():
    code = """
import threading, vmalloc
from vmalloc.attach import where_of
region = vmalloc.Region("1M")
assert where_of(region)[5] is None
assert threading.active_count() == 1
region.serve()
name = where_of(region)[5]
other = vmalloc.Region("1M")
assert where_of(other)[5] is None
other.serve()
region.serve()
assert where_of(other)[5] == where_of(region)[5] == name
assert threading.active_count() == 2
print(name)
"""
    done = python(code)
    assert done.stderr == ""
    assert done.stdout.startswith("vmalloc-")
    assert len(done.stdout) == len("vmalloc-") + 32 + 1


SERVED = """
import json, os, sys, vmalloc
from vmalloc.attach import where_of
region = vmalloc.Region("1M")
region["a"] = region.full(10, 3, "u1")
region.serve()
where_of(region)
pid = os.fork()
where = where_of(region)
print(json.dumps([pid, where[0].hex(), *where[1:]]), flush=True)
sys.stdin.read()
"""


def test_a_forked_child_of_a_process_that_serves_has_a_socket_of_its_own():
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        told = sorted(json.loads(parent.stdout.readline()) for _ in range(2))
        wheres = [(bytes.fromhex(id), *rest) for _, id, *rest in told]
        assert wheres[0][1] == told[1][0]  # the first is the child's
        assert wheres[0][5] != wheres[1][5]
        for where in wheres:
            region = region_at(changed(where, pid=1 << 30))
            assert region["a"].sum() == 30
            del region
        parent.kill()
        parent.wait(WAIT_S)
        assert "Connection refused" in unavailable(changed(wheres[1], pid=1 << 30, inode=1))
        assert region_at(changed(wheres[0], pid=1 << 30))["a"].sum() == 30
        parent.stdin.close()


def test_a_process_that_serves_ends_in_silence():
    code = "import vmalloc; r = vmalloc.Region('1M'); r.serve(); a = r.zeros(3)"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_closed_or_was_not_to_be_served_is_not(region):
    region.serve()
    where = where_of(region)
    other = vmalloc.Region("1M")
    id = bytes.fromhex(other.id)
    with pytest.raises(FileNotFoundError, match="does not have it any more"):
        serve.fetch(where[5], id)
    other.serve()
    os.close(serve.fetch(where[5], id))
    other.close()
    with pytest.raises(FileNotFoundError, match="does not have it any more"):
        serve.fetch(where[5], id)
    with pytest.raises(vmalloc.RegionClosed):
        other.serve()


def test_a_socket_outlives_those_who_ask_for_nonsense(region):
    region.serve()
    id, name = where_of(region)[0], where_of(region)[5]
    for nonsense in (b"", b"x", bytes(16), id + b"x", os.urandom(10_000)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
            there.settimeout(WAIT_S)
            there.connect("\0" + name)
            there.send(nonsense)
    fds = [serve.fetch(name, id) for _ in range(3)]
    for fd in fds:
        assert os.path.samestat(os.fstat(fd), os.fstat(region.fileno()))
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_process_that_is_stopped_does_not_keep_the_receiver_waiting(post, monkeypatch):
    monkeypatch.setattr(serve, "_WAIT_S", 0.2)

    def be_served():
        mine = vmalloc.Region("1M")
        mine.serve()
        post.put(where_of(mine))
        return mine

    with forked(be_served) as pid:
        where = changed(post.get(), pid=1 << 30, inode=1)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        assert "the sender's socket: no answer in 0.2 s (stopped?)" in unavailable(where)
        os.kill(pid, signal.SIGCONT)


INNER = """
import json, sys, vmalloc
from vmalloc.attach import where_of
from vmalloc.region import region_at
region = vmalloc.Region("1M")
region["a"] = region.full(4, 3, "u1")
for text in sys.stdin:
    id, *rest = json.loads(text)
    try:
        print(region_at((bytes.fromhex(id), *rest))["a"].sum(), flush=True)
    except vmalloc.RegionUnavailable as e:
        print(e, flush=True)
    print(json.dumps(where_text(where_of(region))), flush=True)
"""


@pytest.fixture
def inner():
    """A process in a pid namespace of its own; one line in gives two lines out."""
    enter = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no pid namespace can be made here: {e}")
    code = inspect.getsource(where_text) + INNER
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*enter, sys.executable, "-c", code], **pipes) as process:
        yield process
        process.stdin.close()
        process.wait(WAIT_S)


def test_another_pid_namespace_is_reached_by_the_socket(region, inner):
    region["a"] = region.full(4, 5, "u1")

    def answers():
        inner.stdin.write(json.dumps(where_text(where_of(region))) + "\n")
        inner.stdin.flush()
        return inner.stdout.readline(), inner.stdout.readline()

    answer, where = answers()
    assert "or runs in another pid namespace" in answer
    assert "call region.serve() there first" in answer
    region.serve()
    assert answers()[0] == "20\n"
    id, *rest = json.loads(where)
    assert rest[0] < 10  # a pid that is another's here
    assert region_at((bytes.fromhex(id), *rest))["a"].sum() == 12  # we may look into it


# ---- forged, late, without means ----

GOOD = (b"\0" * 16, 1 << 30, 5, 7, 1, None, None)


@pytest.mark.parametrize(
    "where",
    [
        None, 5, "text", b"", [], {}, (), GOOD[:6], (*GOOD, None), (b"\0" * 15, *GOOD[1:]),
        ("x" * 16, *GOOD[1:]), ([], *GOOD[1:]), (GOOD[0], "1", *GOOD[2:]),
        (GOOD[0], -1, *GOOD[2:]), (GOOD[0], 2**70, *GOOD[2:]), (GOOD[0], 1.0, *GOOD[2:]),
        (*GOOD[:5], b"name", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_tells_of_no_region_is_unavailable(where):
    assert "the reference tells of no region" in unavailable(where)


@pytest.mark.parametrize(
    "changes",
    [{}, {"socket": "no such socket"}, {"socket": "vmalloc-" + "0" * 32}, {"socket": "\0" * 200},
     {"given": "no descriptor"}, {"given": 0}, {"pid": 0},
     pytest.param({"pid": os.getpid(), "fd": 2**62}, id="no descriptor of ours")],
    ids=str,
)  # fmt: skip
def test_a_region_that_nobody_has_is_unavailable_and_says_what_was_tried(changes):
    where = changed(GOOD, **changes)
    text = unavailable(where)
    assert f"/proc/{where[1]}/fd/{where[2]}: " in text
    assert "other processes: none that may be looked at has it" in text
    assert ("the sender's socket: " in text) == ("socket" in changes)
    assert ("given at the start: it is none of this process" in text) == ("given" in changes)


def test_a_descriptor_that_means_something_else_by_now_is_not_opened(tmp_path):
    opened = []
    with open(tmp_path / "file", "wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *a, **k: opened.append(a))
        text = unavailable(changed(GOOD, pid=os.getpid(), fd=file.fileno()))
    assert "it is another file by now" in text
    assert opened == []


def test_another_region_in_the_place_of_the_one_meant_is_refused(region):
    where = where_of(region)
    text = unavailable((bytes(16), *where[1:]))
    assert f"is region {region.id}, not {'0' * 32}" in text


FEW_DESCRIPTORS = """
import os, pickle, resource, sys, numpy, vmalloc, vmalloc.reference
message = bytes.fromhex(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for left in range(4):
    try:
        pickle.loads(message)
    except vmalloc.RegionUnavailable as e:
        assert "Too many open files: attaching takes 4, this process may have 32" in str(e), e
        assert e.errno == 24
    os.close(taken.pop())
print(pickle.loads(message).sum(), len(os.listdir("/proc/self/fd")))
"""


def test_a_process_without_descriptors_is_told_how_many_it_may_have(region):
    ref = vmalloc.ref(region.full(10, 4, "u1"))
    done = python(FEW_DESCRIPTORS, pickle.dumps(ref).hex())
    assert done.stderr == ""
    assert done.stdout.startswith("40 ")


def test_a_region_that_was_closed_here_is_attached_anew(region):
    message = pickle.dumps(region)
    a = region.full(PAGE, 8, "u1")
    region["a"] = a
    region.close()
    again = pickle.loads(message)
    assert again is not region
    assert (again["a"] == 8).all()
    with pytest.raises(vmalloc.RegionClosed):
        pickle.dumps(region)
