# SPDX-License-Identifier: MIT
"""Views: what another process needs, beside the pages, to see the same array or block.

`describe` and `rebuild` are each other's inverse and know nothing of processes: reference.py sends a
description along with a reference, region.py keeps one, as JSON, with a name.
"""

from __future__ import annotations

import json
import math
from typing import Any

from vmalloc._core import ArrayOwner, Block, Holding, offset_of
from vmalloc.errors import StaleReference

__all__ = ["Description", "describe", "from_json", "kind_of_owner", "rebuild", "to_json"]

#: (dtype, shape, strides or None if C-contiguous, offset in bytes from the pages' start, read-only);
#: of a block (its bytes,). A dtype is its own text where that says all.
Description = tuple[Any, ...]

_PLAIN = "biufc?"


def describe(value: Any, holding: Holding) -> Description:
    """Of an array or memoryview within `holding`'s pages, or of the block itself."""
    if isinstance(value, Holding):
        return (holding.nbytes,)
    if isinstance(value, memoryview):
        import numpy as np

        value = np.asarray(value)
    dtype, flags = value.dtype, value.flags
    return (
        dtype.str if dtype.kind in _PLAIN else dtype,
        value.shape,
        None if flags.c_contiguous else value.strides,
        offset_of(value, holding),
        not flags.writeable,
    )


def lies_within(a: Any, holding: Holding) -> bool:
    """Whether an array's bytes are `holding`'s: whatever has a `base` may say that it is a region's."""
    low, high = _extent(a.itemsize, a.shape, a.strides)
    start = offset_of(a, holding)
    return start + low >= 0 and start + high <= holding.nbytes


def kind_of_owner(description: Description) -> type[Holding]:
    """What holds the pages on the other side: a block itself, or an array's owner."""
    return Block if len(description) == 1 else ArrayOwner


def rebuild(owner: Holding, description: Description, *, readonly: bool = False) -> Any:
    """The array (or block) that `describe` told of, on `owner`'s pages; `readonly`: whatever it was.

    What does not lie within them raises StaleReference, so a forged description shows no other bytes.
    """
    try:
        if len(description) == 1:
            if description[0] != owner.nbytes:
                raise ValueError(f"a block of {description[0]} bytes")
            return owner
        dtype, shape, strides, offset, is_readonly = description
        return _array(owner, dtype, shape, strides, offset, readonly or is_readonly)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as e:
        raise StaleReference(
            f"the reference tells of no array within its {owner.nbytes} bytes: {e}"
        ) from None


def _array(owner: Any, dtype: Any, shape: Any, strides: Any, offset: Any, readonly: bool) -> Any:
    import numpy as np

    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"dtype {dtype} holds pointers")
    low, high = _extent(dtype.itemsize, shape, strides)
    if offset + low < 0 or offset + high > owner.nbytes:
        raise ValueError(f"shape {shape}, strides {strides}, offset {offset}")
    a: np.ndarray[Any, Any] = np.ndarray(shape, dtype, owner, offset, strides)
    if readonly:
        a.flags.writeable = False
    return a


def _extent(itemsize: int, shape: Any, strides: Any) -> tuple[int, int]:
    """Bytes from the first element to the lowest one and to the end of the highest one.

    In Python's integers: numpy's own check overflows.
    """
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    if strides is None:
        return 0, itemsize * math.prod(shape)
    if len(strides) != len(shape):
        raise ValueError(f"{len(shape)} dimensions, {len(strides)} strides")
    if 0 in shape:
        return 0, 0
    reach = [stride * (n - 1) for stride, n in zip(strides, shape, strict=True)]
    return sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + itemsize


# ---- as JSON, for names ----


def to_json(description: Description) -> bytes:
    """TypeError for a dtype that numpy's own file format could not keep either."""
    if len(description) > 1:
        description = (_dtype_text(description[0]), *description[1:])
    return json.dumps(description, separators=(",", ":")).encode()


def from_json(text: bytes) -> Description:
    """What to_json() wrote; StaleReference if it is something else."""
    try:
        description = json.loads(text)
        if len(description) == 1:
            return (int(description[0]),)
        dtype, shape, strides, offset, readonly = description
        return _dtype_of(dtype), tuple(shape), strides and tuple(strides), offset, readonly
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as e:
        raise StaleReference(f"the name's description does not parse: {e}") from None


def _dtype_text(dtype: Any) -> Any:
    import numpy as np

    text = np.lib.format.dtype_to_descr(np.dtype(dtype))
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
