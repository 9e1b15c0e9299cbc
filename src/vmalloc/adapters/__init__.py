# SPDX-License-Identifier: MIT
"""Adapters: which types go by reference, and how.

    vmalloc.adapters.register(Picture, adapter)         # a class, or
    vmalloc.adapters.register("torch.Tensor", adapter)  # its name: nothing is imported

From then on `install()`, `ref()`, `region[name] = value`, `copy_in()`, `is_shared()` and `region_of()` know
the type. docs/adapters.md says what an adapter must do.

Each file here is the adapter of one library, which it imports only when it is used; the lines at the end
of this one register them.
"""

from __future__ import annotations

from vmalloc._core import Block, Holding
from vmalloc.adapters.array import ArrayAdapter
from vmalloc.adapters.arrow import BufferAdapter as _BufferAdapter
from vmalloc.adapters.arrow import TableAdapter as _TableAdapter
from vmalloc.adapters.block import BlockAdapter
from vmalloc.adapters.pandas import ArrowArrayAdapter as _ArrowArrayAdapter
from vmalloc.adapters.polars import FrameAdapter as _FrameAdapter
from vmalloc.adapters.polars import SeriesAdapter as _SeriesAdapter
from vmalloc.adapters.registry import Adapter, holding_of, register, unregister
from vmalloc.adapters.registry import begin as _begin
from vmalloc.adapters.torch import StorageAdapter as _StorageAdapter
from vmalloc.adapters.torch import TensorAdapter as _TensorAdapter
from vmalloc.description import Description

__all__ = ["Adapter", "ArrayAdapter", "Description", "holding_of", "register", "unregister"]

_begin(ArrayAdapter(), "numpy.ndarray", BlockAdapter(), Block, Holding)

_buffers = _BufferAdapter()
register("pyarrow.lib.Buffer", _buffers)
register("pyarrow.lib.ResizableBuffer", _buffers)
register("pyarrow.lib.Table", _TableAdapter())
_arrow_arrays = _ArrowArrayAdapter()
register("pandas.core.arrays.string_arrow.ArrowStringArray", _arrow_arrays)
register("pandas.core.arrays.arrow.array.ArrowExtensionArray", _arrow_arrays)
register("polars.dataframe.frame.DataFrame", _FrameAdapter())
register("polars.series.series.Series", _SeriesAdapter())
register("torch.storage.UntypedStorage", _StorageAdapter())
_tensors = _TensorAdapter()
register("torch.Tensor", _tensors)
register("torch.nn.parameter.Parameter", _tensors)
