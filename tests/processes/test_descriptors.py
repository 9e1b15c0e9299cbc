# SPDX-License-Identifier: MIT
"""Whatever a program does to its descriptors, its region lives, and no other file is harmed."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import textwrap

import pytest

MIB = 1 << 20
SAY = "import os\ndef say(*x): os.write(9, (' '.join(map(str, x)) + chr(10)).encode())\n"


def run(code: str, *, closed: tuple[int, ...] = ()) -> list[str]:
    """What the program printed to descriptor 9, line by line; it starts with some standard streams closed."""
    reader, writer = os.pipe()

    def close() -> None:
        os.dup2(writer, 9)
        for fd in closed:
            os.close(fd)

    program = SAY + textwrap.dedent(code)
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        pass_fds=(9,) if writer == 9 else (),
        close_fds=False,
        preexec_fn=close,
    )
    os.close(writer)
    with os.fdopen(reader) as out:
        said = out.read().splitlines()
    assert child.wait() == 0, said
    return said


def test_a_process_that_closed_all_descriptors_is_not_taken_for_dead():
    said = run("""
        import vmalloc
        r = vmalloc.Region("64M")
        to_neighbour, go_on = os.pipe(), os.pipe()
        keep = {0, 1, 2, 9, to_neighbour[1], go_on[0]}
        pid = os.fork()
        if pid == 0:
            os.read(to_neighbour[0], 1)
            got = r.recover()
            r.shrink()
            mine = [r.empty(1 << 20, "u1") for _ in range(8)]
            for m in mine:
                m[:] = 7
            say("recovered", got, "processes", r.stats().nr_processes)
            os.write(go_on[1], b"x")
            os.read(to_neighbour[0], 1)
            say("overwritten", sum(int((m != 7).sum()) for m in mine))
            os._exit(0)
        a = r.empty(1 << 20, "u1")
        for fd in set(range(3, 256)) - keep:
            try:
                os.close(fd)
            except OSError:
                pass
        os.write(to_neighbour[1], b"x")
        os.read(go_on[0], 1)
        a[:] = 2
        os.write(to_neighbour[1], b"x")
        os.waitpid(pid, 0)
        del a
        r.check()
        say("still", r.empty(4096).nbytes)
    """)
    assert said == ["recovered 0 processes 2", "overwritten 0", "still 32768"]


@pytest.mark.parametrize("how", ["closed and opened again", "dup2ed over"])
def test_a_file_that_gets_the_regions_number_keeps_every_byte(how, tmp_path):
    canary = tmp_path / "canary"
    said = run(f"""
        import vmalloc
        path, how = {str(canary)!r}, {how!r}
        r = vmalloc.Region("64M")
        a = r.empty(32 << 20, "u1")
        a[:] = 1
        with open(path, "wb") as f:
            f.write(b"\\xaa" * (128 << 20))
        other = os.open(path, os.O_RDWR)
        if how == "dup2ed over":
            for fd in range(3, other):
                if fd != 9:
                    os.dup2(other, fd)
        else:
            for fd in range(3, 64):
                if fd != 9:
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            others = [os.open(path, os.O_RDWR) for _ in range(8)]
        del a
        say(r.shrink() >> 20)
        b = r.zeros(8 << 20, "u1")
        say(int(b.sum()))
        del b, r
    """)
    assert said == ["32", "0"]
    assert canary.read_bytes() == b"\xaa" * (128 * MIB)


@pytest.mark.parametrize(
    "closed",
    [c for n in range(1, 4) for c in itertools.combinations((0, 1, 2), n)],
    ids=lambda c: "".join(map(str, c)),
)
def test_our_descriptors_lie_above_the_standard_streams(closed):
    said = run(
        """
        import vmalloc
        r = vmalloc.Region("16M")
        a = r.zeros(1000)
        for fd in (0, 1, 2):
            try:
                os.write(fd, b"" if fd == 0 else b"WARNING\\n")
            except OSError:
                pass
        pid = os.fork()
        if pid == 0:
            q = vmalloc.Region.attach(f"/proc/{os.getppid()}/fd/{r.fileno()}")
            say(r.fileno() > 2, float(a.sum()), q.id == r.id)
            os._exit(0)
        os.waitpid(pid, 0)
        r.check()
    """,
        closed=closed,
    )
    assert said == ["True 0.0 True"]


def test_a_region_whose_descriptor_was_closed_can_still_be_sent():
    said = run("""
        import pickle, subprocess, sys, vmalloc
        r = vmalloc.Region("16M")
        a = r.zeros(1000)
        a[:] = 3
        os.close(r.fileno())
        try:
            packed = pickle.dumps(vmalloc.ref(a))
        except vmalloc.RegionUnavailable as e:
            say("refused", "closed the region's descriptor" in str(e))
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c",
                     "import os, pickle, sys; a = pickle.loads(bytes.fromhex(sys.argv[1])); "
                     "os.write(9, f'{a.sum()}'.encode())", packed.hex()])
        os.waitpid(pid, 0)
        say("", r.fileno() > 2)
    """)
    privileged = os.geteuid() == 0  # others cannot open a file through its mapping
    assert said == (["3000.0 True"] if privileged else ["refused True"])


def test_locked_memory_goes_back_all_the_same():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    said = run("""
        import ctypes, vmalloc
        r = vmalloc.Region("64M")
        a = r.empty(8 << 20, "u1")
        a[:] = 1
        at, nbytes = ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.nbytes)
        locked = ctypes.CDLL(None).mlock(at, nbytes)
        before = r.stats().resident_bytes
        del a
        r.shrink()
        say(locked, before - r.stats().resident_bytes > 7 << 20)
    """)
    if soft not in (-1,) and soft < 8 * MIB and said[0].startswith("-1"):
        pytest.skip(f"RLIMIT_MEMLOCK is {soft}")
    assert said == ["0 True"]


def test_locked_memory_goes_back_in_pieces_where_no_more_may_be_locked():
    """As much again is locked for a moment, which RLIMIT_MEMLOCK does not allow for the whole of it."""
    nbytes = 6 * MIB
    said = run(f"""
        import ctypes, resource, vmalloc
        limit = {8 * MIB}
        r = vmalloc.Region("64M")
        a = r.full({nbytes}, 1, "u1")
        _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if most != -1 and most < limit:
            say("no")
            raise SystemExit
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, most))
        if os.geteuid() == 0:
            os.setuid(65534)  # the limit is not root's
        at, nbytes = ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.nbytes)
        say(ctypes.CDLL(None).mlock(at, nbytes))
        before = r.stats().resident_bytes
        del a
        r.shrink()
        say(before - r.stats().resident_bytes > {nbytes - MIB})
        r.check()
    """)
    if said == ["no"]:
        pytest.skip(f"RLIMIT_MEMLOCK allows less than {8 * MIB} bytes")
    assert said == ["0", "True"]


@pytest.mark.parametrize("attach", [False, True], ids=["made", "attached"])
def test_a_process_that_locks_all_its_memory_takes_no_more_of_a_region_than_it_touches(attach):
    said = run(f"""
        import ctypes, vmalloc
        made, ended = os.pipe(), os.pipe()
        pid = os.fork() if {attach} else 0
        if pid == 0 and {attach}:
            os.close(ended[1])
            r = vmalloc.Region("256M")
            os.write(made[1], str(r.fileno()).encode())
            os._exit(len(os.read(ended[0], 1)))
        number = int(os.read(made[0], 9)) if {attach} else 0
        say(ctypes.CDLL(None).mlockall(2))  # MCL_FUTURE
        r = vmalloc.Region.attach(f"/proc/{{pid}}/fd/{{number}}") if {attach} else vmalloc.Region("256M")
        say(r.stats().resident_bytes < 8 << 20)
        a = r.full(32 << 20, 1, "u1")
        say(r.stats().resident_bytes >> 20 in (32, 33))
        del a
        r.shrink()
        say(r.stats().resident_bytes < 8 << 20)
        r.check()
    """)
    if said[0] != "0":
        pytest.skip("this user may not lock so much")
    assert said == ["0", "True", "True", "True"]


def test_where_no_descriptor_is_left_a_region_works_and_an_error_says_what_is_short():
    said = run("""
        import numpy, resource, vmalloc
        r = vmalloc.Region("64M")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        a = [r.full(1 << 20, 1, "u1") for _ in range(20)]
        try:
            r.alloc(50 << 20)
        except vmalloc.OutOfPages as e:
            say(e.cause)
        try:
            r.alloc(50 << 20, timeout=0.01)
        except vmalloc.OutOfPages as e:
            say(e.cause)
        del a
        r.purge(), r.shrink(), r.recover(), r.tick(), r.prefault("1M"), r.check()
        say(r.zeros(1 << 20, "u1").sum())
    """)
    assert said == ["space", "space", "0"]
