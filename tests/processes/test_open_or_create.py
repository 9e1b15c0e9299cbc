# SPDX-License-Identifier: MIT
"""Open or create, attributes, slots to pids, sockets that are files."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vmalloc
from vmalloc import named, serve

OPEN = """
import sys, vmalloc
sys.stdin.readline()
region = vmalloc.Region.open_or_create(sys.argv[1], "4M", helper=False)
print(region.id, flush=True)
sys.stdin.readline()
"""


def python(code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_that_ask_at_once_one_makes_it(attempt: int) -> None:
    name = f"raced-{os.getpid()}-{attempt}"
    processes = [python(OPEN, name) for _ in range(8)]
    try:
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        ids = {process.stdout.readline() for process in processes}  # type: ignore[union-attr]
        assert len(ids) == 1
        assert len(next(iter(ids)).strip()) == 32
    finally:
        for process in processes:
            process.communicate("end\n", timeout=60)


def test_it_is_attached_and_keeps_its_size() -> None:
    with vmalloc.Region.open_or_create(f"one-{os.getpid()}", "4M", limit="2M") as region:
        assert vmalloc.Region.open_or_create(region.name, "1G") is region
        assert (region.name, region.size, region.limit) == (f"one-{os.getpid()}", 4 << 20, 2 << 20)
        assert region.owner == os.geteuid()
    del region
    with vmalloc.Region.open_or_create(f"one-{os.getpid()}", "8M") as region:  # the first is gone
        assert region.size == 8 << 20


def test_a_bound_that_the_region_does_not_have_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    name = f"bounds-{os.getpid()}"
    with caplog.at_level("INFO", "vmalloc"):
        made = vmalloc.Region.open_or_create(name, "4M", quota="1M", helper=False)
        vmalloc.Region.open_or_create(name, "4M", limit="2M", quota="1M", helper=False)
    (record,) = caplog.records
    assert record.getMessage() == f"region {name!r} exists: its limit is None, not 2M; set it if it should be"
    made.close()


def test_who_attaches_it_has_no_helper_if_it_wants_none() -> None:
    with vmalloc.Region.open_or_create(f"alone-{os.getpid()}", "4M") as region:
        code = "import sys, vmalloc; print(vmalloc.Region.open_or_create(sys.argv[1], helper=False).helper)"
        assert python(code, region.name).communicate(timeout=60)[0] == "False\n"


def test_two_of_a_name_are_refused() -> None:
    name = f"two-{os.getpid()}"
    regions = [vmalloc.Region("1M", name=name) for _ in range(2)]
    with pytest.raises(vmalloc.RegionUnavailable, match="2 regions are called"):
        vmalloc.Region.open_or_create(name)
    for region in regions:
        region.close()


def test_who_takes_too_long_is_told() -> None:
    name = f"slow-{os.getpid()}"
    with named._mutex(name, 1), pytest.raises(vmalloc.RegionBusy, match=r"for 0\.1 s"):
        vmalloc.Region.open_or_create(name, timeout_s=0.1)


@pytest.mark.parametrize("name", ["n" * 242, "a\x1b[31m", "a\nb", "ü" * 121, "a/b"])
def test_a_name_that_nobody_could_find_or_show_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        vmalloc.Region("1M", name=name)


def test_slots_lead_to_pids() -> None:
    with vmalloc.Region("1M", name=f"slots-{os.getpid()}", helper=False) as region:
        child = python(OPEN, region.name)
        child.stdin.write("go\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        child.stdout.readline()  # type: ignore[union-attr]
        assert {process.pid for process in region.processes()} == {os.getpid(), child.pid}
        block = region.alloc(1)
        busy = next(r for r in region.ranges() if r.state == "busy")
        assert {p.slot: p.pid for p in region.processes()}[busy.owner] == os.getpid()
        block.release()
        child.communicate("end\n", timeout=60)


ATTACH = "import sys, vmalloc; print(vmalloc.Region.attach('unix:' + sys.argv[1]).id)"


def attached_by(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, str(path)], capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_a_region_is_handed_out_at_a_path(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    with vmalloc.Region("1M", helper=False) as region:
        region.serve(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert attached_by(path) == region.id
        with pytest.raises(vmalloc.RegionUnavailable, match="serves there already"):
            region.serve(path)
    assert "RegionUnavailable" in attached_by(path)  # closed


def test_a_socket_of_a_dead_process_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    with vmalloc.Region("1M", helper=False) as region:
        region.serve(path)
        assert attached_by(path) == region.id
        plain = tmp_path / "precious"
        plain.write_text("data")
        with pytest.raises(vmalloc.RegionUnavailable, match="no socket"):
            region.serve(plain)
        assert plain.read_text() == "data"
        with pytest.raises(ValueError, match="107 bytes"):
            region.serve(tmp_path / ("x" * 107))


def test_of_two_that_serve_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, is_bound, refused = tmp_path / "region.sock", threading.Event(), list[str]()

    def bound_and_not_listening(*_: object) -> None:
        is_bound.set()
        time.sleep(0.3)

    def serve_too() -> None:
        is_bound.wait()
        monkeypatch.undo()
        try:
            region.serve(path)
        except vmalloc.RegionUnavailable as error:
            refused.append(str(error))

    monkeypatch.setattr(serve.os, "chmod", bound_and_not_listening)
    with vmalloc.Region("1M", helper=False) as region:
        other = threading.Thread(target=serve_too)
        other.start()
        region.serve(path)
        other.join()
        assert len(refused) == 1
        assert "serves there already" in refused[0]


SERVE = """
import sys, vmalloc
region = vmalloc.Region("1M", helper=False)
region.serve(sys.argv[1])
print(region.id, flush=True)
sys.stdin.readline()
"""


def test_who_ends_leaves_the_socket_of_who_came_after(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    first = python(SERVE, str(path))
    first.stdout.readline()  # type: ignore[union-attr]
    path.unlink()
    second = python(SERVE, str(path))
    id = second.stdout.readline().strip()  # type: ignore[union-attr]
    first.communicate("end\n", timeout=60)
    assert attached_by(path) == id
    second.communicate("end\n", timeout=60)
    assert not path.exists()


def serving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vmalloc-serve")]


def sockets_of_ours() -> set[str]:
    found = set[str]()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass  # of listdir() itself
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.parametrize("how", ["close", "collect"])
def test_with_a_region_its_sockets_end(how: str, tmp_path: Path) -> None:
    paths = [tmp_path / "a.sock", tmp_path / "b.sock"]
    threads, sockets = serving_threads(), sockets_of_ours()
    region = vmalloc.Region("1M", helper=False)
    for path in paths:
        region.serve(path)
    new = [thread for thread in serving_threads() if thread not in threads]
    if how == "close":
        region.close()
    del region
    gc.collect()
    assert [path for path in paths if path.exists()] == []
    for thread in new:
        thread.join(60)
        assert not thread.is_alive()
    assert len(new) == 2
    assert sockets_of_ours() <= sockets


def test_a_socket_whose_file_is_gone_ends_when_its_path_is_served_anew(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    with vmalloc.Region("1M", helper=False) as region:
        threads = serving_threads()
        region.serve(path)
        (first,) = [thread for thread in serving_threads() if thread not in threads]
        path.unlink()
        region.serve(path)
        first.join(60)
        assert not first.is_alive()
        assert attached_by(path) == region.id


def test_a_programs_default_timeout_for_sockets_ends_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.05)
    try:
        with vmalloc.Region("1M", helper=False) as region:
            region.serve(path)
            time.sleep(0.2)
            assert attached_by(path) == region.id
    finally:
        socket.setdefaulttimeout(before)


@pytest.mark.parametrize("uids", [[], [5]])
def test_a_link_that_took_the_sockets_place_is_not_followed(
    uids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ours = tmp_path / "region.sock", tmp_path / "ours"
    ours.touch(0o640)

    class Replaced(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            path.unlink()
            path.symlink_to(ours)

    monkeypatch.setattr(socket, "socket", Replaced)
    region = vmalloc.Region("1M", helper=False)
    with pytest.raises(vmalloc.RegionUnavailable, match="took the socket's place"):
        region.serve(path, allow_uids=uids)
    assert ours.stat().st_mode & 0o777 == 0o640
    assert str(path) not in serve._at


def test_the_common_socket_ends_with_the_last_region_it_serves() -> None:
    code = """if True:
    import threading, vmalloc
    a, b = vmalloc.Region("1M", helper=False), vmalloc.Region("1M", helper=False)
    a.serve(); b.serve()
    thread, = [t for t in threading.enumerate() if t.name == "vmalloc-serve"]
    a.close()
    print(thread.is_alive())
    b.close()
    thread.join(60)
    print(thread.is_alive())
    c = vmalloc.Region("1M", helper=False)
    c.serve()
    print(sum(t.name == "vmalloc-serve" for t in threading.enumerate()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["True", "False", "1"], "")


@pytest.mark.parametrize("serve_first", ["", "region.serve(); region.serve(sys.argv[1])"])
def test_a_region_is_closed_as_the_interpreter_ends(serve_first: str, tmp_path: Path) -> None:
    code = f"""if True:
    import sys, vmalloc
    class Kept:
        def __del__(self): self.region.close(); print("closed")
    region = vmalloc.Region("1M", helper=False)
    {serve_first}
    sys.modules["kept"] = kept = Kept()
    kept.region = region
    """
    words = [sys.executable, "-c", code, str(tmp_path / "region.sock")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("closed\n", "")
    assert list(tmp_path.iterdir()) == []


def test_who_never_served_does_not_load_what_serves_to_close() -> None:
    code = "import sys, vmalloc; vmalloc.Region('1M').close(); print('vmalloc.serve' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_finalizer_may_close_a_region_while_another_one_s_socket_opens() -> None:
    """In a forked child, which has no socket yet, the inherited region is still one that is served."""
    code = """if True:
    import os, signal, socket, vmalloc
    a, b = vmalloc.Region("1M", helper=False), vmalloc.Region("1M", helper=False)
    a.serve()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        class Interrupted(socket.socket):
            def bind(self, address):
                a.close()
                super().bind(address)
        socket.socket = Interrupted
        b.serve()
        from vmalloc import serve
        print(serve._listener is not None, flush=True)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "0"]


def test_a_child_that_closes_leaves_its_parents_socket(tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    with vmalloc.Region("1M", helper=False) as region:
        region.serve(path)
        pid = os.fork()
        if pid == 0:
            region.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert attached_by(path) == region.id


@pytest.mark.parametrize("path", ["", "\0x", "a\0b"])
def test_what_is_no_path_serves_nothing(path: str) -> None:
    with vmalloc.Region("1M", helper=False) as region:
        with pytest.raises(ValueError, match="no path of a socket"):
            region.serve(path)
        with pytest.raises(vmalloc.RegionUnavailable, match="no path of a socket"):
            vmalloc.Region.attach(f"unix:{path}")


@pytest.mark.parametrize("timeout_s", [float("nan"), -1.0])
def test_a_time_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be 0 or more"):
        vmalloc.Region.open_or_create("never-made", "1M", timeout_s=timeout_s)


def test_what_cannot_be_opened_to_others_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "region.sock"
    with vmalloc.Region("1M", helper=False) as region:
        monkeypatch.setattr(os, "fchmod", refuse)  # as for a region of another user
        with pytest.raises(OSError):
            region.serve(path, allow_uids=[os.getuid() + 1])
        assert not path.exists()
        region.serve(path)
        assert path.exists()
    assert not path.exists()
