# SPDX-License-Identifier: MIT
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""PyTorch: storages by their address, and tensors as torch takes them apart.

torch's own reducers make of a tensor its storage and a little beside: offset, sizes, strides, whether it is a
Parameter. A storage that lies in a region goes by reference, every other one torch's way. So views of one
storage share it where they are received, and sparse tensors and whatever else consists of tensors are
torch's affair.

For `ref()`, names and `copy_in()`, which need one holding, a dense tensor has an adapter of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmalloc._core import Holding, holding_at, stream_rows
from vmalloc.adapters.registry import Adapter
from vmalloc.description import Description, extent
from vmalloc.errors import StaleReference
from vmalloc.facts import STREAMED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmalloc.region import Region

__all__ = ["Packed", "StorageAdapter", "TensorAdapter", "tensor_on"]

_ALIGN_BYTES = 64  # as torch's own allocator aligns
_GRAD, _PARAMETER = 1, 2
_COPY = "_vmalloc_copy"  # attribute of a storage: the copied bytes of all its pages


def tensor_on(pages: Any, offset: int, shape: Sequence[int], dtype: Any) -> Any:
    """A contiguous tensor on part of a buffer, which it keeps alive. Its storage is that part and no more."""
    import torch

    nr = _count(shape)
    if not nr:
        return torch.empty(0, dtype=dtype).reshape(shape)
    # resize_() to as many elements leaves the memory alone, and makes no view of another tensor
    return torch.frombuffer(pages, dtype=dtype, count=nr, offset=offset).resize_(shape)


def _count(shape: Sequence[int]) -> int:
    import math

    return math.prod(shape)


def _storage_on(pages: Any, offset: int, nbytes: int) -> Any:
    """The buffer must be writable: torch knows no other memory."""
    import torch

    return torch.frombuffer(pages, dtype=torch.uint8, count=nbytes, offset=offset).untyped_storage()


def load_storage_beside(first: Any, offset: int, nbytes: int) -> Any:
    """Another storage on the pages of `first`. StaleReference."""
    import torch

    pages: Any = None
    if isinstance(first, torch.UntypedStorage):
        pages = getattr(first, _COPY, None)
        if pages is None:
            pages = holding_at(first.data_ptr(), first.nbytes(), first)
    if pages is None or not 0 < nbytes <= pages.nbytes or not 0 <= offset <= pages.nbytes - nbytes:
        raise StaleReference(f"no storage of {nbytes} bytes at {offset} lies beside {type(first).__name__}")
    return _storage_on(pages, offset, nbytes)


class StorageAdapter(Adapter):
    """A torch.UntypedStorage. torch has no read-only memory: `install(readonly=True)` does not bind it."""

    kind = "torch.UntypedStorage"
    is_copied_in = False  # torch shares the sender's memory with the receiver; a copy would not

    def nbytes(self, x: Any) -> int | None:
        return int(x.nbytes())

    def holding(self, x: Any) -> Holding | None:
        return holding_at(x.data_ptr(), x.nbytes(), x) if x.device.type == "cpu" else None

    def describe(self, x: Any, holding: Holding) -> Description:
        return Description(shape=(x.nbytes(),), offset=x.data_ptr() - holding.address)

    def rebuild(self, owner: Any, description: Description) -> Any:
        (nbytes,) = description.shape
        if not 0 <= description.offset <= owner.nbytes - nbytes or nbytes <= 0:
            raise ValueError(f"{nbytes} bytes at {description.offset}")
        storage = _storage_on(owner, description.offset, nbytes)
        if not isinstance(owner, Holding):  # a copy, which is not found by its address
            setattr(storage, _COPY, owner)
        return storage

    def beside(self, x: Any, first: Any, holding: Holding) -> tuple[Any, ...]:
        return load_storage_beside, (first, x.data_ptr() - holding.address, x.nbytes())

    def as_before(self, x: Any, before: Callable[[Any], Any] | None) -> Any:
        """torch's way moves a storage, in the sender too. What lies in a region stays; its copy goes."""
        return super().as_before(x if self.holding(x) is None else x.clone(), before)


_STORAGES = StorageAdapter()


