"""Region: one shared mapping, allocated from by any thread of any process that attached."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from vmalloc._core import STATES, Block, CoreRegion, Holding
from vmalloc.array import ArrayFunctions, holding_of
from vmalloc.errors import RegionCorrupt, RegionUnavailable
from vmalloc.stats import Range, Stats

__all__ = ["Region", "default_region", "parse_size", "region_of"]

POOL_DESIGNS = ("off", "locked", "llist", "magazine")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

_attached: weakref.WeakValueDictionary[bytes, Region] = weakref.WeakValueDictionary()
_attach_lock = threading.Lock()


def _forget_lock_in_child() -> None:
    global _attach_lock
    _attach_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock_in_child)


def parse_size(size: int | str) -> int:
    """Bytes of 4096, "64K", "1.5 GiB", "8G" (powers of 1024). ValueError otherwise."""
    if isinstance(size, bool) or not isinstance(size, int | str):
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
    """What memory regions and address spaces share: options, look at, check, context manager."""

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
        locks: str,
        keep_on_death: bool = False,
    ) -> None:
        if pools not in POOL_DESIGNS:
            raise ValueError(f"pools must be one of {', '.join(POOL_DESIGNS)}, not {pools!r}")
        if locks not in ("futex", "pthread"):
            raise ValueError(f"locks must be 'futex' or 'pthread', not {locks!r}")
        if nr_pages > (1 << 30) - 1:
            raise ValueError(f"a region has at most 2**30 - 1 pages, not {nr_pages}")
        for what, value, most in (("nodes", nodes, 128), ("max_threads", max_threads, 3840)):
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
            pthread_locks=locks == "pthread",
            keep_on_death=keep_on_death,
        )

    @property
    def id(self) -> str:
        """The region's 128-bit name, in hexadecimal; references carry it."""
        return str(self._info()["id"].hex())

    @property
    def pools(self) -> str:
        """The pool design: off, locked, llist or magazine."""
        return str(self._info()["pools"])

    @property
    def nr_pages(self) -> int:
        """Allocatable pages (granules of an address space)."""
        return int(self._info()["nr_pages"])

    def stats(self) -> Stats:
        """Pages by state and counters, from one walk over the words: O(number of ranges)."""
        return Stats(page_size=self._info()["granule"], **self._stats())

    def ranges(self) -> list[Range]:
        """Every range in address order: a consistent picture of the boundaries at one moment."""
        return [
            Range(page, page + nr_pages, STATES[state], owner, id, shared, dirty)
            for page, nr_pages, id, state, owner, shared, dirty in self._ranges()
        ]

    def check(self, *, at_rest: bool = False, repair: bool = False) -> None:
        """Walk the invariants; raises RegionCorrupt with what was found.

        `at_rest` also compares lists and counters with the words, which holds only while nobody else
        works. `repair` rebuilds every hint from the words first.
        """
        found = self._check(at_rest, repair)
        if found:
            more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
            raise RegionCorrupt("; ".join(found[:5]) + more)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Region(RegionBase, ArrayFunctions):
    """One shared memory region: a memfd and one mapping, however many blocks live in it.

    `size` is what can be allocated ("8G" or bytes); metadata comes on top and nothing is touched
    before it is used. `limit` bounds what is handed out at once (bytes; default: all). `pools` chooses
    the design in front of space, for measurement. `lazy_max` is how much may stay freed but resident
    before the freeing thread purges (default: max(fls(CPUs) * 32 MiB, a quarter of the recent peak)).

    A context manager: leaving it closes the region here; arrays that still exist keep their memory.
    The region ends when the last process that has it does; nothing is left behind.
    """

    def __init__(
        self,
        size: int | str = "8G",
        *,
        name: str = "",
        pools: str = "magazine",
        limit: int | str | None = None,
        lazy_max: int | str | None = None,
        nodes: int | None = None,
        max_threads: int | None = None,
        locks: str = "futex",
        lock_timeout_s: float = 10.0,
    ) -> None:
        page = os.sysconf("SC_PAGESIZE")
        nbytes = parse_size(size)
        self.lock_timeout_s = lock_timeout_s
        self._open(
            -(-nbytes // page),
            name=name,
            pools=pools,
            limit_pages=0 if limit is None else max(parse_size(limit) // page, 1),
            lazy_pages_max=0 if lazy_max is None else max(parse_size(lazy_max) // page, 1),
            nodes=nodes,
            max_threads=max_threads,
            locks=locks,
        )
        _attached[self._info()["id"]] = self

    @classmethod
    def attach(cls, source: int | str | os.PathLike[str], *, expected_id: str | None = None) -> Region:
        """Attach the region behind a descriptor (int; it stays the caller's) or a path.

        The path is `/proc/<pid>/fd/<n>` of a process that has it; that needs the same user. In a process
        that has the region already, that Region is returned. Raises RegionUnavailable, also when
        `expected_id` is given and the region is another one.
        """
        if isinstance(source, int):
            return cls._attach_fd(source, expected_id)
        try:
            fd = os.open(source, os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            hint = "; the process ended, or belongs to another user" if e.errno in (2, 13) else ""
            raise RegionUnavailable(e.errno, f"cannot open {os.fspath(source)}: {e.strerror}{hint}") from None
        try:
            return cls._attach_fd(fd, expected_id)
        finally:
            os.close(fd)

    @classmethod
    def _attach_fd(cls, fd: int, expected_id: str | None) -> Region:
        try:
            mode = os.fstat(fd).st_mode
        except (OSError, OverflowError) as e:
            raise RegionUnavailable(9, f"descriptor {fd} is not open: {e}") from None
        if not stat.S_ISREG(mode):
            raise RegionUnavailable(8, f"descriptor {fd} is no vmalloc region")
        with _attach_lock:
            known = _attached.get(os.pread(fd, 32, 0)[16:32])
            if known is not None and not known.closed:
                region = known
            else:
                region = cls.__new__(cls)
                region._attach(fd)
                _attached[region._info()["id"]] = region
        if expected_id is not None and region.id != expected_id:
            raise RegionUnavailable(116, f"descriptor {fd} is region {region.id}, not {expected_id}")
        return region

    def __enter__(self) -> Region:
        self.fileno()
        return self

    # ---- named references ----

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep `value` (array or block; copied in if it lies elsewhere) under a name until deleted."""
        if not isinstance(value, Block):
            value = self._own(value)
        holding = holding_of(value)
        assert holding is not None
        self._name_set(name, holding, json.dumps(describe(value, holding)).encode())

    def _own(self, value: Any) -> Any:
        holding = holding_of(value)
        if holding is not None and holding.region is self:
            return value
        return self.array(value)

    def __getitem__(self, name: str) -> Any:
        """The array, or for a block a memoryview, that is kept under `name`; KeyError."""
        owner, meta = self._name_get(name)
        return rebuild(owner, json.loads(meta))

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

    # ---- sending the region itself ----

    def __reduce__(self) -> tuple[Any, ...]:
        return reattach, (self.id, os.getpid(), self.fileno())

    def __repr__(self) -> str:
        if self.closed:
            return "<vmalloc.Region closed>"
        info = self._info()
        return f"<vmalloc.Region {info['id'].hex()[:8]} {info['nr_pages'] * info['page_size'] >> 20} MiB {info['pools']}>"


def reattach(id: str, pid: int, fd: int) -> Region:
    """The region a message from process `pid` names: ours if attached here, else through /proc."""
    known = _attached.get(bytes.fromhex(id))
    if known is not None and not known.closed:
        return known
    return Region.attach(f"/proc/{pid}/fd/{fd}", expected_id=id)


def describe(value: Any, holding: Holding) -> dict[str, Any]:
    """What another process needs, beside the range, to see the same array or block."""
    if isinstance(value, Holding):
        return {"nbytes": holding.nbytes}
    return {
        "dtype": value.dtype.descr if value.dtype.names else value.dtype.str,
        "shape": value.shape,
        "strides": value.strides,
        "offset": value.__array_interface__["data"][0] - holding.address,
        "readonly": not value.flags.writeable,
    }


def rebuild(owner: Holding, description: dict[str, Any]) -> Any:
    """The array (or memoryview of a block) that `describe` told of, on `owner`'s pages.

    numpy checks that it lies within them: a forged description raises ValueError.
    """
    if "nbytes" in description:
        return memoryview(owner)[: description["nbytes"]]
    import numpy as np

    kind = description["dtype"]
    dtype = np.dtype(kind if isinstance(kind, str) else [_field(f) for f in kind])
    a: np.ndarray[Any, Any] = np.ndarray(
        tuple(description["shape"]), dtype, owner, description["offset"], tuple(description["strides"])
    )
    if description["readonly"]:
        a.flags.writeable = False
    return a


def _field(field: list[Any]) -> tuple[Any, ...]:
    name, kind, *shape = field
    kind = [_field(f) for f in kind] if isinstance(kind, list) else kind
    return (tuple(name) if isinstance(name, list) else name, kind, *map(tuple, shape))


def region_of(x: object) -> CoreRegion | None:
    """The region whose pages an array, a view of one, or a block lies in; None for private memory."""
    holding = holding_of(x)
    return None if holding is None else holding.region


_default: Region | None = None
_default_lock = threading.Lock()


def default_region() -> Region:
    """The region used where none is named; made on first use.

    VMALLOC_DEFAULT_SIZE sets its size; the default is the machine's memory, of which nothing is taken
    before it is used. Children of fork find their parent's.
    """
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
            _default = Region(os.environ.get("VMALLOC_DEFAULT_SIZE", memory), name="default")
        return _default
