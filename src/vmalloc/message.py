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
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from vmalloc._core import (
    AS_BEFORE,
    BY_REFERENCE,
    BY_VALUE,
    COPIED_IN,
    Block,
    Holding,
    Message,
    MessageSettings,
    count_sent,
    dump,
    dumps,
    forget_sent,
    forking_protocol,
    get_settings,
    init_forking_pickler,
    is_first_message,
    load_beside,
    load_noted,
    load_reference,
    note_always,
    note_forked,
    note_taught,
    nr_changes,
    putting,
    recv_bytes,
    reduce_array,
    send,
    sending,
    set_settings,
    under_way,
    wrapped,
    wrapping_is_for,
)
from vmalloc.adapters import registry
from vmalloc.attach import Kept, Where, kept_ids, where_of
from vmalloc.channel import SEND_BYTES, WRAPPERS, keep_unattached, number_of
from vmalloc.description import encode
from vmalloc.errors import OutOfPages, VmallocError
from vmalloc.facts import COPY_IN_THRESHOLD_BYTES, FULL_TIMEOUT_S
from vmalloc.full import ON_FULL, Room, forget_warnings, warn_once
from vmalloc.limits import is_short_of_addresses
from vmalloc.pickled import arrives_readonly, copy_as, form_of, is_turned
from vmalloc.receiver import can_attach
from vmalloc.reference import pack
from vmalloc.region import Region, default_region, region_at, set_default_region

__all__ = ["Settings", "follow_messages", "install", "reduce_as", "uninstall"]

PRIVATE = (False, True, "copy")
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
        private: bool | str = False,
    ) -> None:
        super().__init__(None, is_default, threshold, readonly, on_full, private)
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
        return self.is_default, self.threshold, self.readonly, self.on_full, self.room.timeout_s, self.private


_install_lock = threading.RLock()
_ndarray: Any = None  # numpy's
_before: dict[type, Any] = {}  # what was registered before us; None: nothing
_followed: dict[tuple[Any, str], Any] = {}  # wrappers that stay without install()
_left: set[tuple[Any, str]] = set()  # wrappers that uninstall() left, for another library's call them


def _renew_lock_in_child() -> None:
    global _install_lock
    _install_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_in_child)
os.register_at_fork(after_in_child=forget_sent)


_Before = Callable[[Any], Any] | None  # what was registered before us


class _NoLease(OutOfPages):
    """There was none for a reference to what lies in the region."""


