# SPDX-License-Identifier: MIT
"""Two containers that share a folder, imitated by namespaces: attach, hand over, and the death of either.

A container here is a process with user, pid and mount namespaces of its own: it sees neither the processes
nor the descriptors of the other, which `test_containers_do_not_see_each_other` makes sure of.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAGE
from tests.processes.workers import NOBODY, needs_root, told_by_nobody

import vmalloc
from vmalloc import serve

ENTER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
WAIT_S = 60

CONTAINER = """
import os, pickle, sys, traceback, vmalloc
for line in sys.stdin:
    try:
        print(repr(eval(line)) if not line.startswith("!") else exec(line[1:]), flush=True)
    except Exception as e:
        print(f"{type(e).__name__}: {e}".replace("\\n", " "), flush=True)
"""


class Container:
    """Python in namespaces of its own: `eval`uates what it is told, or runs it after a "!"."""

    def __init__(self) -> None:
        words = [*ENTER, sys.executable, "-c", CONTAINER]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def run(self, line: str) -> None:
        assert self.say(f"!{line}") == "None"

    def kill(self) -> None:
        self.process.kill()  # and, soon after, all that is in it
        self.process.wait(WAIT_S)

    def recovers_to(self, nr_pages: int) -> bool:
        """Whether so many pages are busy once the dead are recovered; the kernel takes its time."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            self.run("region.recover()")
            if self.say("region.stats().busy_pages") == str(nr_pages):
                return True
            time.sleep(0.05)
        return False

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def containers() -> Iterator[tuple[Container, Container]]:
    try:
        subprocess.run([*ENTER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"this machine forbids user, pid and mount namespaces to us: {e}")
    both = Container(), Container()
    yield both
    for one in both:
        one.end()


@pytest.fixture
def served(containers: tuple[Container, Container], tmp_path: Path) -> tuple[Container, Container, Path]:
    """The first has made `region` and serves it, the second has attached it."""
    server, client = containers
    path = tmp_path / "region.sock"
    server.run("region = vmalloc.Region('4M', name='frames')")
    server.run(f"region.serve({str(path)!r})")
    client.run(f"region = vmalloc.Region.attach({f'unix:{path}'!r})")
    return server, client, path


def test_containers_do_not_see_each_other(containers: tuple[Container, Container]) -> None:
    server, client = containers
    server.run("region = vmalloc.Region('4M', name='frames')")
    assert "no region of this user is called 'frames'" in client.say("vmalloc.Region.attach('frames')")
    assert server.say("os.getpid()") == client.say("os.getpid()")


def test_a_region_is_attached_and_both_see_the_same(served: tuple[Container, Container, Path]) -> None:
    server, client, _ = served
    assert client.say("region.id") == server.say("region.id")
    server.run("region['a'] = region.full(4, 5, 'u1')")
    client.run("region['a'][0] = 9")
    assert server.say("region['a'].tolist()") == "[9, 5, 5, 5]"
    assert client.say("len([p for p in region.processes() if p.pid])") == "2"


def test_an_array_is_handed_over_by_reference(served: tuple[Container, Container, Path]) -> None:
    server, client, _ = served
    server.run("ref = vmalloc.ref(region.full(1000, 3, 'u1'))")
    message = server.say("pickle.dumps(ref)")
    client.run(f"a = pickle.loads({message})")
    server.run("del ref")
    assert client.say("(int(a.sum()), vmalloc.is_shared(a))") == "(3000, True)"
    assert server.say("region.stats().busy_pages") == "1"


def test_what_a_container_held_comes_back_when_it_dies(served: tuple[Container, Container, Path]) -> None:
    server, client, _ = served
    client.run("held = region.alloc(100 * 4096)")
    assert server.say("region.stats().busy_pages") == "100"
    client.kill()
    assert server.recovers_to(0)


def test_who_is_left_keeps_the_region_and_serves_it_on(served: tuple[Container, Container, Path]) -> None:
    server, client, path = served
    server.run("region['kept'] = region.full(4, 7, 'u1'); lost = region.alloc(100 * 4096)")
    server.kill()
    assert client.recovers_to(1)
    assert client.say("region['kept'].tolist()") == "[7, 7, 7, 7]"
    client.run(f"region.serve({str(path)!r})")  # in place of the dead one's socket
    third = Container()
    try:
        third.run(f"region = vmalloc.Region.attach({f'unix:{path}'!r})")
        assert third.say("region['kept'].tolist()") == "[7, 7, 7, 7]"
    finally:
        third.end()


# ---- other users ----


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where every user may look."""
    path = Path(tempfile.mkdtemp(prefix="vmalloc-shared-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def owner() -> Iterator[vmalloc.Region]:
    with vmalloc.Region("1M", helper=False) as region:
        region["a"] = region.alloc(PAGE)
        yield region


def attach_and_name(path: Path, **options: Any) -> str:
    region = vmalloc.Region.attach(f"unix:{path}", helper=False, **options)
    region["b"] = region.alloc(PAGE)
    return " ".join(sorted(region.names()))


@needs_root
def test_another_user_is_turned_away(owner: vmalloc.Region, folder: Path) -> None:
    path = folder / "region.sock"
    owner.serve(path)
    path.chmod(0o666)  # the file's mode is one door, what the kernel says of the user another
    told = told_by_nobody(lambda: attach_and_name(path, allow_uids=[0]))
    assert "refused: it is user 0's" in told


@needs_root
def test_another_user_has_it_when_both_name_each_other(owner: vmalloc.Region, folder: Path) -> None:
    path = folder / "region.sock"
    owner.serve(path, allow_uids=[NOBODY])
    assert path.stat().st_mode & 0o777 == 0o666
    assert "another user's region" in told_by_nobody(lambda: attach_and_name(path))
    assert told_by_nobody(lambda: attach_and_name(path, allow_uids=[0])) == "a b"
    owner.recover()
    assert sorted(owner.names()) == ["a", "b"]


def test_a_region_that_could_not_be_served_is_as_closed_as_before(
    owner: vmalloc.Region, folder: Path
) -> None:
    mode = os.fstat(owner.fileno()).st_mode
    with pytest.raises(OSError, match="No such file"):
        owner.serve(folder / "missing" / "region.sock", allow_uids=[NOBODY])
    assert os.fstat(owner.fileno()).st_mode == mode


def test_users_are_named_for_sockets_only() -> None:
    with vmalloc.Region("1M", helper=False) as region:
        with pytest.raises(ValueError, match="at which path"):
            region.serve(allow_uids=[5])
        with pytest.raises(ValueError, match="for a socket"):
            vmalloc.Region.attach(region.fileno(), allow_uids=[5])
        with pytest.raises(TypeError):
            region.serve("/tmp/never-made", allow_uids=["root"])  # type: ignore[list-item]
    assert "/tmp/never-made" not in serve._at
