# SPDX-License-Identifier: MIT
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""PyTorch: tensors in regions.

    import vmalloc, vmalloc.torch

    vmalloc.install()
    loader = DataLoader(dataset, batch_size=64, num_workers=4, collate_fn=vmalloc.torch.collate)

With `install()` a tensor whose storage lies in a region goes by reference through queues, pipes, pools and
torch.multiprocessing, and stays where it is; every other tensor goes torch's way. docs/pytorch.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate, default_convert, get_worker_info
from torch.utils.data._utils import collate as stock

from vmalloc._core import get_settings
from vmalloc.adapters.torch import Packed, packed_bytes, tensor_on
from vmalloc.array import make_resident
from vmalloc.errors import OutOfPages
from vmalloc.facts import STREAMED_BYTES
from vmalloc.full import warn_once
from vmalloc.message import Settings
from vmalloc.reference import copy_in, is_shared
from vmalloc.region import Region, default_region

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["collate", "convert", "empty", "from_numpy", "zeros"]


def empty(*shape: Any, dtype: torch.dtype | None = None, region: Region | None = None) -> torch.Tensor:
    """An uninitialised tensor in a region (the default one), of sizes as torch takes them. OutOfPages."""
    return _made("empty", shape, dtype, region)


def zeros(*shape: Any, dtype: torch.dtype | None = None, region: Region | None = None) -> torch.Tensor:
    """The same, of zeros."""
    return _made("zeros", shape, dtype, region)


def _made(how: str, shape: tuple[Any, ...], dtype: torch.dtype | None, region: Region | None) -> torch.Tensor:
    if len(shape) == 1 and not isinstance(shape[0], int):
        shape = tuple(shape[0])
    dtype = dtype or torch.get_default_dtype()
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    pages = getattr(region or default_region(), how)(nbytes, "u1") if nbytes else None
    return tensor_on(pages, 0, shape, dtype)


def from_numpy(array: Any, region: Region | None = None) -> torch.Tensor:
    """A tensor on an array's memory if that lies in a region (in `region`, if given), else on a copy there.

    OutOfPages, TypeError for dtypes that torch does not know.
    """
    return torch.from_numpy(copy_in(array, region))


# ---- batches ----


def collate(batch: Any) -> Any:
    """As torch's default_collate(), with all leaves of the batch in one block of the installed region.

    For a DataLoader. Where there is no worker, nothing is installed, or the region is full, it is
    default_collate(); then the batch goes torch's way. What torch's own map knows of other types is used as
    it is. TypeError for a single sample: `convert` is for loaders with `batch_size=None`.
    """
    if isinstance(batch, torch.Tensor | Mapping):
        raise TypeError(
            f"collate takes a list of samples, not one {type(batch).__name__}: "
            "with batch_size=None, pass collate_fn=vmalloc.torch.convert"
        )
    packed = _packed(lambda: packed_bytes(batch[0], len(batch)))
    return default_collate(batch) if packed is None else stock.collate(batch, collate_fn_map=_packing(packed))


def convert(sample: Any) -> Any:
    """As torch's default_convert(), with all tensors of the sample in one block of the installed region.

    For a DataLoader with `batch_size=None`, whose dataset makes whole batches. Otherwise as collate().
    """
    made = default_convert(sample)
    packed = _packed(lambda: sum(packed_bytes(x, 1) for x in tree_leaves(made) if _is_to_move(x)))
    if packed is None:
        return made
    return tree_map(lambda x: _moved(packed, x) if _is_to_move(x) else x, made)


def _is_to_move(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and _is_plain(x) and not (x.requires_grad or is_shared(x))


def _packed(nbytes_of: Callable[[], int]) -> Packed | None:
    """A block for so many bytes. None: no worker, nothing installed, nothing to pack, or no room."""
    settings = cast("Settings | None", get_settings())
    if get_worker_info() is None or settings is None:
        return None
    region, nbytes = settings.usable_region(), nbytes_of()
    if region is None or nbytes == 0:
        return None
    pages = _block(region, nbytes, settings)
    if pages is None:
        warn_once("collate", "batches are made by torch until the region has room again")
        return None
    return Packed(pages)


def _block(region: Region, nbytes: int, settings: Settings) -> Any:
    """Where the region is full, unread batches of workers that have ended go first. None: it stays full."""
    try:
        pages: Any = region.empty(nbytes, "u1")
    except OutOfPages:
        pages = settings.room.find(lambda: region.empty(nbytes, "u1"), region, nbytes, True)
    if pages is not None and nbytes >= STREAMED_BYTES:
        make_resident(pages.base, region)
    return pages


def _packing(packed: Packed) -> dict[Any, Any]:
    """torch's map, with what makes tensors put into the block."""
    ours = dict(stock.default_collate_fn_map)
    for kind, make in ours.items():
        if make is stock.collate_tensor_fn:
            ours[kind] = lambda batch, **options: _stack(packed, batch, options)
        elif make in (stock.collate_numpy_scalar_fn, stock.collate_float_fn, stock.collate_int_fn):
            ours[kind] = lambda batch, _make=make, **options: _moved(packed, _make(batch, **options))
    return ours


def _stack(packed: Packed, batch: Any, options: dict[str, Any]) -> Any:
    streamed = packed.stack(batch)
    if streamed is not None:
        return streamed
    first = batch[0]
    out = packed.take((len(batch), *first.shape), first.dtype) if _is_plain(first) else None
    return stock.collate_tensor_fn(batch, **options) if out is None else torch.stack(batch, 0, out=out)


def _is_plain(x: torch.Tensor) -> bool:
    is_dense = x.device.type == "cpu" and x.layout is torch.strided and not (x.is_nested or x.is_quantized)
    return type(x) is torch.Tensor and is_dense


def _moved(packed: Packed, made: torch.Tensor) -> torch.Tensor:
    out = packed.take(made.shape, made.dtype)
    return made if out is None else out.copy_(made)