def install(
    region: Region | None = None,
    threshold: int = COPY_IN_THRESHOLD_BYTES,
    *,
    readonly: bool = False,
    on_full: str = "wait",
    timeout: float = FULL_TIMEOUT_S,
    private: bool | str = False,
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

    `private=True` is for code written for copies: what a receiver writes is its own. What was copied in has
    the bytes of that moment; an array that lies in a region shows the sender's later writes in pages that
    the receiver has not written. `private="copy"` copies that, too, so that all have the bytes of that
    moment. What is received counts as private memory. Blocks and Refs stay shared.

    Holds for this process, for its forked children, and for those it spawns. A second call replaces the
    settings. Nothing has to be closed or unlinked: the memory goes with the last array.
    """
    if on_full not in ON_FULL:
        raise ValueError(f"on_full must be one of {', '.join(ON_FULL)}, not {on_full!r}")
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, not {threshold}")
    if not 0 <= timeout < 1e9:
        raise ValueError(f"timeout must be from 0 to 1e9 seconds, not {timeout}")
    if private not in PRIVATE:
        raise ValueError(f"private must be False, True or 'copy', not {private!r}")
    chosen = region or default_region()
    chosen.fileno()  # RegionClosed
    _install(Settings(lambda: chosen, region is None, threshold, readonly, on_full, timeout, private))


def _reducers() -> dict[type, Any]:
    """What ForkingPickler.register() writes to."""
    return cast("dict[type, Any]", ForkingPickler._extra_reducers)  # type: ignore[attr-defined]


def _install(settings: Settings) -> None:
    with _install_lock:
        if get_settings() is None:
            _wrap(_WRAPPERS)
        set_settings(settings, _reduce)
        forget_warnings()
        _teach()


def uninstall() -> None:
    """Back to stock pickling in this process; messages under way still load. Twice does nothing.

    What others registered over ours since stays.
    """
    with _install_lock:
        if get_settings() is None:
            return
        set_settings(None, _reduce)
        for kind in list(_before):
            _unteach(kind)
        note_taught(0)
        _unwrap()


def follow_messages(queue: type[SimpleQueue[Any]]) -> None:
    """From now on this process's messages tell their leases where they are, also without install().

    For a library that sends references by a pickler of its own; `queue`: what writes them.
    """
    with _install_lock:
        if (queue, "put") not in _followed:
            _followed[queue, "put"] = putting(queue)
            _followed.update(_FOLLOWED)
            _wrap(_followed)
            note_always()


def _wrap(wrappers: dict[tuple[Any, str], Any]) -> None:
    for (owner, name), wrapper in wrappers.items():
        now = owner.__dict__.get(name)
        if now is wrapper or ((owner, name) in _left and now is not wrapped[owner, name]):
            continue  # a second time around itself it would call itself for ever
        wrapped[owner, name] = now
        setattr(owner, name, wrapper)


def _unwrap() -> None:
    for (owner, name), wrapper in _WRAPPERS.items():
        if (owner, name) in _followed:
            continue
        if owner.__dict__.get(name) is not wrapper:
            _left.add((owner, name))
            continue
        _left.discard((owner, name))
        if wrapped[owner, name] is None:
            delattr(owner, name)
        else:
            setattr(owner, name, wrapped[owner, name])


def _teach() -> None:
    """Let ForkingPickler know the types that have an adapter by now, and no others."""
    global _ndarray
    with _install_lock:
        if get_settings() is None:
            return
        nr_looked_at, types, reducers = nr_changes(), registry.exact_types(), _reducers()
        numpy = sys.modules.get("numpy")
        _ndarray = getattr(numpy, "ndarray", None)
        for kind in [kind for kind in _before if kind not in types]:
            _unteach(kind)
        for kind in types:
            if kind not in _before:
                ours = reduce_array if kind is _ndarray else _reduce
                before = None if _is_ours(reducers.get(kind)) else reducers.get(kind)
                _before[kind], reducers[kind] = before, ours  # at once: a handler may break this off
        note_taught(nr_looked_at, _ndarray)


def _teach_again(pickler: Any) -> None:
    """ForkingPickler, and a pickler that copied what it knew when it was made, before we taught it."""
    _teach()
    reducers = _reducers()
    table: dict[type, Any] = pickler.dispatch_table
    if (
        not isinstance(pickler.dispatch_table, dict)
        or getattr(pickler, "_extra_reducers", reducers) is not reducers
    ):
        return  # one that copies nothing, or a derived class that has its own
    former = {kind for kind, reduce in table.items() if _is_ours(reduce)}
    for kind in former:
        del table[kind]
    table.update((kind, reduce) for kind, reduce in reducers.items() if kind in former or _is_ours(reduce))


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


def _dump_before(self: ForkingPickler, obj: Any) -> None:
    before = wrapped.get((ForkingPickler, "dump"))
    if before is None:
        super(ForkingPickler, self).dump(obj)
    else:
        before(self, obj)


def _dump_process(self: ForkingPickler, process: BaseProcess, message: Message) -> None:
    """The settings go with a process that is started; loading them installs us there."""
    settings = cast("Settings | None", get_settings())
    if settings is None or settings.usable_region() is None:
        return _dump_before(self, process)
    process.__dict__[_IN_PROCESS] = settings
    message.starts_process = True
    try:
        _dump_before(self, process)
    finally:
        del process.__dict__[_IN_PROCESS]


def _give_addresses_back() -> None:
    """A child whose address space was limited since the fork receives copies: the mapping takes it all."""
    if not is_first_message():
        return
    settings = cast("Settings | None", get_settings())
    if settings is None or not is_short_of_addresses():
        return
    try:
        region = settings.region
        kept = Kept(where_of(region))
        is_unmapped = region._unmap()  # pyright: ignore[reportPrivateUsage]
    except (VmallocError, OSError, MemoryError):
        return  # it stays mapped: a message is being loaded, where nobody could answer an error
    if is_unmapped:
        again = Settings(lambda: region_at(kept.where), *settings.options())
        set_settings(again, _reduce)


def _loads(data: Any, **options: Any) -> Any:
    """ForkingPickler.loads. Its frame tells stand_in.py that what is loaded is a message."""
    return load_noted(data, options)


os.register_at_fork(after_in_child=note_forked)

_RECV_BYTES = (Connection, "_recv_bytes")
_Connection: Any = Connection.__mro__[1]  # whose send() all connections have
_WRAPPERS: dict[tuple[Any, str], Any] = {
    (ForkingPickler, "__init__"): init_forking_pickler,
    (ForkingPickler, "dump"): dump,
    (ForkingPickler, "dumps"): classmethod(dumps),
    (ForkingPickler, "loads"): staticmethod(_loads),
    (_Connection, "send"): send,
    **WRAPPERS,
    _RECV_BYTES: recv_bytes,
}

wrapping_is_for(
    ForkingPickler,
    Connection,
    BaseProcess,
    kept_ids(),
    teach_again=_teach_again,
    dump_process=_dump_process,
    give_addresses_back=_give_addresses_back,
    keep_unattached=keep_unattached,
    number_of=number_of,
    can_attach=can_attach,
)
_FOLLOWED: dict[tuple[Any, str], Any] = {where: _WRAPPERS[where] for where in (SEND_BYTES, _RECV_BYTES)}


def _reduce(x: object) -> Any:
    """For a pickler, a value that has an adapter: by reference, copied in first, or as before."""
    return reduce_as(x, cast("Settings | None", get_settings()), _before.get(type(x)))


def reduce_as(x: Any, settings: Settings | None, before: Callable[[Any], Any] | None = None) -> Any:
    """The same by these settings, also where install() was not called; `before`: another library's way."""
    adapter = registry.adapter_for(type(x))  # pyright: ignore[reportUnknownArgumentType]
    holding, nbytes = adapter.holding(x), adapter.nbytes(x)
    if holding is not None and nbytes is not None and holding.region.closed:
        holding = None  # like private memory
    if settings is not None and settings.private and nbytes is not None and holding is not None:
        is_kept = settings.private is True and nbytes > settings.threshold and not _is_turned(x)
        holding = holding if is_kept else None
    if settings is None or sending.by_value:
        return _reduce_by_value(adapter, x, before, AS_BEFORE)
    if holding is None and _goes_as_before(adapter, nbytes, settings):
        return _reduce_private(adapter, x, before, settings)

    def send() -> tuple[Any, ...] | None:
        try:
            if holding is not None:
                return _send(x, holding, settings)
            return _send(*_placed(x, settings), settings)
        except _NoLease:
            message = under_way.message
            if message is None or not message.references or nbytes is None:
                raise
            message.has_no_lease = True  # it is large, and took them itself: no wait would help
            return None

    region = cast("Region", settings.region if holding is None else holding.region)
    sent = settings.room.find(send, region, 0 if holding is not None else nbytes or 0, nbytes is not None)
    if sent is None:
        return _reduce_by_value(adapter, x, before, BY_VALUE)
    count_sent(COPIED_IN if holding is None else BY_REFERENCE)
    return sent


def _is_turned(x: Any) -> bool:
    return type(x) is _ndarray and is_turned(x, forking_protocol())


def _placed(x: Any, settings: Settings) -> tuple[Any, Holding]:
    """`x` or its copy in the region, as pickle would deliver it; what holds it. OutOfPages, TypeError."""
    form = form_of(x, forking_protocol()) if type(x) is _ndarray else None
    if form is None:
        return registry.place(x, settings.region, anew=settings.private == "copy")
    copy = copy_as(form, x, settings.region)
    return copy, cast("Holding", registry.holding_of(copy))


def _reduce_private(adapter: registry.Adapter, x: object, before: _Before, settings: Settings) -> Any:
    """What is not copied in as a whole: in parts, which are counted each for itself, or as before."""
    parts = adapter.take_apart(x, settings.threshold)
    if parts is not None:
        return parts
    nbytes = adapter.nbytes(x)
    is_large = adapter.is_copied_in and nbytes is not None and nbytes > settings.threshold
    return _reduce_by_value(adapter, x, before, BY_VALUE if is_large else AS_BEFORE)


def _reduce_by_value(adapter: registry.Adapter, x: object, before: _Before, way: int) -> Any:
    count_sent(way)
    return adapter.as_before(x, before)


def _goes_as_before(adapter: registry.Adapter, nbytes: int | None, settings: Settings) -> bool:
    """What lies in no region. A copy in it would be of no use to a message that finds no lease."""
    if not adapter.is_copied_in or nbytes is None or nbytes <= settings.threshold:
        return True
    if settings.usable_region() is None:
        return True
    return under_way.message is not None and under_way.message.has_no_lease


def _send(value: Any, holding: Holding, settings: Settings) -> tuple[Any, ...]:
    """Beside an earlier array of the same pages, or a reference with a lease of its own."""
    message = under_way.message
    is_array = type(value) is _ndarray
    is_private = bool(settings.private) and not isinstance(value, Block)
    can_go_beside = is_array and not is_private  # each array is its receiver's own, also from the others
    first = message.first_of(holding) if message is not None and can_go_beside else None
    if first is not None and first is not value:
        return load_beside, (first, _describe_beside(value, first, holding, settings))
    kind: type = type(cast("object", value))
    place = (kind, holding.region, holding._range)  # pyright: ignore[reportPrivateUsage]
    if message is not None and not is_array and not is_private:
        other = message.others.get(place)
        if other is not None and other is not value:
            beside = registry.adapter_for(kind).beside(value, other, holding)
            if beside is not None:
                return beside
    region, lease = holding.region, None
    try:
        lease = region._lease(holding)[2]  # pyright: ignore[reportPrivateUsage]
        readonly = settings.readonly or (
            is_private and is_array and arrives_readonly(cast("Any", value), forking_protocol())
        )
        packed = pack(value, holding, lease, readonly=readonly, private=is_private)
        if message is not None:
            message.went(packed, holding, cast("Any", value) if can_go_beside else None)
            if not is_array:
                message.others.setdefault(place, value)
    except BaseException as e:
        if lease is not None:
            region._drop_lease(lease)  # pyright: ignore[reportPrivateUsage]
        elif isinstance(e, OutOfPages):
            raise _NoLease(*e.args) from None
        raise
    return load_reference, (packed,)


def _describe_beside(value: Any, first: Any, holding: Holding, settings: MessageSettings) -> bytes:
    description = registry.describe(value, holding)
    dtype = None if value.dtype is first.dtype else description.dtype
    readonly = description.readonly or settings.readonly
    return encode(description._replace(dtype=dtype, readonly=readonly), may_pickle=True)
