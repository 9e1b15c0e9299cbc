# SPDX-License-Identifier: MIT
"""Array functions of a region: plain `np.ndarray` on shared pages.

The base of every array made here is a private owner object that holds the pages: they are freed when
the last view is gone, and nobody can release them under it. numpy is imported on first use.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from vmalloc._core import CoreRegion, stream_rows
from vmalloc.errors import VmallocError
from vmalloc.facts import COPY_PIECE_BYTES, COPY_THREADS_MAX, STREAMED_BYTES
from vmalloc.prefault import at_once

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["ArrayFunctions", "copy_bytes", "copy_of", "make_resident"]


def copy_bytes(to: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
    """Every byte of each element; the shapes and dtypes are the same.

    Assignment would leave out the padding between fields, where the bytes of a former array would show.
    """
    import numpy as np

    if source.dtype.names is not None and source.itemsize:
        raw = np.dtype((np.void, source.itemsize))
        to, source = to.view(raw), source.view(raw)
    np.copyto(to, source)


def copy_of(source: np.ndarray[Any, Any], region: ArrayFunctions) -> np.ndarray[Any, Any]:
    """A copy in `region` as pickle would make it: in Fortran order if the source is, else in C order."""
    flags = source.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    a = region.empty(source.shape, source.dtype, order)
    if source.nbytes >= STREAMED_BYTES and (flags.c_contiguous or flags.f_contiguous):
        _stream(a, source, region)
    else:
        copy_bytes(a, source)
    return a


def _stream(a: np.ndarray[Any, Any], source: np.ndarray[Any, Any], region: ArrayFunctions) -> None:
    """Copy between two arrays of one order without a gap, `a` a new one; a large one by several threads."""
    owner: Any = a.base
    granule = region._info()["granule"]
    at = source.__array_interface__["data"][0]

    def copy(start: int, end: int) -> None:
        make_resident(owner, region, start, end)
        offset = start * granule
        stream_rows(owner, offset, [at + offset], min(end * granule, source.nbytes) - offset)

    nr = max(min(source.nbytes // COPY_PIECE_BYTES, COPY_THREADS_MAX, len(os.sched_getaffinity(0))), 1)
    pages = -(-source.nbytes // granule)
    at_once([(copy, pages * i // nr, pages * (i + 1) // nr) for i in range(nr)])


def make_resident(owner: Any, region: ArrayFunctions, start: int = 0, end: int | None = None) -> None:
    """Pages that are not there come by one request of the system: a fault for each takes twice as long.

    Of the whole range, or from one of its pages to before another.

    Of warm pages nothing is asked: it would cost a tenth of a copy, and stream_rows() maps them.
    """
    if owner.zeroed:
        page, nr_pages, _ = owner._range
        with contextlib.suppress(VmallocError):  # what the system refuses now it may give later
            region._populate(page + start, (nr_pages if end is None else end) - start)


class ArrayFunctions(CoreRegion):
    """numpy's other array constructors, on this region's pages; empty() and zeros() are CoreRegion's.

    All take whole pages: ceil(bytes / page_size), the tail of the last one unused; arrays start on a
    page boundary. All raise OutOfPages, RegionClosed, TypeError for dtypes that hold Python objects.
    """

    __slots__ = ()

    def full(
        self, shape: int | tuple[int, ...], fill_value: Any, dtype: DTypeLike | None = None, order: str = "C"
    ) -> NDArray[Any]:
        """Like empty(), filled with `fill_value`, whose dtype is the default."""
        import numpy as np

        made = np.dtype(np.asarray(fill_value).dtype if dtype is None else dtype)
        has_padding = made.names is not None or made.char in "gG"
        # there the bytes of a former array would show
        a = (self.zeros if has_padding else self.empty)(shape, made, order)
        np.copyto(a, fill_value, casting="unsafe")
        return a

    def array(self, obj: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Copy an array-like into the region once; C order."""
        import numpy as np

        source = np.asarray(obj, dtype=dtype)
        a = self.empty(source.shape, source.dtype)
        copy_bytes(a, source)
        return a

    def empty_like(self, prototype: np.ndarray[Any, Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
        """An uninitialised array of the prototype's shape, dtype and (C or Fortran) order."""
        import numpy as np

        model = np.asarray(prototype)
        order = "F" if model.flags.f_contiguous and not model.flags.c_contiguous else "C"
        return self.empty(model.shape, model.dtype if dtype is None else dtype, order)
