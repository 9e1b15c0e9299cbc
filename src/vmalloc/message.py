# SPDX-License-Identifier: MIT
"""Messages: arrays by reference through stock multiprocessing and concurrent.futures.

`install()` teaches ForkingPickler, which all of their queues, pipes, pools and arguments use, to send an
array that lies in a region as a reference, and to copy larger others into a region first. Every message
holds a lease of its own, which its first load claims (core/share/lease.c). Exact np.ndarray only: subclasses,
masked arrays and arrays of objects keep their stock way, and so does plain pickle.

A pickler knows nothing of the end of its message, so `dump` is wrapped as well: when it fails half-way, the
leases made so far are dropped. And a process that is spawned carries the settings along, so that its
results come back by reference too. `dumps` is wrapped for messages that are one array and nothing else:
those need no pickler.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, cast

from vmalloc._core import (
    Block,
    Holding,
    drop_plain,
    load_plain,
    pack_plain,
    pickled_plain,
    reduce_array,
    reduce_arrays,
)
from vmalloc.array import holding_of
from vmalloc.attach import Where, region_at, where_of
from vmalloc.errors import OutOfPages, RegionUnavailable
from vmalloc.reference import load
from vmalloc.region import Region, default_region, set_default_region
from vmalloc.view import describe, lies_within

if TYPE_CHECKING:
    import numpy as np

__all__ = ["install", "uninstall"]

ON_FULL = ("raise", "copy")
_IN_PROCESS = "_vmalloc_settings"  # attribute of a Process while it is pickled


@dataclass(frozen=True)
class Settings:
    """What install() was told."""

    region: Region
    is_default: bool
    threshold: int
    readonly: bool
    on_full: str

    def __reduce__(self) -> tuple[Any, ...]:
        where = where_of(self.region)
        return _install_in_child, (where, self.is_default, self.threshold, self.readonly, self.on_full)


_settings: Settings | None = None
_settings_lock = threading.Lock()
_ndarray: Any = None  # numpy's
_before: dict[type, Any] = {}  # what was registered before us; None: nothing
_wrapped_before: dict[str, Any] = {}  # the same for the methods of ForkingPickler


class _UnderWay(threading.local):
    """The message that this thread pickles just now."""

    leases: list[bytes | tuple[Region, int]] | None = None  #: packed references, or where each lease is
    starts_process = False  #: then references carry a descriptor, too


_under_way = _UnderWay()


def install(
    region: Region | None = None,
    threshold: int = 65536,
    *,
    readonly: bool = False,
    on_full: str = "raise",
) -> None:
    """From now on NumPy arrays go by reference through stock multiprocessing and concurrent.futures.

    Arrays that lie in a region, and views of them, travel as a reference whatever their size: **what the
    sender writes afterwards the receiver sees**, and the other way round. Others of more than `threshold`
    bytes are copied once, into `region` (default: the default region), when the message is pickled; smaller
    ones travel as before. `readonly` makes the receiver's arrays read-only. When the region is full,
    `on_full="raise"` raises OutOfPages where the message is pickled; `"copy"` sends the array as before, and
    so does a region that was closed since.

    Holds for this process, for its forked children, and for those it spawns. A second call replaces the
    settings. Nothing has to be closed or unlinked: the memory goes with the last array.
    """
    if on_full not in ON_FULL:
        raise ValueError(f"on_full must be one of {', '.join(ON_FULL)}, not {on_full!r}")
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, not {threshold}")
    settings = Settings(region or default_region(), region is None, threshold, readonly, on_full)
    settings.region.fileno()  # RegionClosed
    _install(settings)


def _reducers() -> dict[type, Any]:
    """What ForkingPickler.register() writes to."""
    return cast("dict[type, Any]", ForkingPickler._extra_reducers)  # type: ignore[attr-defined]


def _install(settings: Settings) -> None:
    global _settings, _ndarray
    import numpy as np

    _ndarray = np.ndarray
    with _settings_lock:
        if _settings is None:
            reducers = _reducers()
            for kind, reduce in ((np.ndarray, reduce_array), (Block, _reduce_block)):
                _before[kind] = reducers.get(kind)
                ForkingPickler.register(kind, reduce)
            for name, wrapper in _WRAPPERS.items():
                _wrapped_before[name] = ForkingPickler.__dict__.get(name)
                setattr(ForkingPickler, name, wrapper)
        reduce_arrays(settings.threshold, _reduce_array)
        _settings = settings


def uninstall() -> None:
    """Back to stock pickling in this process; messages under way still load. Twice does nothing.

    What others registered over ours since stays.
    """
    global _settings
    with _settings_lock:
        if _settings is None:
            return
        _settings = None
        reducers = _reducers()
        for kind, before in _before.items():
            if reducers.get(kind) not in (reduce_array, _reduce_block):
                continue
            if before is None:
                del reducers[kind]
            else:
                reducers[kind] = before
        _before.clear()
        for name, wrapper in _WRAPPERS.items():
            if ForkingPickler.__dict__.get(name) is not wrapper:
                continue
            if _wrapped_before[name] is None:
                delattr(ForkingPickler, name)
            else:
                setattr(ForkingPickler, name, _wrapped_before[name])


def _install_in_child(where: Where, is_default: bool, threshold: int, readonly: bool, on_full: str) -> None:
    try:
        region = region_at(where)
    except RegionUnavailable as e:  # then this process goes on as without us
        warnings.warn(f"vmalloc is not installed in this process: {e}", RuntimeWarning, stacklevel=2)
        return
    if is_default:
        set_default_region(region)
    _install(Settings(region, is_default, threshold, readonly, on_full))


def _dump(self: ForkingPickler, obj: Any) -> None:
    """Pickler.dump; if it fails, the message's leases end."""
    outer = _under_way.leases
    leases: list[bytes | tuple[Region, int]] = []
    _under_way.leases = leases
    try:
        if isinstance(obj, BaseProcess):
            _dump_process(self, obj)
        else:
            _dump_before(self, obj)
    except BaseException:
        for lease in leases:
            _drop(lease)
        raise
    finally:
        _under_way.leases = outer


