# SPDX-License-Identifier: MIT
"""The kernel's tracing files, used without disturbing anyone: a private instance, removed whatever happens.

An instance is a directory below instances/ with its own ring, switches and clock; other users of tracing do
not see what happens in it. Three things remove ours: `Instance.remove` on every ordinary way out; a watcher
process that holds the reading end of a pipe and cleans up when the writing end closes, be it by SIGKILL; and
the next recorder, which removes instances whose owner is dead (its pid is gone and nobody holds the lock on
the directory).

Where tracefs is mounted nowhere, a mount of our own is made that is attached to no directory (fsmount) and
vanishes with its last file descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vmalloc.lab.events import log

EVENTS = ("alloc_vmap_area", "purge_vmap_area_lazy", "free_vmap_area_noflush")
PREFIX = "vmalloc-"
OURS = re.compile(re.escape(PREFIX) + r"(\d+)(?:-\d+)?")
KPTR_RESTRICT = Path("/proc/sys/kernel/kptr_restrict")
RESTRICTION_PATIENCE_S = 10.0
"""Another recorder has set it while it reads /proc/vmallocinfo, which takes milliseconds."""

SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432  # the same on every architecture but alpha; Linux 5.2
FSCONFIG_CMD_CREATE, CLOEXEC = 6, 1

# The watcher: $1 the instance, $2 kptr_restrict. It reads until the recorder closes the pipe or dies; the
# last line read says what kptr_restrict is to be set back to. Signals of the terminal are not meant for it.
WATCHER = r"""
trap '' INT TERM HUP QUIT
kptr=
while read -r value; do kptr=$value; done
[ -n "$kptr" ] && echo "$kptr" >"$2"
[ -d "$1" ] || exit 0
echo 0 >"$1/tracing_on"
echo 0 >"$1/events/enable"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    rmdir "$1" && exit 0
    sleep 0.1
done
"""


class RecordError(RuntimeError):
    """The running kernel cannot be recorded; the message is one line that says why and what to do."""


class Tracefs:
    """A directory where tracefs can be reached, for as long as this object is open."""

    def __init__(self) -> None:
        self._mount: int | None = None
        self.path = _mounted() or self._mount_detached()
        if not (self.path / "events/vmalloc/enable").exists():
            release = os.uname().release
            self.close()
            raise RecordError(f"this kernel ({release}) has no vmalloc trace events; they came with 6.2")

    def _mount_detached(self) -> Path:
        libc = ctypes.CDLL(None, use_errno=True)
        context = libc.syscall(SYS_FSOPEN, b"tracefs", CLOEXEC)
        if context >= 0:
            libc.syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
            mount = libc.syscall(SYS_FSMOUNT, context, CLOEXEC, 0)
            reason = os.strerror(ctypes.get_errno())
            os.close(context)
            if mount >= 0:
                self._mount = mount
                return Path(f"/proc/self/fd/{mount}")
        else:
            reason = os.strerror(ctypes.get_errno())
        raise RecordError(f"tracefs cannot be mounted ({reason}): root in the first user namespace is needed")

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors that a child needs to use `path`."""
        return () if self._mount is None else (self._mount,)

    def close(self) -> None:
        if self._mount is not None:
            os.close(self._mount)
            self._mount = None


def _mounted() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind = line.split(" ")[:3]
        path = Path(where.replace("\\040", " "))
        if kind == "tracefs" and (path / "instances").is_dir():
            return path
    return None


