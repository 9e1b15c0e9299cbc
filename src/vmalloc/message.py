# SPDX-License-Identifier: MIT
"""Messages: arrays by reference through stock multiprocessing and concurrent.futures.

`install()` teaches ForkingPickler, which all of their queues, pipes, pools and arguments use, to send what
lies in a region as a reference, and to copy what is larger and lies elsewhere into a region first. Every
message holds a lease of its own, which its first load claims (core/share/lease.c). Which types, say the
adapters (adapters/): exact types only, so subclasses of np.ndarray and masked arrays keep their stock way.
Arrays of objects do too, and so does plain pickle.

A pickler knows nothing of the end of its message, so `dump` is wrapped as well: when it fails half-way, the
leases made so far are dropped. And a process that is spawned carries the settings along, so that its
results come back by reference too. `dumps` is wrapped for messages that are one array and nothing else:
those need no pickler.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, cast

from vmalloc._core import (
    Holding,
    MessageSettings,
    drop_reference,
    get_settings,
    load_reference,
    pack_plain,
    pickled_reference,
    reduce_array,
    set_settings,
)
from vmalloc.adapters import registry
from vmalloc.attach import Kept, Where, where_of
from vmalloc.errors import VmallocError
from vmalloc.facts import COPY_IN_THRESHOLD_BYTES, FULL_TIMEOUT_S
from vmalloc.full import ON_FULL, Room, forget_warnings, warn_once
from vmalloc.limits import is_short_of_addresses
from vmalloc.reference import pack
from vmalloc.region import Region, default_region, region_at, set_default_region
from vmalloc.stand_in import load_tolerantly, nr_made

if TYPE_CHECKING:
    import numpy as np

__all__ = ["install", "uninstall"]

_IN_PROCESS = "_vmalloc_settings"  # attribute of a Process while it is pickled


class Settings(MessageSettings):
    """What install() was told; it goes along with a process that is started."""

    def __init__(
        self,
        region: Callable[[], Region],
        is_default: bool,
        threshold: int,
        readonly: bool,
        on_full: str,
        timeout_s: float,
    ) -> None:
        super().__init__(None, is_default, threshold, readonly, on_full)
        self._region = region
        self.room = Room(on_full, timeout_s)

    @property
    def region(self) -> Region:
        """A process that was started attaches it when it first needs it. RegionUnavailable, OutOfPages."""
        return self._region()

    def usable_region(self) -> Region | None:
        """The region, or None: arrays go by value."""
        try:
            region = self.region
        except VmallocError as e:
            warn_once("unusable", f"arrays go by value, for their region cannot be used here: {e}")
            return None
        return None if region.closed else region

    def __reduce__(self) -> tuple[Any, ...]:
        return _install_in_child, (where_of(self.region), *self.options())

    def options(self) -> tuple[Any, ...]:
        """All but the region."""
        return self.is_default, self.threshold, self.readonly, self.on_full, self.room.timeout_s


_install_lock = threading.RLock()
_ndarray: Any = None  # numpy's
_before: dict[type, Any] = {}  # what was registered before us; None: nothing
_taught = -1  # version of the adapters that ForkingPickler was told of
_wrapped_before: dict[str, Any] = {}  # the same for the methods of ForkingPickler


def _renew_lock_in_child() -> None:
    global _install_lock
    _install_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_in_child)


class _UnderWay(threading.local):
    """The message that this thread pickles just now."""

    references: list[bytes] | None = None  #: with their leases
    starts_process = False  #: then references carry a descriptor, too


_under_way = _UnderWay()


def install(
    region: Region | None = None,
    threshold: int = COPY_IN_THRESHOLD_BYTES,
    *,
    readonly: bool = False,
    on_full: str = "wait",
    timeout: float = FULL_TIMEOUT_S,
) -> None:
    """From now on NumPy arrays go by reference through stock multiprocessing and concurrent.futures.

    Arrays that lie in a region, and views of them, travel as a reference whatever their size: **what the
    sender writes afterwards the receiver sees**, and the other way round. Others of more than `threshold`
    bytes are copied once, into `region` (default: the default region), when the message is pickled; smaller
    ones travel as before. `readonly` makes the receiver's arrays read-only.

    When the region is full, `on_full="wait"` waits up to `timeout` seconds for others to give pages back,
    then sends the array as before, by value, and warns once; later messages do so at once until there was
    room again, and so does a process that alone could give pages back. `"copy"` never waits, `"raise"` raises
    OutOfPages where the message is pickled. Arrays go by value, too, when the region was closed since or
    cannot be used here.

    Holds for this process, for its forked children, and for those it spawns. A second call replaces the
    settings. Nothing has to be closed or unlinked: the memory goes with the last array.
    """
    if on_full not in ON_FULL:
        raise ValueError(f"on_full must be one of {', '.join(ON_FULL)}, not {on_full!r}")
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, not {threshold}")
    if not 0 <= timeout < 1e9:
        raise ValueError(f"timeout must be from 0 to 1e9 seconds, not {timeout}")
    chosen = region or default_region()
    chosen.fileno()  # RegionClosed
    _install(Settings(lambda: chosen, region is None, threshold, readonly, on_full, timeout))


def _reducers() -> dict[type, Any]:
    """What ForkingPickler.register() writes to."""
    return cast("dict[type, Any]", ForkingPickler._extra_reducers)  # type: ignore[attr-defined]


def _install(settings: Settings) -> None:
    with _install_lock:
        if get_settings() is None:
            for name, wrapper in _WRAPPERS.items():
                _wrapped_before[name] = ForkingPickler.__dict__.get(name)
                setattr(ForkingPickler, name, wrapper)
        set_settings(settings, _reduce_array)
        forget_warnings()
        _teach()


def uninstall() -> None:
    """Back to stock pickling in this process; messages under way still load. Twice does nothing.

    What others registered over ours since stays.
    """
    global _taught
    with _install_lock:
        if get_settings() is None:
            return
        set_settings(None, _reduce_array)
        for kind in list(_before):
            _unteach(kind)
        _taught = -1
        for name, wrapper in _WRAPPERS.items():
            if ForkingPickler.__dict__.get(name) is not wrapper:
                continue
            if _wrapped_before[name] is None:
                delattr(ForkingPickler, name)
            else:
                setattr(ForkingPickler, name, _wrapped_before[name])


def _teach() -> None:
    """Let ForkingPickler know the types that have an adapter by now, and no others."""
    global _taught, _ndarray
    with _install_lock:
        if get_settings() is None:
            return
        numpy = sys.modules.get("numpy")
        _ndarray = getattr(numpy, "ndarray", None)
        version, types = registry.exact_types()
        for kind in [kind for kind in _before if kind not in types]:
            _unteach(kind)
        for kind in types:
            if kind not in _before:
                _before[kind] = _reducers().get(kind)
                ForkingPickler.register(kind, reduce_array if kind is _ndarray else _reduce)
        _taught = version


def _teach_made(pickler: ForkingPickler) -> None:
    """One that copied what ForkingPickler knew when it was made, before we taught it."""
    reducers, table = _reducers(), pickler.dispatch_table
    for kind in [kind for kind, reduce in table.items() if _is_ours(reduce) and kind not in reducers]:
        del table[kind]
    table.update(reducers)


def _is_ours(reduce: Any) -> bool:
    return reduce is reduce_array or reduce is _reduce


def _unteach(kind: type) -> None:
    reducers, before = _reducers(), _before.pop(kind)
    if not _is_ours(reducers.get(kind)):
        return
    if before is None:
        del reducers[kind]
    else:
        reducers[kind] = before


def _install_in_child(where: Where, is_default: bool, *options: Any) -> None:
    try:
        kept = Kept(where)
    except (OSError, VmallocError) as e:  # then this process goes on as without us
        warnings.warn(f"vmalloc is not installed in this process: {e}", RuntimeWarning, stacklevel=2)
        return
    if is_default:
        set_default_region(lambda: region_at(kept.where))
    _install(Settings(lambda: region_at(kept.where), is_default, *options))


def _dump(self: ForkingPickler, obj: Any) -> None:
    """Pickler.dump; if it fails, the message's leases end."""
    if _taught != registry.version():
        _teach()
        _teach_made(self)
    outer = _under_way.references
    references: list[bytes] = []
    _under_way.references = references
    try:
        if issubclass(type(obj), BaseProcess):  # isinstance() would use a stand-in
            _dump_process(self, obj)
        else:
            _dump_before(self, obj)
    except BaseException:
        for reference in references:
            drop_reference(reference)
        raise
    finally:
        _under_way.references = outer


