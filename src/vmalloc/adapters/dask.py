# SPDX-License-Identifier: MIT
# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false
"""Dask: what goes between processes of one machine by reference, through distributed's own serialization.

Workers read and write the families "dask" and "pickle" only, so these two are what is wrapped. When a
connection begins each side tells its region's id (`Comm.handshake_info`): equal ids mean one machine and a
region that both have. To everybody else, and to the scheduler, which hands messages on without loading them,
and to disk the ordinary way is gone.

A reference has no lease. Its sender keeps the pages until the receiver, who has loaded by then, has
answered: that is `Sending`. So only requests and `get_data` carry references; other answers do not, for
nobody says when those were loaded. What lay in private memory is copied in once a value (`Copies`), however
many read it.
"""

from __future__ import annotations

import functools
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vmalloc._core import load_reference
from vmalloc.adapters import registry
from vmalloc.errors import OutOfPages, VmallocError
from vmalloc.full import warn_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmalloc.region import Region

__all__ = ["Wire", "begin", "end", "holding_what_it_sends", "is_received"]

_OURS = "vmalloc"  # in headers: a reference; in a handshake: a region's id
MODES = ("r", "r+", "c")


class Sending:
    """One transfer: what is kept for it until it is answered."""

    def __init__(self) -> None:
        self.is_under_way = True
        self.kept: list[Any] = []


_sending: ContextVar[Sending | None] = ContextVar("vmalloc_sending", default=None)


@contextmanager
def _transfer() -> Iterator[None]:
    """Tasks that begin within it inherit the variable, but not the right to send by reference after it."""
    sending = Sending()
    token = _sending.set(sending)
    try:
        yield
    finally:
        sending.is_under_way = False
        sending.kept.clear()
        _sending.reset(token)


