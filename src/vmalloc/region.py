# SPDX-License-Identifier: MIT
"""Region: one shared mapping, allocated from by any thread of any process that attached."""

from __future__ import annotations

import errno
import os
import re
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vmalloc import stand_in
from vmalloc._core import CoreRegion, attached
from vmalloc.adapters.registry import describe, holding_of, place, rebuild
from vmalloc.array import ArrayFunctions
from vmalloc.attach import Where, attach, attach_where, serve_at, serve_region, stop_serving, where_of
from vmalloc.description import decode, encode
from vmalloc.errors import OutOfPages, RegionCorrupt, RegionUnavailable, VmallocError
from vmalloc.facts import (
    COPY_IN_THRESHOLD_BYTES,
    LEASE_TTL_S,
    LOCK_TIMEOUT_S,
    NODES_MAX,
    PAGES_MAX,
    POOLS,
    POOLS_DEFAULT,
    PROCESSES_MAX,
    REGION_NAME_BYTES_MAX,
    SMALLEST_DEFAULT_BYTES,
    THREADS_MAX,
)
from vmalloc.limits import room_for_a_region
from vmalloc.log import INFO, log
from vmalloc.named import open_or_create
from vmalloc.prefault import HUGE, huge_text, prefault
from vmalloc.stats import PER_CPU, PRESSURE_SOURCES, PRESSURES, Holder, ProcessSlot, Range, Stats

if TYPE_CHECKING:
    from vmalloc.adapters.numpy_memory import NumpyArrays
    from vmalloc.lab.record_region import RegionRecorder

stand_in.has_stand_in([])  # imported here: when a load fails there may be no descriptor left to import it by

__all__ = ["Region", "default_region", "parse_size", "region_at", "region_of"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def _renew_lock_in_child() -> None:
    global _default_lock
    _default_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_in_child)