class TensorAdapter(Adapter):
    """A dense torch.Tensor or Parameter in host memory."""

    kind = "torch.Tensor"
    by_parts = True

    def holding(self, x: Any) -> Holding | None:
        import torch

        if x.layout is not torch.strided or x.device.type != "cpu" or x.is_nested:
            return None
        high = extent(x.element_size(), x.shape, _strides(x))[1]
        return holding_at(x.data_ptr(), high, x)

    def describe(self, x: Any, holding: Holding) -> Description:
        import torch

        if type(x) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"a {type(x).__qualname__} is more than a tensor, and the rest would be lost")
        if x.requires_grad and not x.is_leaf:
            raise TypeError("a tensor with a history of gradients: pass tensor.detach()")
        if x.is_conj() or x.is_neg() or x.is_quantized:
            raise TypeError(
                "a conjugated, negated or quantized tensor: pass resolve_conj(), resolve_neg() of it"
            )
        flags = _GRAD * x.requires_grad | _PARAMETER * isinstance(x, torch.nn.Parameter)
        name = str(x.dtype).removeprefix("torch.")
        return Description(
            shape=tuple(x.shape),
            strides=_strides(x),
            offset=x.data_ptr() - holding.address,
            extra=bytes([flags]) + name.encode(),
        )

    def rebuild(self, owner: Any, description: Description) -> Any:
        import torch

        flags, dtype = description.extra[0], getattr(torch, description.extra[1:].decode(), None)
        if not isinstance(dtype, torch.dtype) or description.strides is None:
            raise TypeError(f"no dtype of torch's: {description.extra!r:.50}")
        size = dtype.itemsize
        low, high = extent(size, description.shape, description.strides)
        is_whole = not any(s % size for s in description.strides)
        if low or not high or not is_whole or not 0 <= description.offset <= owner.nbytes - high:
            raise ValueError(f"shape {description.shape}, strides {description.strides}")
        steps = tuple(s // size for s in description.strides)
        storage = _storage_on(owner, description.offset, high)
        tensor = torch.empty(0, dtype=dtype).set_(storage, 0, description.shape, steps)
        if flags & _PARAMETER:
            return torch.nn.Parameter(tensor, requires_grad=bool(flags & _GRAD))
        return tensor.requires_grad_(bool(flags & _GRAD))

    def copy_in(self, x: Any, region: Region) -> Any:
        """In C order; of a tensor on another device too."""
        import torch

        if x.layout is not torch.strided or x.is_nested or x.is_quantized:
            raise TypeError("only dense tensors can be copied into a region")
        if not x.numel():
            raise TypeError("a tensor without elements has nothing to share")
        tensor = _copied(x.detach(), region)
        if isinstance(x, torch.nn.Parameter):
            return torch.nn.Parameter(tensor, requires_grad=x.requires_grad)
        return tensor.requires_grad_(x.requires_grad and x.is_leaf)


def _copied(x: Any, region: Region) -> Any:
    """What is in C order goes as bytes: torch's copy starts threads, which a forked child then waits for."""
    import torch

    if x.is_cpu and x.is_contiguous() and not (x.is_conj() or x.is_neg()):
        return tensor_on(region.array(x.reshape(-1).view(torch.uint8).numpy()), 0, x.shape, x.dtype)
    tensor = tensor_on(region.empty(x.numel() * x.element_size(), "u1"), 0, x.shape, x.dtype)
    return tensor.copy_(x)


def _strides(x: Any) -> tuple[int, ...]:
    """In bytes."""
    return tuple(s * x.element_size() for s in x.stride())


# ---- batches ----


class Packed:
    """One block for all leaves of a batch, taken one after the other."""

    def __init__(self, pages: Any) -> None:
        self._pages, self._used, self.nbytes = pages, 0, len(pages)

    def take(self, shape: Sequence[int], dtype: Any) -> Any:
        """A tensor to be filled, or None: there is no room for it in the block."""
        nbytes = _aligned(dtype.itemsize * _count(shape))
        if not nbytes or nbytes > self.nbytes - self._used:
            return None
        tensor = tensor_on(self._pages, self._used, shape, dtype)
        self._used += nbytes
        return tensor

    def stack(self, batch: Sequence[Any]) -> Any:
        """Its tensors one behind the other, past the caches; None: no room, or torch has to do it."""
        first = batch[0]
        if self.nbytes < STREAMED_BYTES or not _are_plain(batch):
            return None
        at = self._used
        out = self.take((len(batch), *first.shape), first.dtype)
        if out is not None:
            stream_rows(self._pages, at, [x.data_ptr() for x in batch], first.nbytes)
        return out


def _are_plain(batch: Sequence[Any]) -> bool:
    """Whether all are of one shape and dtype, bytes in C order in host memory, without gradients."""
    import torch

    first, kind, strided = batch[0], torch.Tensor, torch.strided
    if type(first) is not kind or first.is_nested or first.is_quantized or first.dtype.is_complex:
        return False  # a complex one may be conjugated
    dtype, shape = first.dtype, first.shape
    return all(
        type(x) is kind
        and x.is_cpu
        and x.layout is strided
        and x.dtype is dtype
        and x.shape == shape
        and x.is_contiguous()
        and not (x.requires_grad or x.is_neg())
        for x in batch
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN_BYTES) * _ALIGN_BYTES


def packed_bytes(sample: Any, nr: int) -> int:
    """What `nr` samples like this one take as a batch; 0 for types that only torch's map knows."""
    import collections.abc as abc

    if hasattr(sample, "dtype") and hasattr(sample, "nbytes"):  # of torch or of numpy
        return _aligned(sample.nbytes * nr)
    if isinstance(sample, int | float):
        return _aligned(8 * nr)
    if isinstance(sample, str | bytes):
        return 0
    if isinstance(sample, abc.Mapping):
        return sum(packed_bytes(sample[key], nr) for key in sample)
    if isinstance(sample, abc.Sequence):
        return sum(packed_bytes(item, nr) for item in sample)
    return 0