def _dump_before(self: ForkingPickler, obj: Any) -> None:
    before = _wrapped_before.get("dump")
    if before is None:
        super(ForkingPickler, self).dump(obj)
    else:
        before(self, obj)


def _dump_process(self: ForkingPickler, process: BaseProcess) -> None:
    """The settings go with a process that is started; loading them installs us there."""
    settings = cast("Settings | None", get_settings())
    if settings is None or settings.usable_region() is None:
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
    settings = get_settings()
    if type(obj) is _ndarray and settings is not None and protocol is None:
        packed = _pack_plain(obj, settings)
        if packed is not None:
            return pickled_reference(packed)
        if obj.base is None and obj.nbytes <= settings.threshold and obj.dtype.kind in "biufc":
            return pickle.dumps(obj)  # numbers: nothing in it that another reducer is for
    return _wrapped_before["dumps"].__get__(None, cls)(obj, protocol)


_is_new = False  # a forked child before its first message


def _note_fork() -> None:
    global _is_new
    _is_new = True


os.register_at_fork(after_in_child=_note_fork)


def _give_addresses_back() -> None:
    """A child whose address space was limited since the fork receives copies: the mapping takes it all."""
    global _is_new
    _is_new = False
    settings = cast("Settings | None", get_settings())
    if settings is None or not is_short_of_addresses():
        return
    region = settings.region
    kept = Kept(where_of(region))
    if region._unmap():  # pyright: ignore[reportPrivateUsage]
        again = Settings(lambda: region_at(kept.where), *settings.options())
        set_settings(again, _reduce_array)