class Instance:
    """A private instance of tracing that records the three vmalloc events; nothing runs until `start`."""

    def __init__(self, tracefs: Tracefs, buffer_kb: int, clock: str = "mono") -> None:
        remove_stale(tracefs)
        instances = tracefs.path / "instances"
        number = 0
        while True:
            name = f"{PREFIX}{os.getpid()}" + (f"-{number}" if number else "")
            self.path = instances / name
            if not self.path.exists():
                break
            number += 1
        self._watcher = _Watcher(tracefs, self.path)  # before there is anything to clean up
        self._lock: int | None = None
        try:
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.write("tracing_on", "0")
            self.write("trace_clock", clock)
            self.write("buffer_size_kb", str(buffer_kb))
            for event in EVENTS:
                self.write(f"events/vmalloc/{event}/enable", "1")
        except BaseException:
            self.remove()
            raise

    def write(self, name: str, value: str) -> None:
        (self.path / name).write_text(value)

    def start(self) -> None:
        self.write("tracing_on", "1")

    def stop(self) -> None:
        self.write("tracing_on", "0")

    def mark(self, text: str) -> None:
        """Write a marker into the recording."""
        self.write("trace_marker", text)

    def nr_lost(self) -> int:
        """Events that the ring could not keep so far, over all CPUs."""
        lost = 0
        for stats in self.path.glob("per_cpu/cpu*/stats"):
            for line in stats.read_text().splitlines():
                name, _, value = line.partition(": ")
                if name in ("overrun", "commit overrun", "dropped events"):
                    lost += int(value)
        return lost

    def snapshot(self, *, real_addresses: bool) -> bytes:
        """/proc/vmallocinfo now. real_addresses sets kptr_restrict to 1 while reading, and back."""
        with self._watcher.addresses_shown() if real_addresses else nullcontext():
            return Path("/proc/vmallocinfo").read_bytes()

    def remove(self) -> None:
        """Stop recording and remove the instance. Can be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _remove(self.path)
        self._watcher.dismiss()


class _Watcher:
    """A child that outlives the recorder by as long as it takes to clean up after it.

    Recorders set kptr_restrict one at a time: the lock on it belongs to a description of the file that the
    child has too, so after a recorder's death it lasts until the child has set the value back.
    """

    def __init__(self, tracefs: Tracefs, instance: Path) -> None:
        self._restriction = os.open(KPTR_RESTRICT, os.O_RDONLY)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER, "vmalloc-record-watcher", str(instance), str(KPTR_RESTRICT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(*tracefs.inherited, self._restriction),
            start_new_session=True,
            cwd="/",
        )

    @contextmanager
    def addresses_shown(self) -> Iterator[None]:
        """kptr_restrict is 1 meanwhile, and no other recorder changes it; RecordError if one keeps it."""
        self._lock_restriction()
        try:
            before = KPTR_RESTRICT.read_text().strip()
            if before == "1":
                yield  # nothing to write, which may be forbidden
                return
            self.restore_kptr(before)
            try:
                KPTR_RESTRICT.write_text("1")
                yield
            finally:
                KPTR_RESTRICT.write_text(before)
                self.restore_kptr("")
        finally:
            fcntl.flock(self._restriction, fcntl.LOCK_UN)

    def _lock_restriction(self) -> None:
        end = time.monotonic() + RESTRICTION_PATIENCE_S
        while True:
            try:
                return fcntl.flock(self._restriction, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    text = "another recorder keeps kernel.kptr_restrict changed"
                    raise RecordError(f"{text}: end it, or leave --real-addresses out") from None
                time.sleep(0.01)

    def restore_kptr(self, value: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(value.encode() + b"\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._restriction >= 0:
            os.close(self._restriction)
            self._restriction = -1


def remove_stale(tracefs: Tracefs) -> list[str]:
    """Remove the instances of recorders that died together with their watchers; their names."""
    removed = []
    for path in (tracefs.path / "instances").iterdir():
        ours = OURS.fullmatch(path.name)
        if ours and not Path(f"/proc/{ours[1]}").exists() and not _is_locked(path):
            log.warning("removing the tracing instance %s of a recorder that died", path.name)
            _remove(path)
            removed.append(path.name)
    return removed


def _is_locked(path: Path) -> bool:
    """Whether a recorder (perhaps of another pid namespace) holds the instance."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    for attempt in range(20):
        try:
            (path / "tracing_on").write_text("0")
            (path / "events/enable").write_text("0")
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == 19:
                log.warning("cannot remove the tracing instance %s: %s", path.name, error)
                return
            time.sleep(0.05)
