"""References: an array or a block passed by reference through any pickler on this machine."""

from __future__ import annotations

import os
from typing import Any

from vmalloc._core import Block, Holding
from vmalloc.array import holding_of
from vmalloc.region import Region, default_region, describe, rebuild

__all__ = ["Ref", "is_shared", "ref"]


class Ref:
    """Pickles by reference and loads as the array itself (a memoryview for a block), any number of times.

    The memory lives as long as this object or any array loaded from it; loading after both are gone
    raises StaleReference. Writes on one side are seen on the other.
    """

    __slots__ = ("_holding", "_id", "_page", "_region", "_value")

    def __init__(self, value: Any, holding: Holding, region: Region) -> None:
        self._value, self._holding, self._region = value, holding, region
        self._page, self._id = region._share(holding)

    def get(self) -> Any:
        """The array or block this refers to, here."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        where = (self._region.id, os.getpid(), self._region.fileno())
        return load_ref, (
            where,
            self._page,
            self._id,
            self._holding.nbytes,
            describe(self._value, self._holding),
        )

    def __repr__(self) -> str:
        return f"<vmalloc.Ref to {self._value!r}>"


def ref(x: Any) -> Ref:
    """A reference to an array or a block, for any pickler on this machine.

    An array outside of any region is copied into the default region first, once.
    """
    holding = holding_of(x)
    if holding is None:
        x = default_region().array(x)
        holding = holding_of(x)
    assert holding is not None
    region = holding.region
    if not isinstance(region, Region):
        raise TypeError(f"{type(x).__name__} does not lie in a memory region")
    return Ref(x, holding, region)


def load_ref(
    where: tuple[str, int, int], page: int, id: int, nbytes: int, description: dict[str, Any]
) -> Any:
    """What Ref pickles to: attach if needed, take a reference, rebuild the array. StaleReference."""
    # not for users, but what unpickling a Region calls as well
    region = Region._reattach(*where)  # pyright: ignore[reportPrivateUsage]
    return rebuild(region._adopt(page, id, nbytes), description)


def is_shared(x: object) -> bool:
    """Whether an array, a view of one, or a block lies in a region."""
    holding = holding_of(x)
    return holding is not None and not (isinstance(holding, Block) and holding.released)