def parse_size(size: int | str) -> int:
    """Bytes of 4096, "64K", "1.5 GiB", "8G" (powers of 1024). ValueError otherwise."""
    # not every caller runs a type checker
    if isinstance(size, bool) or not isinstance(size, int | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a size is bytes or text like '8G', not {size!r}")
    if isinstance(size, int):
        nbytes = size
    else:
        match = _SIZE.fullmatch(size.strip())
        if match is None:
            raise ValueError(f"{size!r} is no size; write bytes, or 64K, 1.5G, 2TiB")
        nbytes = int(float(match[1]) * _UNITS[match[2].upper()])
    if nbytes <= 0:
        raise ValueError(f"a size must be positive, not {size!r}")
    return nbytes


class RegionBase(CoreRegion):
    """What memory regions and address spaces share: options, attach, look at, check, context manager."""

    __slots__ = ("_is_served", "_nr_recovered_told", "_recording", "_serves_at")
    _has_pages: ClassVar[bool] = True
    _recording: Callable[[], RegionRecorder | None] | None
    _is_served: bool
    _serves_at: bool
    _nr_recovered_told: int

    def _open(
        self,
        nr_pages: int,
        *,
        name: str,
        pools: str,
        granule: int = 0,
        base: int = 0,
        limit_pages: int = 0,
        lazy_pages_max: int = 0,
        nodes: int | None,
        max_threads: int | None,
        max_processes: int | None = None,
        keep_on_death: bool = False,
        lease_ttl_s: float = LEASE_TTL_S,
        helper: bool = True,
        huge: str = "never",
        hardened: bool = False,
    ) -> None:
        if huge not in HUGE:
            raise ValueError(f"huge must be 'try' or 'never', not {huge!r}")
        if "/" in name:
            raise ValueError(f"a region's name has no '/': attach() takes {name!r} for a path")
        if not name.isprintable() and "\0" not in name:
            raise ValueError(f"a region's name is printable text, not {name!r}: terminals show it")
        if (nr_bytes := len(name.encode())) > REGION_NAME_BYTES_MAX or "\0" in name:
            raise ValueError(
                f"a region's name takes at most {REGION_NAME_BYTES_MAX} bytes without zeros,"
                f" not {nr_bytes}: {name!r:.100}"
            )
        if pools not in POOLS:
            raise ValueError(f"pools must be one of {', '.join(POOLS)}, not {pools!r}")
        if nr_pages > PAGES_MAX:
            raise ValueError(f"a region has at most {PAGES_MAX} pages, not {nr_pages}")
        if not 0 < lease_ttl_s < 1e9:
            raise ValueError(f"lease_ttl_s must be positive and below 1e9, not {lease_ttl_s}")
        for what, value, most in (
            ("nodes", nodes, NODES_MAX),
            ("max_threads", max_threads, THREADS_MAX),
            ("max_processes", max_processes, PROCESSES_MAX),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{what} must be from 1 to {most}, not {value}")
        self._create(
            nr_pages,
            name=name,
            pools=pools,
            granule=granule,
            base=base,
            limit_pages=limit_pages,
            lazy_pages_max=lazy_pages_max,
            nr_nodes=nodes or 0,
            nr_threads=max_threads or 0,
            nr_processes=max_processes or 0,
            keep_on_death=keep_on_death,
            lease_ttl_s=lease_ttl_s,
            huge=huge == "try",
            hardened=hardened,
        )
        self._opened(helper=helper)

    @property
    def id(self) -> str:
        """The region's 128-bit name, in hexadecimal; references carry it."""
        return str(self._info()["id"].hex())

    @property
    def name(self) -> str:
        """What it was made with; "" for none."""
        target = os.readlink(f"/proc/self/fd/{self.fileno()}")
        return target.removeprefix("/memfd:vmalloc:").removesuffix(" (deleted)")

    @property
    def owner(self) -> int:
        """The user id of who made it."""
        return os.fstat(self.fileno()).st_uid

    @property
    def pools(self) -> str:
        """The pool design: off, locked, llist, magazine, tagged or percpu."""
        return str(self._info()["pools"])

    @property
    def nr_pages(self) -> int:
        """Allocatable pages (granules of an address space)."""
        return int(self._info()["nr_pages"])

    # ---- limits: changeable while others work, and the same for all processes ----

    def _limit(self, which: int) -> int | None:
        return self._limits()[which] or None

    def _change_limit(self, which: int, size: int | str | None) -> None:
        self._set_limit(which, 0 if size is None else parse_size(size))

    @property
    def limit(self) -> int | None:
        """Bytes that may be handed out or kept ready at once, by all processes; None: the whole size.

        A request beyond it raises OutOfPages. May be set to bytes, text like "2G", or None, at any time; what
        is in use above a lowered limit stays.
        """
        return self._limit(0)

    @limit.setter
    def limit(self, size: int | str | None) -> None:
        self._change_limit(0, size)

    @property
    def soft_limit(self) -> int | None:
        """Bytes above which freed memory is given back at the next tick instead of staying warm; or None.

        Requests are served beyond it. Set like `limit`.
        """
        return self._limit(1)

    @soft_limit.setter
    def soft_limit(self, size: int | str | None) -> None:
        self._change_limit(1, size)

    @property
    def quota(self) -> int | None:
        """Bytes that each process may hold; None: no such bound.

        What is busy and what is ready in a process's magazines counts; what several processes share counts
        for each. Set like `limit`.
        """
        return self._limit(2)

    @quota.setter
    def quota(self, size: int | str | None) -> None:
        self._change_limit(2, size)

    @property
    def floor(self) -> int | None:
        """Bytes of warm memory that stay, however idle, unless memory is short; None: all goes in time.

        Set like `limit`.
        """
        return self._limit(3)

    @floor.setter
    def floor(self, size: int | str | None) -> None:
        self._change_limit(3, size)

    def holders(self, most: int = PROCESSES_MAX) -> list[Holder]:
        """The processes that hold most, the most first, from one walk over the words without a lock."""
        return [Holder(pid, nbytes, slot) for slot, pid, nbytes in self._holdings(most)]

    def processes(self) -> list[ProcessSlot]:
        """Every process that has a slot, those that hold most first: from slot to pid.

        One that died is among them until it is recovered. Who attached read-only has no slot.
        """
        most = PROCESSES_MAX + 1  # the region itself
        return [ProcessSlot(pid, nbytes, slot) for slot, pid, nbytes in self._holdings(most, idle_too=True)]

    def stats(self) -> Stats:
        """Pages by state and counters, from one walk over the words: O(number of ranges)."""
        told: dict[str, Any] = dict(self._stats())
        told["pressure"] = PRESSURES[min(told["pressure"], len(PRESSURES) - 1)]
        asked = told["pressure_sources"]
        told["pressure_sources"] = tuple(name for i, name in enumerate(PRESSURE_SOURCES) if asked >> i & 1)
        told["per_cpu"] = PER_CPU[told["per_cpu"]]
        self._log_recovered(told["nr_recovered"])
        info = self._info()
        return Stats(page_size=info["granule"], huge=huge_text(info), **told)

    def _log_recovered(self, nr_pages: int) -> None:
        """Helpers and requests of all processes recover, and cannot call Python: noticed at the next look."""
        if nr_pages > self._nr_recovered_told:
            new, self._nr_recovered_told = nr_pages - self._nr_recovered_told, nr_pages
            log(INFO, "%d pages of processes that died were recovered, %d in all", new, nr_pages)

    def record(self, path: str | os.PathLike[str], *, exact: bool = False) -> RegionRecorder:
        """Record what all attached processes do here from now on: a context manager.

            with region.record("run.parquet"):
                ...

        Each alloc, free, refill, overflow, purge and recovery, as a columnar file for `vmalloc replay` and
        `vmalloc report`. Threads write into rings of their own, which are read here meanwhile; what was
        overwritten before is counted in the file. `exact`: each event bears its own time, else that of its
        batch. Needs the extra `lab`. close() of the region ends the recording, too. Raises RegionBusy if
        somebody records this region already.
        """
        from vmalloc.lab.record_region import RegionRecorder

        recorder = RegionRecorder(self, path, exact=exact)
        self._recording = weakref.ref(recorder)
        return recorder

    def ranges(self) -> list[Range]:
        """Every range in address order: a consistent picture of the boundaries at one moment."""
        return self._ranges()

    def check(self, *, at_rest: bool = False, repair: bool = False) -> None:
        """Walk the invariants; raises RegionCorrupt with what was found.

        `at_rest` also compares lists and counters with the words, which holds only while nobody else
        works; this process's helper is stopped meanwhile. `repair` rebuilds every hint from the words first.
        """
        had_helper = at_rest and self.helper
        if had_helper:
            self.helper = False
        try:
            if repair:
                self._repair()
            found = self._check(at_rest)
        finally:
            if had_helper:
                self.helper = True
        if found:
            more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
            raise RegionCorrupt("; ".join(found[:5]) + more)
        if self._guard is not None:
            self._guard.check(self)

    @classmethod
    def attach(
        cls,
        source: int | str | os.PathLike[str],
        *,
        expected_id: str | None = None,
        readonly: bool = False,
        helper: bool = True,
        allow_uids: Collection[int] = (),
    ) -> Self:
        """Attach what a descriptor, a path, a socket, a name or a pid leads to.

        An int is a descriptor, which stays the caller's. Text that begins with unix: is the path of a socket
        where a process serves a region (`serve(path)`). Other text with a "/" is a path:
        `/proc/<pid>/fd/<n>` of a process that has it. Other text is the name that a region of this user was
        made with, or the pid of a process that has one region. All but the first need the same user. A
        process that has it already gets the same object again. Raises RegionUnavailable, also when
        `expected_id` is given and the region is another one, and when none or several have that name.

        `readonly` maps it for reading and takes no process slot: stats(), ranges(), names() and check() look
        at it without locks, so that what they see may be torn where others work; all that would hold or
        change something raises RegionUnavailable (EROFS). Each such call gives an object of its own.

        `helper=False`: without a helper thread in this process, see Region. A process that has the region
        already keeps what it has.

        `allow_uids`, with a socket: users other than this one and root whose region is taken too. Such a user
        can do to this process what its own may: docs/security.md.
        """
        return attach(cls, source, expected_id, readonly, helper, allow_uids)

    def serve(self, path: str | os.PathLike[str] | None = None, *, allow_uids: Collection[int] = ()) -> None:
        """Let references to this region also name a socket of this process, which hands the region out.

        With `path`, open a socket of that name instead: `Region.attach("unix:PATH")` gets the region there,
        also from another container that shares the folder. It is this user's (mode 0600) and goes with
        close() or the process; one that a dead process left is replaced. `allow_uids` are users who may have
        the region besides this one and root: they can read and write all of it (docs/security.md), and the
        folder decides who may connect (mode 0666). ValueError for a path that is none or too long.

        For receivers of this user that cannot open its /proc/<pid>/fd: in another pid namespace, or where
        /proc is restricted. (A process that hides its descriptors itself, PR_SET_DUMPABLE, serves without
        being asked.) It takes one daemon thread, so os.fork warns from Python 3.12 on; forked children have
        a socket of their own. References made before this call do not name it. Raises RegionUnavailable.
        """
        if path is not None:
            serve_at(self, os.fspath(path), allow_uids)
        elif allow_uids:
            raise ValueError("allow_uids are for a socket that is a file: say at which path")
        else:
            serve_region(self)

    def close(self) -> None:
        """Refuse further requests; the mapping stays until the last array or block of it is gone."""
        recorder = None if self._recording is None else self._recording()
        try:
            if recorder is not None:
                recorder.close()
        finally:
            super().close()
            stop_serving(self)

    def _opened(self, *, helper: bool = True) -> None:
        """After create and attach: found again by its id; of the right kind."""
        self._is_served = self._serves_at = False
        self._nr_recovered_told = 0
        self._recording = None
        info = self._info()
        if info["has_pages"] != self._has_pages:
            self.close()
            kind = "a memory region" if info["has_pages"] else "an address space"
            raise RegionUnavailable(errno.EINVAL, f"{info['id'].hex()} is {kind}; attach it by its own class")
        if not self.readonly:
            attached[info["id"]] = self
            self.helper = helper and self._has_pages

    def __reduce__(self) -> tuple[Any, ...]:
        self.fileno()  # RegionClosed
        if self.readonly:
            raise RegionUnavailable(errno.EROFS, "a region that was attached read-only cannot be sent")
        return attach_where, (where_of(self), type(self))

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Region(RegionBase, ArrayFunctions):
    """One shared memory region: a memfd and one mapping, however many blocks live in it.

    `size` is what can be allocated ("8G" or bytes); metadata comes on top and nothing is touched
    before it is used. `limit` bounds what is handed out at once (bytes; default: all). `pools` chooses
    the design in front of space, for measurement. `lazy_max` is how much may stay freed but resident
    before a free gives back the oldest (default: fls(CPUs) * 32 MiB, or more if that and what is in use are
    together at most the recent peak of use and a sixteenth of it, and at most half of the machine's memory).
    `lease_ttl_s` is how long a message that nobody loads keeps its arrays after its sender's death.
    `soft_limit` and `quota` are as the properties of those names. `helper`: a thread of this process gives
    back what nobody used for some seconds and recovers the dead, as long as it is elected among all attached
    processes; without one call tick() now and then.
    `max_processes` is how many may attach at once, rounded up to one less than a multiple of 64; the default
    is 255, and 1,023 from 2^18 pages on. `max_threads` of their threads have slots of their own.
    `huge="try"` asks for huge pages and lets requests of 2 MiB and more begin at multiples of it;
    stats().huge says whether the system gives any. `hardened=True` finds overruns and use after free, at a
    price in time and memory (docs/hardened.md). NUMA placement is the system's: set a policy for the process.

    A context manager: leaving it closes the region here; arrays that still exist keep their memory.
    The region ends when the last process that has it does; nothing is left behind.
    """

    __slots__ = ()

    def __init__(
        self,
        size: int | str = "8G",
        *,
        name: str = "",
        pools: str = POOLS_DEFAULT,
        limit: int | str | None = None,
        lazy_max: int | str | None = None,
        nodes: int | None = None,
        max_threads: int | None = None,
        max_processes: int | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        lease_ttl_s: float = LEASE_TTL_S,
        soft_limit: int | str | None = None,
        quota: int | str | None = None,
        helper: bool = True,
        huge: str = "never",
        hardened: bool = False,
    ) -> None:
        page = os.sysconf("SC_PAGESIZE")
        nbytes = parse_size(size)
        self.lock_timeout_s = lock_timeout_s
        bounds = {which: parse_size(n) for which, n in ((1, soft_limit), (2, quota)) if n is not None}
        self._open(
            -(-nbytes // page),
            name=name,
            pools=pools,
            limit_pages=0 if limit is None else max(parse_size(limit) // page, 1),
            lazy_pages_max=0 if lazy_max is None else max(parse_size(lazy_max) // page, 1),
            nodes=nodes,
            max_threads=max_threads,
            max_processes=max_processes,
            lease_ttl_s=lease_ttl_s,
            helper=helper,
            huge=huge,
            hardened=hardened,
        )
        for which, nbytes_at_most in bounds.items():
            self._set_limit(which, nbytes_at_most)

    def numpy_arrays(self, min_size: int | str = COPY_IN_THRESHOLD_BYTES) -> NumpyArrays:
        """`with region.numpy_arrays():` numpy makes arrays of at least `min_size` bytes in this region.

        For code that calls numpy and knows nothing of us. Smaller arrays stay where they were, and all do
        where the region has no room. Holds for this thread, or task, and what it starts inherits as
        contextvars say; the arrays may outlive it, and the region's close(). numpy 1.22 or newer.
        RegionClosed.
        """
        from vmalloc.adapters.numpy_memory import NumpyArrays

        return NumpyArrays(self, parse_size(min_size))

    @classmethod
    def open_or_create(
        cls, name: str, size: int | str = "8G", *, timeout_s: float = LOCK_TIMEOUT_S, **options: Any
    ) -> Self:
        """This user's region called `name`: attached if there is one, else made with `size` and `options`.

        However many processes ask at once, one makes it and the others attach it. Nobody else's regions
        count, and one of that name that exists keeps its size and options. `options` are Region()'s. Raises
        RegionUnavailable if several have the name, RegionBusy if another process takes longer than
        `timeout_s`, ValueError for an empty name or a `timeout_s` that is no time.
        """
        is_new = False

        def create() -> Any:
            nonlocal is_new
            is_new = True
            return cls(size, name=name, **options)

        region = open_or_create(cls, name, create, timeout_s, bool(options.get("helper", True)))
        if not is_new:
            region._tell_other_bounds(name, options)
        return region

    def _tell_other_bounds(self, name: str, asked: dict[str, Any]) -> None:
        """To the log: a bound that was asked for and is not the region's, since another process made it."""
        page = int(self._info()["page_size"])
        for bound in ("limit", "soft_limit", "quota"):
            wanted, here = asked.get(bound), getattr(self, bound)
            if wanted is not None and here != max(parse_size(wanted) // page, 1) * page:
                log(
                    INFO,
                    "region %r exists: its %s is %s, not %s; set it if it should be",
                    name,
                    bound,
                    here,
                    wanted,
                )

    @property
    def size(self) -> int:
        """Bytes that can be allocated; metadata comes on top."""
        return self.nr_pages * int(self._info()["page_size"])

    def prefault(self, nbytes: int | str, *, threads: int | None = None) -> int:
        """Make `nbytes` of free memory resident, for requests to find warm. Returns how many bytes it made.

        They are whole pages, and fewer if region, limit or machine have no more. `threads` do it at once
        (default: one a CPU, at most 8), without the interpreter lock. So much may then stay warm in addition
        to what is already, also above `lazy_max`, until a shrink(). Raises ValueError, RegionClosed.
        """
        return prefault(self, parse_size(nbytes), threads)

    def close(self) -> None:
        """Refuse further requests; the mapping stays until the last array or block of it is gone.

        A hardened region raises MemoryMisused if something in quarantine was written to.
        """
        guard = None if self.closed else self._guard
        try:
            if guard is not None:
                guard.end(self)
        finally:
            super().close()

    # ---- named references ----

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep `value` under a name until deleted: an array, a block or what has an adapter.

        It is copied in if it lies elsewhere.
        """
        value, holding = place(value, self)
        self._name_set(name, holding, encode(describe(value, holding)))

    def __getitem__(self, name: str) -> Any:
        """The array, or what it was, that is kept under `name`; for a block a memoryview of it. KeyError."""
        owner, meta = self._name_get(name)
        return rebuild(owner, decode(meta))

    def __delitem__(self, name: str) -> None:
        """Drop the name; the memory goes with the last reference."""
        self._name_delete(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        if self.closed:
            return "<vmalloc.Region closed>"
        info = self._info()
        mib = info["nr_pages"] * info["page_size"] >> 20
        return f"<vmalloc.Region {info['id'].hex()[:8]} {mib} MiB {info['pools']}>"


def region_at(where: Where) -> Region:
    """The memory region that a message tells of, attached if need be. RegionUnavailable: what was tried."""
    return attach_where(where, Region)


def region_of(x: object) -> CoreRegion | None:
    """The region whose pages an array, a view of one, or a block lies in; None for private memory."""
    holding = holding_of(x)
    return None if holding is None else holding.region


_default: Region | None = None
_inherited: Callable[[], Region] | None = None  # the parent's; attached when it is first needed
_default_lock = threading.RLock()


def set_default_region(region: Region | Callable[[], Region], *, unless_made: bool = False) -> None:
    """In a process that was spawned: its parent's default region is its own; or a call that attaches it."""
    global _default, _inherited
    with _default_lock:
        if unless_made and default_region_if_made() is not None:
            return
        if isinstance(region, Region):
            _default, _inherited = region, None
        else:
            _default, _inherited = None, region


def default_region_if_made() -> Region | None:
    """The default region, if somebody used it, in this process or its parent, and it is open."""
    global _default, _inherited
    with _default_lock:
        if _inherited is not None:
            try:
                _default, _inherited = _inherited(), None
            except VmallocError:  # this process cannot have it
                return None
        return _default if _default is not None and not _default.closed else None


def default_region() -> Region:
    """The region used where none is named; made on first use.

    VMALLOC_DEFAULT_SIZE sets its size; the default is the machine's memory, of which nothing is taken
    before it is used, or less where a cgroup or RLIMIT_AS (ulimit -v) leaves less: OutOfPages says so then.
    Children of fork find their parent's, and so do those spawned after install().
    """
    global _default
    with _default_lock:
        region = default_region_if_made()
        if region is None:
            region = _default = new_default()
        return region


def new_default(name: str = "default", *, is_found: bool = False) -> Region:
    """As large as the machine's memory, or as the limits of this process allow.

    `is_found`: if this user has one of that name, it is that one.
    """
    size = os.environ.get("VMALLOC_DEFAULT_SIZE")

    def made(size: int | str) -> Region:
        return Region.open_or_create(name, size) if is_found else Region(size, name=name)

    if size is not None:
        return made(size)
    nbytes, limited_by = room_for_a_region()
    while True:
        try:
            region = made(nbytes)
        except (OutOfPages, RegionUnavailable):
            if nbytes <= SMALLEST_DEFAULT_BYTES:
                raise
            nbytes = max(nbytes // 2, SMALLEST_DEFAULT_BYTES)
            limited_by = limited_by or "what this process may map"
            continue
        region._limited_by = limited_by
        return region
