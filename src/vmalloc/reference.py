# SPDX-License-Identifier: MIT
"""References: an array or a block passed by reference through any pickler on this machine."""

from __future__ import annotations

from typing import Any

from vmalloc._core import Block, Holding, Lease
from vmalloc.array import holding_of
from vmalloc.attach import Where, region_at, where_of
from vmalloc.region import Region, default_region
from vmalloc.view import Description, describe, kind_of_owner, rebuild

__all__ = ["Ref", "copy_in", "is_shared", "load", "ref"]


def load(
    where: Where,
    page: int,
    id: int,
    lease: int,
    nbytes: int,
    description: Description,
    readonly: bool = False,
) -> Any:
    """What references pickle to: attach the region if need be, take a reference, rebuild the array.

    `lease`: the message's own, which this load claims; 0 for a Ref, which may be loaded many times.
    Raises StaleReference, RegionUnavailable.
    """
    owner = region_at(where)._adopt(page, id, nbytes, lease, kind_of_owner(description))  # pyright: ignore[reportPrivateUsage]
    return rebuild(owner, description, readonly=readonly)


class Ref:
    """Pickles by reference, in any pickler, and loads as the array or block itself, any number of times.

    The memory lives as long as this object or anything loaded from it; if this object's process ends
    first, for the region's `lease_ttl_s` more. Loading after that raises StaleReference. Writes on one
    side are seen on the other.
    """

    __slots__ = ("_holding", "_lease", "_region", "_value")

    def __init__(self, value: Any, holding: Holding, region: Region) -> None:
        self._value, self._holding, self._region = value, holding, region
        self._lease = Lease(region, holding)

    def get(self) -> Any:
        """The array or block this refers to, here."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._lease.is_own:  # a forked child's: its parent may drop its own
            self._lease = Lease(self._region, self._holding)
        description = describe(self._value, self._holding)
        place = where_of(self._region), self._lease.page, self._lease.id
        return load, (*place, 0, self._holding.nbytes, description)

    def __repr__(self) -> str:
        return f"<vmalloc.Ref to {self._value!r}>"


def _held(x: Any, region: Region | None) -> tuple[Any, Holding, Region]:
    """x, or its copy in a region; what holds it; where."""
    holding = holding_of(x)
    if holding is None or (region is not None and holding.region is not region):
        x = (default_region() if region is None else region).array(x)
        holding = holding_of(x)
    assert holding is not None
    if not isinstance(holding.region, Region):
        raise TypeError(f"{type(x).__name__} does not lie in a memory region")
    return x, holding, holding.region


def ref(x: Any, region: Region | None = None) -> Ref:
    """A reference to an array or a block, for any pickler on this machine, to be loaded many times.

    What does not lie in a region (in `region`, if given) is copied in first, once: into `region` or the
    default one. Raises OutOfPages, RegionClosed, TypeError for dtypes that hold Python objects.
    """
    return Ref(*_held(x, region))


def copy_in(x: Any, region: Region | None = None) -> Any:
    """`x` itself if it lies in a region (in `region`, if given); else a C-ordered copy of the array there.

    A later write to the original is not seen in the copy. Raises as ref() does.
    """
    return _held(x, region)[0]


def is_shared(x: object) -> bool:
    """Whether an array, a view of one, or a block lies in a region."""
    holding = holding_of(x)
    return holding is not None and not (isinstance(holding, Block) and holding.released)