def holding_what_it_sends(send: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function that returns when the receiver has answered."""

    @functools.wraps(send)
    async def within(*args: Any, **options: Any) -> Any:
        with _transfer():
            return await send(*args, **options)

    return within


class Copies:
    """Of what lies in private memory, the copies in the region: as long as the value lives."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run anywhere
        self._of: dict[int, tuple[weakref.ref[Any], dict[Any, Any]]] = {}

    def get(self, value: Any, part: Any, make: Callable[[], Any]) -> Any:
        """The copy of one part of a value, made when it is first asked for. What has no weak references has
        none that is kept."""
        with self._lock:
            known = self._of.get(id(value))
            if known is None or known[0]() is not value:
                key = id(value)
                try:
                    known = weakref.ref(value, lambda _: self._of.pop(key, None)), {}
                except TypeError:
                    return make()
                self._of[key] = known
            copy = known[1].get(part)
            if copy is None:
                copy = known[1][part] = make()
            return copy


class Wire:
    """How this process sends and receives.

    `region`: where copies are made, and which all have. `pack`: vmalloc.reference's, which makes a reference.
    `may_copy`: whether this process may hold so many bytes more.
    """

    def __init__(
        self,
        region: Region,
        threshold: int,
        mmap_mode: str,
        pack: Callable[..., bytes],
        may_copy: Callable[[int], bool] = lambda nbytes: True,
    ) -> None:
        if mmap_mode not in MODES:
            raise ValueError(f"mmap_mode must be one of {', '.join(MODES)}, not {mmap_mode!r}")
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, not {threshold}")
        self.region, self.threshold, self.mmap_mode, self._pack = region, threshold, mmap_mode, pack
        self._may_copy = may_copy
        self.id = region._info()["id"].hex()
        self._copies = Copies()

    def reaches(self, context: Any) -> bool:
        """Whether what is being serialized goes to a process that has the region, and is kept meanwhile."""
        sending = _sending.get()
        return (
            sending is not None
            and sending.is_under_way
            and bool(context)
            and context.get("recipient", {}).get(_OURS) == self.id
            and not self.region.closed
        )

    def array(self, x: Any) -> bytes | None:
        """A reference to an array; None: it goes as before."""
        return None if x.dtype.hasobject or not x.nbytes else self._packed(x, x, None)

    def bytes_of(self, raw: memoryview, value: Any) -> bytes | None:
        """A reference to bytes that are part of a value."""
        import numpy as np

        if not raw.nbytes:
            return None
        part = np.frombuffer(raw, "u1")
        return self._packed(part, value, (part.ctypes.data, raw.nbytes))

    def _packed(self, array: Any, value: Any, part: Any) -> bytes | None:
        holding = registry.holding_of(array)
        if holding is None or holding.region is not self.region:
            if array.nbytes <= self.threshold:
                return None
            try:
                array = self._copies.get(value, part, lambda: self._placed(array))
            except OutOfPages as e:
                warn_once("dask", f"arrays go by value until there is room again: {e}")
                return None
            holding = registry.holding_of(array)
        sending = _sending.get()
        if sending is None or holding is None:
            return None
        sending.kept.append(array)
        self.region._share(holding)
        return self._pack(array, holding, 0, readonly=self.mmap_mode == "r", private=self.mmap_mode == "c")

    def _placed(self, array: Any) -> Any:
        """A copy beside what the process has. OutOfPages, also where that would be more than its limit."""
        if not self._may_copy(array.nbytes):
            raise OutOfPages(f"a copy of {array.nbytes} bytes would take this worker to its memory limit")
        return registry.place(array, self.region)[0]


_wire: Wire | None = None
_stock: dict[str, Any] = {}
_received: dict[int, weakref.ref[Any]] = {}


def begin(wire: Wire) -> None:
    """From now on this process sends and receives so. A second call replaces the first."""
    global _wire
    _wrap_once()
    _wire = wire


def end() -> None:
    """It sends as before. What others send meanwhile by reference it still loads."""
    global _wire
    _wire = None


def _wrap_once() -> None:
    from distributed import core
    from distributed.comm.core import Comm
    from distributed.protocol.serialize import families, register_serialization_family

    if _stock:
        return
    _stock.update(handshake_info=Comm.handshake_info, families={**families})
    register_serialization_family("dask", _dask_dumps, _dask_loads)
    register_serialization_family("pickle", _pickle_dumps, _pickle_loads)
    Comm.handshake_info = _handshake_info
    core.send_recv = holding_what_it_sends(core.send_recv)


def _handshake_info(comm: Any) -> dict[str, Any]:
    told: dict[str, Any] = _stock["handshake_info"](comm)
    if _wire is not None and not _wire.region.closed and getattr(comm, "deserialize", False):
        told[_OURS] = _wire.id
    return told


def _reached(context: Any) -> Wire | None:
    wire = _wire
    return wire if wire is not None and wire.reaches(context) else None


def _is_table(x: Any) -> bool:
    kind = type(x)
    return kind.__module__ == "pyarrow.lib" and kind.__name__ in ("Table", "RecordBatch")


def _dask_dumps(x: Any, context: Any = None) -> Any:
    """distributed's, which makes one stream of a table: pickle takes its buffers as they are."""
    wire = _reached(context)
    if wire is not None:
        import numpy as np

        if _is_table(x):
            raise NotImplementedError("tables are pickled")
        packed = wire.array(x) if type(x) is np.ndarray else None
        if packed is not None:
            return {_OURS: packed}, []
    return _stock["families"]["dask"][0](x, context=context)


def _dask_loads(header: Any, frames: Any) -> Any:
    if _OURS not in header:
        return _stock["families"]["dask"][1](header, frames)
    array = _load(header[_OURS])
    key = id(array)
    _received[key] = weakref.ref(array, lambda _: _received.pop(key, None))
    return array


def _pickle_dumps(x: Any, context: Any = None) -> Any:
    wire = _reached(context)
    if wire is None:
        return _stock["families"]["pickle"][0](x, context=context)
    from distributed.protocol import pickle

    frames: list[Any] = [None]
    writeable: list[bool] = []
    references: list[int] = []

    def take(found: Any) -> None:
        view = memoryview(found)
        packed = wire.bytes_of(found.raw(), x)
        if packed is not None:
            references.append(len(frames))
        frames.append(view if packed is None else packed)
        writeable.append(not view.readonly and (packed is None or wire.mmap_mode != "r"))

    frames[0] = pickle.dumps(x, buffer_callback=take, protocol=context.get("pickle-protocol"))
    return {"serializer": "pickle", "writeable": tuple(writeable), _OURS: tuple(references)}, frames


def _pickle_loads(header: Any, frames: Any) -> Any:
    frames = list(frames)
    for i in header.get(_OURS, ()):
        frames[i] = memoryview(_load(bytes(frames[i])))
    return _stock["families"]["pickle"][1](header, frames)


def _load(packed: bytes) -> Any:
    """EOFError makes a broken connection of what cannot be loaded: then a value is fetched or made again.

    That happens where a sender died between sending and our loading.
    """
    try:
        return load_reference(packed)
    except VmallocError as e:
        raise EOFError(f"a reference that cannot be loaded: {e}") from e


def is_received(value: Any) -> bool:
    """Whether it is an array that came by reference: another process made it."""
    known = _received.get(id(value))
    return known is not None and known() is value
