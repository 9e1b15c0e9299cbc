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
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, cast

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
    drop_reference,
    forget_sent,
    forking_protocol,
    get_settings,
    lies_inside,
    load_beside,
    load_reference,
    note_always,
    note_loads,
    noting_loads,
    pack_plain,
    pickle_at,
    pickle_for,
    pickled_reference,
    pickling_for,
    reduce_array,
    reduce_beside,
    set_settings,
)
from vmalloc.adapters import registry
from vmalloc.attach import Kept, Where, kept_ids, where_of
from vmalloc.channel import NUMBER, SEND_BYTES, WRAPPERS, keep_received, keep_unattached, number_of, putting
from vmalloc.channel import wrapped as _wrapped_before
from vmalloc.description import encode
from vmalloc.errors import OutOfPages, VmallocError
from vmalloc.facts import COPY_IN_THRESHOLD_BYTES, FULL_TIMEOUT_S
from vmalloc.full import ON_FULL, Room, forget_warnings, warn_once
from vmalloc.limits import is_short_of_addresses
from vmalloc.pickled import arrives_readonly, copy_as, form_of, is_turned
from vmalloc.receiver import can_attach
from vmalloc.reference import pack, sending
from vmalloc.region import Region, default_region, region_at, set_default_region
from vmalloc.stand_in import has_stand_in, load_tolerantly

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Settings", "follow_messages", "install", "reduce_as", "uninstall"]

PRIVATE = (False, True, "copy")
_IN_PROCESS = "_vmalloc_settings"  # attribute of a Process while it is pickled
_PROTOCOL = "_vmalloc_protocol"  # of a ForkingPickler


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
_taught = -1  # version of the adapters that ForkingPickler was told of
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


class _UnderWay(threading.local):
    """What this thread pickles just now."""

    message: Message | None = None
    sent: list[bytes] | None = None  #: references of a message that Connection.send is about to write

    def note_sent(self, references: list[bytes]) -> None:
        """They are complete. A message within another one is not what is sent."""
        if self.message is None and self.sent is not None:
            self.sent += references

    @property
    def references(self) -> list[bytes] | None:
        """Of the message, those with leases of their own."""
        return None if self.message is None else self.message.references


_under_way = _UnderWay()


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
        if now is wrapper or ((owner, name) in _left and now is not _wrapped_before[owner, name]):
            continue  # a second time around itself it would call itself for ever
        _wrapped_before[owner, name] = now
        setattr(owner, name, wrapper)


def _unwrap() -> None:
    for (owner, name), wrapper in _WRAPPERS.items():
        if (owner, name) in _followed:
            continue
        if owner.__dict__.get(name) is not wrapper:
            _left.add((owner, name))
            continue
        _left.discard((owner, name))
        if _wrapped_before[owner, name] is None:
            delattr(owner, name)
        else:
            setattr(owner, name, _wrapped_before[owner, name])


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


def _init(self: ForkingPickler, *args: Any) -> None:
    """ForkingPickler(file, protocol, ...). It tells nobody its protocol later."""
    _wrapped_before[_INIT](self, *args)
    protocol = args[1] if len(args) > 1 else None
    if protocol is not None:
        self.__dict__[_PROTOCOL] = pickle.HIGHEST_PROTOCOL if protocol < 0 else protocol


def _dump(self: ForkingPickler, obj: Any) -> None:
    """Pickler.dump; if it fails, the message's leases end."""
    if _taught != registry.version():
        _teach()
        _teach_made(self)
    outer, outer_protocol = _under_way.message, forking_protocol()
    message = Message()
    try:
        try:
            _under_way.message = message
            pickle_at(self.__dict__.get(_PROTOCOL, pickle.DEFAULT_PROTOCOL))
            if issubclass(type(obj), BaseProcess):  # isinstance() would use a stand-in
                _dump_process(self, obj, message)
            else:
                _dump_before(self, obj)
        finally:
            _under_way.message = outer
            pickle_at(outer_protocol)
        _under_way.note_sent(message.references)
    except BaseException:
        _drop(message.references)
        raise


def _drop(references: list[bytes]) -> None:
    for reference in references:
        drop_reference(reference)


def _dump_before(self: ForkingPickler, obj: Any) -> None:
    before = _wrapped_before.get((ForkingPickler, "dump"))
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


def _dumps(cls: type[ForkingPickler], obj: Any, protocol: int | None = None) -> Any:
    """ForkingPickler.dumps, without a ForkingPickler for a message that is one plain array."""
    settings = get_settings()
    if type(obj) is _ndarray and settings is not None and protocol is None and _is_plain_pickler(cls):
        packed = None if sending.by_value or settings.private else _pack_plain(obj, settings)
        if packed is not None:
            return _one_reference(packed)
        is_small = obj.base is None and obj.nbytes <= settings.threshold
        if is_small and obj.dtype.kind in "biufc" and not lies_inside(obj):
            # numbers: nothing in it that another reducer is for
            count_sent(AS_BEFORE)
            return BytesIO(pickle.dumps(obj)).getbuffer()
    return _wrapped_before[ForkingPickler, "dumps"].__get__(None, cls)(obj, protocol)


def _one_reference(packed: bytes) -> memoryview:
    """A message that is nothing else; if it cannot be made, its lease ends."""
    try:
        _under_way.note_sent([packed])
        return pickled_reference(packed)
    except BaseException:
        drop_reference(packed)
        raise