def _dump_before(self: ForkingPickler, obj: Any) -> None:
    before = _wrapped_before.get("dump")
    if before is None:
        super(ForkingPickler, self).dump(obj)
    else:
        before(self, obj)


def _dump_process(self: ForkingPickler, process: BaseProcess) -> None:
    """The settings go with a process that is started; loading them installs us there."""
    settings = _settings
    if settings is None or settings.region.closed:
        return _dump_before(self, process)
    process.__dict__[_IN_PROCESS] = settings
    _under_way.starts_process = True
    try:
        _dump_before(self, process)
    finally:
        _under_way.starts_process = False
        del process.__dict__[_IN_PROCESS]


def _dumps(cls: type[ForkingPickler], obj: Any, protocol: int | None = None) -> Any:
    """ForkingPickler.dumps, without a ForkingPickler for a message that is one plain array."""
    settings = _settings
    if type(obj) is _ndarray and settings is not None and protocol is None:
        packed = _pack(obj, settings)
        if packed is not None:
            return pickled_plain(packed)
        if obj.base is None and obj.nbytes <= settings.threshold and obj.dtype.kind in "biufc":
            return pickle.dumps(obj)  # numbers: nothing in it that another reducer is for
    return _wrapped_before["dumps"].__get__(None, cls)(obj, protocol)


_WRAPPERS = {"dump": _dump, "dumps": classmethod(_dumps)}


def _pack(a: np.ndarray[Any, Any], settings: Settings) -> bytes | None:
    try:
        return None if a.base is None else pack_plain(a, settings.readonly)
    except OutOfPages:  # of leases: the longer way knows what to do
        return None


def _drop(lease: bytes | tuple[Region, int]) -> None:
    if isinstance(lease, bytes):
        drop_plain(lease)
    else:
        lease[0]._drop_lease(lease[1])  # pyright: ignore[reportPrivateUsage]


def _send(value: Any, holding: Holding) -> tuple[Any, ...]:
    """A reference with a lease of its own."""
    region = holding.region
    if not isinstance(region, Region):
        raise TypeError(f"{type(value).__name__} does not lie in a memory region")
    page, id, lease = region._lease(holding)  # pyright: ignore[reportPrivateUsage]
    if _under_way.leases is not None:
        _under_way.leases.append((region, lease))
    readonly = _settings is not None and _settings.readonly
    return load, (where_of(region), page, id, lease, holding.nbytes, describe(value, holding), readonly)


def _reduce_block(block: Block) -> tuple[Any, ...]:
    return _send(block, block)


def _reduce_array(a: np.ndarray[Any, Any]) -> Any:
    """By reference, copied in first, or as before."""
    settings = _settings
    if settings is not None and not _under_way.starts_process and (packed := _pack(a, settings)) is not None:
        if _under_way.leases is not None:
            _under_way.leases.append(packed)
        return load_plain, (packed,)
    return _reduce_any_array(a)


def _goes_as_before(a: np.ndarray[Any, Any], settings: Settings) -> bool:
    return a.nbytes <= settings.threshold or a.dtype.hasobject or settings.region.closed


def _reduce_any_array(a: np.ndarray[Any, Any]) -> Any:
    holding = holding_of(a) if a.base is not None else None
    if holding is not None and (holding.region.closed or not lies_within(a, holding)):
        holding = None  # like private memory
    settings = _settings
    if settings is None or (holding is None and _goes_as_before(a, settings)):
        return a.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    try:
        if holding is not None:
            return _send(a, holding)
        copy = settings.region.array(a)
        holding = holding_of(copy)
        assert holding is not None
        return _send(copy, holding)
    except OutOfPages:
        if settings.on_full != "copy":
            raise
        return a.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
