"""Region: one shared mapping, allocated from by any thread of any process that attached."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, Self

from vmalloc._core import STATES, CoreRegion, Holding
from vmalloc.array import ArrayFunctions, holding_of
from vmalloc.errors import RegionCorrupt, RegionUnavailable, StaleReference
from vmalloc.stats import Range, Stats

__all__ = ["Region", "default_region", "parse_size", "region_of"]

POOL_DESIGNS = ("off", "locked", "llist", "magazine")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

_attached: weakref.WeakValueDictionary[bytes, RegionBase] = weakref.WeakValueDictionary()
_attach_lock = threading.Lock()


def _renew_locks_in_child() -> None:
    global _attach_lock, _default_lock
    _attach_lock, _default_lock = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_renew_locks_in_child)


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

    _has_pages: ClassVar[bool] = True

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
        self._opened()

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

    @classmethod
    def attach(cls, source: int | str | os.PathLike[str], *, expected_id: str | None = None) -> Self:
        """Attach what is behind a descriptor (int; it stays the caller's) or a path.

        The path is `/proc/<pid>/fd/<n>` of a process that has it; that needs the same user. A process
        that has it already gets the same object again. Raises RegionUnavailable, also when
        `expected_id` is given and the region is another one.
        """
        if isinstance(source, int):
            return cls._attach_fd(source, expected_id)
        try:
            fd = os.open(source, os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            hint = "; the process ended, or belongs to another user" if e.errno in (2, 13) else ""
            raise RegionUnavailable(e.errno, f"cannot open {os.fspath(source)}: {e.strerror}{hint}") from None
        except ValueError as e:
            raise RegionUnavailable(errno.EINVAL, f"cannot open {source!r}: {e}") from None
        try:
            return cls._attach_fd(fd, expected_id)
        finally:
            os.close(fd)

    @classmethod
    def _attach_fd(cls, fd: int, expected_id: str | None) -> Self:
        try:
            there = os.fstat(fd)
        except (OSError, OverflowError) as e:
            raise RegionUnavailable(errno.EBADF, f"descriptor {fd} is not open: {e}") from None
        if not stat.S_ISREG(there.st_mode):
            raise RegionUnavailable(errno.ENOEXEC, f"descriptor {fd} is no vmalloc region")
        with _attach_lock:
            region = _attached.get(os.pread(fd, 32, 0)[16:32])
            if region is None or region.closed or not os.path.samestat(os.fstat(region.fileno()), there):
                region = cls.__new__(cls)
                region._attach(fd)
                region._opened()
        if not isinstance(region, cls):
            raise RegionUnavailable(
                errno.EINVAL, f"descriptor {fd} is {region!r}; attach it by its own class"
            )
        if expected_id is not None and region.id != expected_id:
            raise RegionUnavailable(errno.ESTALE, f"descriptor {fd} is region {region.id}, not {expected_id}")
        return region

    @classmethod
    def _reattach(cls, id: str, pid: int, fd: int) -> Self:
        """What a message from process `pid` names: ours if attached here, else through /proc."""
        try:
            known = _attached.get(bytes.fromhex(id))
            path = f"/proc/{pid:d}/fd/{fd:d}"
        except (TypeError, ValueError):
            raise RegionUnavailable(
                errno.EINVAL, f"no region has the id {id!r}, pid {pid!r}, fd {fd!r}"
            ) from None
        if isinstance(known, cls) and not known.closed:
            return known
        return cls.attach(path, expected_id=id)

    def _opened(self) -> None:
        """After create and attach: found again by its id; of the right kind."""
        info = self._info()
        if info["has_pages"] != self._has_pages:
            self.close()
            kind = "a memory region" if info["has_pages"] else "an address space"
            raise RegionUnavailable(errno.EINVAL, f"{info['id'].hex()} is {kind}; attach it by its own class")
        _attached[info["id"]] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._reattach, (self.id, os.getpid(), self.fileno())

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

    # ---- named references ----

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep `value` (array or block; copied in if it lies elsewhere) under a name until deleted."""
        holding = holding_of(value)
        if holding is None or holding.region is not self:
            value = self.array(value)
            holding = holding_of(value)
            assert holding is not None
        description = describe(value, holding)
        if "dtype" in description:
            description["dtype"] = _dtype_text(description["dtype"])
        self._name_set(name, holding, json.dumps(description, separators=(",", ":")).encode())

    def __getitem__(self, name: str) -> Any:
        """The array, or for a block a memoryview, that is kept under `name`; KeyError."""
        owner, meta = self._name_get(name)
        description = json.loads(meta)
        if "dtype" in description:
            description["dtype"] = _dtype_of(description["dtype"])
        return rebuild(owner, description)

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


def describe(value: Any, holding: Holding) -> dict[str, Any]:
    """What another process needs, beside the range, to see the same array or block."""
    if isinstance(value, Holding):
        return {"nbytes": holding.nbytes}
    if isinstance(value, memoryview):
        import numpy as np

        value = np.asarray(value)
    return {
        "dtype": value.dtype,
        "shape": value.shape,
        "strides": value.strides,
        "offset": value.__array_interface__["data"][0] - holding.address,
        "readonly": not value.flags.writeable,
    }


def rebuild(owner: Any, description: dict[str, Any]) -> Any:
    """The array (or memoryview of a block) that `describe` told of, on `owner`'s pages.

    Whatever does not lie within them raises StaleReference.
    """
    try:
        if "nbytes" in description:
            return memoryview(owner)[: description["nbytes"]]
        import numpy as np

        dtype, shape, strides = np.dtype(description["dtype"]), description["shape"], description["strides"]
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds pointers")
        if strides is None or any(n < 0 for n in shape):
            raise ValueError(f"shape {shape}, strides {strides}")
        a: np.ndarray[Any, Any] = np.ndarray(
            tuple(shape), dtype, owner, description["offset"], tuple(strides)
        )
        if description["readonly"]:
            a.flags.writeable = False
        return a
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:
        raise StaleReference(
            f"the reference tells of no array within its {owner.nbytes} bytes: {e}"
        ) from None


def _dtype_text(dtype: Any) -> Any:
    """JSON for a dtype; TypeError for what numpy's own file format could not keep either."""
    import numpy as np

    text = np.lib.format.dtype_to_descr(dtype)
    if _dtype_of(json.loads(json.dumps(text))) != dtype:
        raise TypeError(f"a named reference cannot keep dtype {dtype!r}; view the array as a plainer one")
    return text


def _dtype_of(text: Any) -> Any:
    import numpy as np

    return np.lib.format.descr_to_dtype(_tuples(text))


def _tuples(text: Any) -> Any:
    """numpy's description of a dtype, from JSON, which knows no tuples: fields are tuples, in a list."""
    if isinstance(text, str):
        return text
    if text and isinstance(text[0], list) and isinstance(text[0][0], str | list) and len(text[0]) > 1:
        return [_field(f) for f in text]
    return (_tuples(text[0]), tuple(text[1]))


def _field(f: Any) -> Any:
    title_and_name = tuple(f[0]) if isinstance(f[0], list) else f[0]
    return (title_and_name, _tuples(f[1]), *(tuple(shape) for shape in f[2:]))


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