def _is_plain_pickler(cls: type[ForkingPickler]) -> bool:
    """Not a class derived from it, and nobody registered another way for arrays since."""
    return cls is ForkingPickler and _reducers().get(_ndarray) is reduce_array


def _send_through(self: Connection[Any, Any], obj: Any) -> None:
    """Connection.send; its leases know the channel, and it goes by value to a receiver that cannot attach.

    If it fails, the message's leases end.
    """
    before = _wrapped_before[_Connection, "send"]
    by_value, message, sent = sending.by_value, _under_way.message, _under_way.sent
    references = list[bytes]()
    told: int = self.__dict__.get(NUMBER, 0)
    channel = pickling_for()  # a handler may raise where pickle_for() returns, so that stands within
    try:
        pickle_for(told if told > 0 else number_of(self))
        sending.by_value, _under_way.message, _under_way.sent = not can_attach(self), None, references
        before(self, obj)
    except BaseException as e:
        if _is_unsent(e):
            _drop(references)
        raise
    finally:
        sending.by_value, _under_way.message, _under_way.sent = by_value, message, sent
        pickle_for(channel)


def _is_unsent(error: BaseException) -> bool:
    """Whether a send failed of itself: of half a message nothing can be loaded.

    What a signal's handler raises, KeyboardInterrupt or a TimeoutError of its own, may come after the last
    byte was written. Then the message is its reader's. The system's own errors have a number.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


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
    try:
        region = settings.region
        kept = Kept(where_of(region))
        is_unmapped = region._unmap()  # pyright: ignore[reportPrivateUsage]
    except (VmallocError, OSError, MemoryError):
        return  # it stays mapped: a message is being loaded, where nobody could answer an error
    if is_unmapped:
        again = Settings(lambda: region_at(kept.where), *settings.options())
        set_settings(again, _reduce_array)


def _loads(data: Any, **options: Any) -> Any:
    """ForkingPickler.loads. What fails because of a stand-in within it is loaded again, with more of them."""
    if _is_new:
        _give_addresses_back()
    loaded: list[tuple[bytes, Any]] = []  # kept until the end: the first load has claimed its leases
    outer = noting_loads()
    try:
        try:
            note_loads(loaded)
            return pickle.loads(data, **options)
        except Exception as e:
            if not has_stand_in(loaded):
                raise
            e.__traceback__ = None  # the error of a stand-in lives on, and must hold nothing that was loaded
        return load_tolerantly(data, loaded)
    finally:
        note_loads(outer)
        if outer is not None:  # a message within another one, which may have to be loaded again, too
            outer += loaded


def _recv_bytes(self: Connection[Any, Any], maxsize: int | None = None) -> BytesIO | None:
    """Connection._recv_bytes. What holds references is this process's from now on."""
    if _is_new:
        _give_addresses_back()
    buf: BytesIO | None = _wrapped_before[_RECV_BYTES](self, maxsize)
    if buf is not None:
        if kept_ids():
            keep_unattached(buf.getbuffer())
        keep_received(buf)
    return buf


_INIT = (ForkingPickler, "__init__")
_RECV_BYTES = (Connection, "_recv_bytes")
_Connection: Any = Connection.__mro__[1]  # whose send() all connections have
_WRAPPERS: dict[tuple[Any, str], Any] = {
    _INIT: _init,
    (ForkingPickler, "dump"): _dump,
    (ForkingPickler, "dumps"): classmethod(_dumps),
    (ForkingPickler, "loads"): staticmethod(_loads),
    (_Connection, "send"): _send_through,
    **WRAPPERS,
    _RECV_BYTES: _recv_bytes,
}
_FOLLOWED: dict[tuple[Any, str], Any] = {where: _WRAPPERS[where] for where in (SEND_BYTES, _RECV_BYTES)}


def _pack_plain(
    a: np.ndarray[Any, Any], settings: MessageSettings, message: Message | None = None
) -> bytes | None:
    """`message` notes it as soon as it has a lease."""
    try:
        return None if a.base is None else pack_plain(a, settings.readonly, message)
    except VmallocError:  # the longer way knows what to do
        return None


def _goes_beside(message: Message, a: np.ndarray[Any, Any]) -> bool:
    """Another array of the same pages went before, perhaps of another dtype."""
    base: Any = a.base
    if type(base) is _ndarray:
        base = base.base
    first = message.first_of(base) if isinstance(base, Holding) else None
    return first is not None and first is not a


def _reduce_array(a: np.ndarray[Any, Any]) -> Any:
    """_reduce(), without its steps for the most frequent arrays."""
    settings, message = get_settings(), _under_way.message
    if settings is not None and message is not None and not (sending.by_value or settings.private):
        beside = reduce_beside(message, a, settings.readonly)
        if beside is not None:
            return beside
        if not message.starts_process and not _goes_beside(message, a):
            packed = _pack_plain(a, settings, message)
            if packed is not None:
                return load_reference, (packed,)
    return _reduce(a)


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
            message = _under_way.message
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
    return _under_way.message is not None and _under_way.message.has_no_lease


def _send(value: Any, holding: Holding, settings: Settings) -> tuple[Any, ...]:
    """Beside an earlier array of the same pages, or a reference with a lease of its own."""
    message = _under_way.message
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