def _loads(data: Any, **options: Any) -> Any:
    """ForkingPickler.loads. What fails because of a stand-in within it is loaded again, with more of them."""
    if _is_new:
        _give_addresses_back()
    before = nr_made()
    try:
        return pickle.loads(data, **options)
    except Exception:
        if nr_made() == before:
            raise
        return load_tolerantly(data)


_WRAPPERS = {"dump": _dump, "dumps": classmethod(_dumps), "loads": staticmethod(_loads)}


def _pack_plain(a: np.ndarray[Any, Any], settings: MessageSettings) -> bytes | None:
    try:
        return None if a.base is None else pack_plain(a, settings.readonly)
    except VmallocError:  # the longer way knows what to do
        return None


def _reduce_array(a: np.ndarray[Any, Any]) -> Any:
    """_reduce(), without its steps for the most frequent arrays."""
    settings = get_settings()
    if settings is not None and not _under_way.starts_process:
        packed = _pack_plain(a, settings)
        if packed is not None:
            return _sent(packed)
    return _reduce(a)


def _reduce(x: object) -> Any:
    """For a pickler, a value that has an adapter: by reference, copied in first, or as before."""
    settings = cast("Settings | None", get_settings())
    adapter = registry.adapter_for(type(x))
    holding, nbytes = adapter.holding(x), adapter.nbytes(x)
    if holding is not None and nbytes is not None and holding.region.closed:
        holding = None  # like private memory
    if settings is None or (holding is None and _goes_as_before(nbytes, settings)):
        return x.__reduce_ex__(pickle.DEFAULT_PROTOCOL)

    def send() -> tuple[Any, ...]:
        if holding is not None:
            return _send(x, holding, settings)
        return _send(*registry.place(x, settings.region), settings)

    region = cast("Region", settings.region if holding is None else holding.region)
    sent = settings.room.find(send, region, 0 if holding is not None else nbytes or 0, nbytes is not None)
    return x.__reduce_ex__(pickle.DEFAULT_PROTOCOL) if sent is None else sent


def _goes_as_before(nbytes: int | None, settings: Settings) -> bool:
    return nbytes is None or nbytes <= settings.threshold or settings.usable_region() is None


def _send(value: Any, holding: Holding, settings: Settings) -> tuple[Any, ...]:
    """A reference with a lease of its own."""
    region = holding.region
    lease = region._lease(holding)[2]  # pyright: ignore[reportPrivateUsage]
    try:
        packed = pack(value, holding, lease, readonly=settings.readonly)
    except BaseException:
        region._drop_lease(lease)  # pyright: ignore[reportPrivateUsage]
        raise
    return _sent(packed)


def _sent(packed: bytes) -> tuple[Any, ...]:
    if _under_way.references is not None:
        _under_way.references.append(packed)
    return load_reference, (packed,)
