# SPDX-License-Identifier: MIT
"""Blocks: bytes, without numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmalloc._core import Block, Holding
from vmalloc.adapters.registry import Adapter
from vmalloc.description import Description

if TYPE_CHECKING:
    from vmalloc.region import Region

__all__ = ["BlockAdapter"]


class BlockAdapter(Adapter):
    """The holding is the value. From a message it is a Block, from a name a memoryview."""

    kind = "block"
    owner_type = Block

    def holding(self, x: Any) -> Holding | None:
        return x if isinstance(x, Holding) else None

    def describe(self, x: Any, holding: Holding) -> Description:
        return Description(shape=(holding.nbytes,))

    def rebuild(self, owner: Holding, description: Description) -> Any:
        (nbytes,) = description.shape
        if not isinstance(owner, Block):
            if not 0 <= nbytes <= owner.nbytes:
                raise ValueError(f"{nbytes} bytes")
            return memoryview(owner)[:nbytes]
        if nbytes != owner.nbytes:
            raise ValueError(f"a block of {nbytes} bytes")
        return owner

    def copy_in(self, x: Any, region: Region) -> Any:
        return region.array(x)
