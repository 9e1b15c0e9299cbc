# SPDX-License-Identifier: MIT
"""Pickled: what arrives of an array that pickle copies, so that one that is copied into a region is the same.

Up to protocol 4 numpy turns the bytes of numbers, dates and text to the machine's order, and all is writable.
From protocol 5 on an array whose elements lie in a row goes as a buffer: it keeps its order of bytes, that of
its axes, and that it may not be written. What cannot be a buffer (dates, part of an array) goes as before.
Which it is, numpy itself is asked, by an array without elements: its versions differ.
"""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from vmalloc.array import copy_of

if TYPE_CHECKING:
    import numpy as np

    from vmalloc.array import ArrayFunctions

    Array = np.ndarray[Any, Any]

__all__ = ["Form", "arrives_readonly", "copy_as", "form_of", "is_turned"]

_BUFFERS_FROM = 5  # protocol


class Form(NamedTuple):
    """Of what arrives, where it is not what copy_of() makes."""

    dtype: Any
    axes: (
        tuple[int, ...] | None
    )  #: as they lie in memory; None: in C order, or in Fortran order if it has that
    readonly: bool


def form_of(a: Array, protocol: int) -> Form | None:
    """What pickle would make of `a`; None: what copy_of() makes, as it mostly is. No protocol: negative."""
    if protocol < _BUFFERS_FROM and (protocol < 0 or a.dtype.isnative):
        return None
    if protocol >= _BUFFERS_FROM:
        axes = _axes_in_a_row(a)
        if axes is not None and _is_a_buffer(a.dtype):
            if a.flags.writeable and a.flags.forc:
                return None
            return Form(a.dtype, None if a.flags.forc else axes, not a.flags.writeable)
    turned = _turned(a.dtype)
    return None if turned is a.dtype else Form(turned, None, False)


def is_turned(a: Array, protocol: int) -> bool:
    """Whether it would arrive with another order of bytes."""
    form = None if a.dtype.isnative else form_of(a, protocol)
    return form is not None and form.dtype is not a.dtype


def arrives_readonly(a: Array, protocol: int) -> bool:
    """Whether pickle keeps that it is."""
    if a.flags.writeable or protocol < _BUFFERS_FROM:
        return False
    form = form_of(a, protocol)
    return form is not None and form.readonly


def copy_as(form: Form, a: Array, region: ArrayFunctions) -> Array:
    """A copy in `region` of that form."""
    source = a if form.axes is None else a.transpose(form.axes)
    copy = copy_of(source, region) if form.dtype is a.dtype else _turned_copy(source, form.dtype, region)
    if form.axes is not None:
        copy = copy.transpose(sorted(range(a.ndim), key=form.axes.__getitem__))
    copy.flags.writeable = not form.readonly
    return copy


def _turned_copy(source: Array, dtype: Any, region: ArrayFunctions) -> Array:
    import numpy as np

    flags = source.flags
    copy = region.empty(source.shape, dtype, "F" if flags.f_contiguous and not flags.c_contiguous else "C")
    np.copyto(copy, source)
    return copy


def _turned(dtype: Any) -> Any:
    """What pickle makes of a dtype in the other order of bytes. Fields keep theirs."""
    import numpy as np

    if dtype.isnative or (dtype.names is not None and dtype.type is np.void):
        return dtype
    return pickle.loads(pickle.dumps(np.empty(0, dtype), _BUFFERS_FROM - 1)).dtype


def _axes_in_a_row(a: Array) -> tuple[int, ...] | None:
    """The order of axes in which its elements lie one behind the other; None: none that numpy looks for."""
    if a.flags.forc:
        return tuple(range(a.ndim))
    if not _keeps_axes():
        return None
    axes = tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))
    return axes if a.transpose(axes).flags.c_contiguous else None


def _is_a_buffer(dtype: Any) -> bool:
    """Whether arrays of it are buffers to pickle."""
    import numpy as np

    return _goes_as_a_buffer(np.empty(0, dtype))


@functools.cache
def _keeps_axes() -> bool:
    """Whether this numpy lets arrays be buffers whose axes lie in another order than C's or Fortran's."""
    import numpy as np

    return _goes_as_a_buffer(np.empty((2, 2, 2)).transpose(1, 0, 2))


def _goes_as_a_buffer(a: Array) -> bool:
    import numpy as np

    return a.__reduce_ex__(_BUFFERS_FROM)[0] is not np.empty(0).__reduce__()[0]
