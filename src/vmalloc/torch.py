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

from typing import Any, cast

import torch
from torch.utils.data import default_collate, get_worker_info
from torch.utils.data._utils import collate as stock

from vmalloc._core import get_settings
from vmalloc.adapters.torch import Packed, packed_bytes, tensor_on
from vmalloc.array import make_resident
from vmalloc.errors import OutOfPages
from vmalloc.facts import STREAMED_BYTES
from vmalloc.full import warn_once
from vmalloc.message import Settings
from vmalloc.reference import copy_in
from vmalloc.region import Region, default_region

__all__ = ["collate", "empty", "from_numpy", "zeros"]


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
    it is.
    """
    settings = cast("Settings | None", get_settings())
    if get_worker_info() is None or settings is None:
        return default_collate(batch)
    region = settings.usable_region()
    nbytes = packed_bytes(batch[0], len(batch))
    if region is None or nbytes == 0:
        return default_collate(batch)
    pages = _block(region, nbytes, settings)
    if pages is None:
        warn_once("collate", "batches are made by torch until the region has room again")
        return default_collate(batch)
    return stock.collate(batch, collate_fn_map=_packing(Packed(pages)))


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
    is_plain = type(first) is torch.Tensor and first.device.type == "cpu" and first.layout is torch.strided
    out = packed.take((len(batch), *first.shape), first.dtype) if is_plain and not first.is_nested else None
    return stock.collate_tensor_fn(batch, **options) if out is None else torch.stack(batch, 0, out=out)


def _moved(packed: Packed, made: torch.Tensor) -> torch.Tensor:
    out = packed.take(made.shape, made.dtype)
    return made if out is None else out.copy_(made)
