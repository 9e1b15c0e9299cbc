# SPDX-License-Identifier: MIT
"""References: what lies in a region, passed by reference through any pickler on this machine."""

from __future__ import annotations

from typing import Any, cast

from vmalloc._core import (
    Block,
    Holding,
    Lease,
    is_plain,
    load_reference,
    pack_reference,
    protocol_here,
    sending,
)
from vmalloc.adapters.registry import adapter_of_kind, describe, holding_of, place, rebuild
from vmalloc.attach import where_of
from vmalloc.description import decode, encode
from vmalloc.private import rebuild_private
from vmalloc.region import Region, default_region

__all__ = ["Ref", "copy_in", "is_shared", "load_described", "load_described_beside", "pack", "ref", "sending"]


def pack(value: Any, holding: Holding, lease: int, *, readonly: bool = False, private: bool = False) -> bytes:
    """A reference to `value`, which lies in `holding`'s pages, for load_reference().

    `lease`: the message's own, which the first load claims; 0 for a Ref, which may be loaded many times.
    `readonly`: for the receiver, whatever the value is. `private`: what the receiver writes is its own.
    """
    region = holding.region
    if not isinstance(region, Region):
        raise TypeError(f"{type(value).__name__} does not lie in a memory region")
    description = describe(value, holding)
    if readonly or private:  # what is the receiver's own is its to write
        description = description._replace(readonly=readonly, private=private)
    return pack_reference(holding, lease, encode(description, may_pickle=True), where_of(region))


def load_described(region: Region, page: int, id: int, lease: int, nbytes: int, description: bytes) -> Any:
    """The general half of load_reference(): take a reference, rebuild the value. StaleReference."""
    told = decode(description, may_unpickle=True)
    owner_type = adapter_of_kind(told.kind).owner_type
    owner = region._adopt(page, id, nbytes, lease, owner_type)  # pyright: ignore[reportPrivateUsage]
    return rebuild_private(owner, told) if told.private else rebuild(owner, told)


def load_described_beside(first: Any, description: bytes) -> Any:
    """The general half of load_beside(): another value on the pages of `first`. StaleReference."""
    told = decode(description, may_unpickle=True)
    return rebuild(first.base, told if told.dtype is not None else told._replace(dtype=first.dtype))


class Ref:
    """Pickles by reference, in any pickler, and loads as the array or block itself, any number of times.

    The memory lives as long as this object or anything loaded from it; if this object's process ends
    first, for the region's `lease_ttl_s` more. Loading after that raises StaleReference. Writes on one
    side are seen on the other. Through a network connection it goes by value.
    """

    __slots__ = ("_holding", "_lease", "_region", "_value")

    def __init__(self, value: Any, holding: Holding, region: Region) -> None:
        self._value, self._holding, self._region = value, holding, region
        self._lease = Lease(region, holding)

    def get(self) -> Any:
        """The array or block this refers to, here."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        if sending.by_value:
            return cast("tuple[Any, ...]", self._value.__reduce_ex__(protocol_here()))
        if not self._lease.is_own:  # a forked child's: its parent may drop its own
            self._lease = Lease(self._region, self._holding)
        return load_reference, (pack(self._value, self._holding, 0),)

    def __repr__(self) -> str:
        return f"<vmalloc.Ref to {self._value!r}>"


def _held(x: Any, region: Region | None) -> tuple[Any, Holding]:
    """x, or its copy in a region; what holds it."""
    if region is None:
        holding = holding_of(x)
        if holding is not None:
            return x, holding
        region = default_region()
    return place(x, region)


def ref(x: Any, region: Region | None = None) -> Ref:
    """A reference to an array, a block or what has an adapter, for any pickler, to be loaded many times.

    What does not lie in a region (in `region`, if given) is copied in first, once: into `region` or the
    default one. Raises OutOfPages, RegionClosed, TypeError for dtypes that hold Python objects and for what
    is more than an array (a mask, a subclass, a table's index) and has no adapter.
    """
    x, holding = _held(x, region)
    there = holding.region
    if not isinstance(there, Region):
        raise TypeError(f"{type(x).__name__} does not lie in a memory region")
    if not is_plain(x):
        describe(x, holding)  # TypeError here, and not when it is pickled
    return Ref(x, holding, there)


def copy_in(x: Any, region: Region | None = None) -> Any:
    """`x` itself if it lies in a region (in `region`, if given); else a copy there, with every byte and the
    order that pickle keeps: Fortran order where the array has that, else C order.

    A later write to the original is not seen in the copy. Raises as ref() does.
    """
    return _held(x, region)[0]


def is_shared(x: object) -> bool:
    """Whether an array, a view of one, or a block lies in a region."""
    holding = holding_of(x)
    return holding is not None and not (isinstance(holding, Block) and holding.released)
