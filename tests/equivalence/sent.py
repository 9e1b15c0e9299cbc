# SPDX-License-Identifier: MIT
"""Arrays of every dtype, order, view and class, and every fact of one that a receiver can tell."""

from __future__ import annotations

import importlib
import pickle
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import as_strided

from vmalloc.dtypes import is_same

ENUM = {"enum": {"RED": 1, "GREEN": 2}}  # as h5py marks its enums


def extension_dtypes() -> dict[str, np.dtype[Any]]:
    """Those of ml_dtypes and h5py, as far as they are installed."""
    found = {}
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
        names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")
        found |= {f"of ml_dtypes, {name}": np.dtype(getattr(ml_dtypes, name)) for name in names}
    except ImportError:
        pass
    try:
        h5py = importlib.import_module("h5py")
        found["of h5py, an enum"] = h5py.enum_dtype(ENUM["enum"], basetype="i2")
        found["of h5py, text"] = h5py.string_dtype("utf-8", 10)
    except ImportError:
        pass
    return found


#: Without Python objects, by what is special in them.
DTYPES: dict[str, np.dtype[Any]] = {
    "bytes": np.dtype("u1"),
    "numbers": np.dtype("f8"),
    "big-endian": np.dtype(">i4"),
    "big-endian numbers": np.dtype(">f8"),
    "big-endian with padding within": np.dtype(">g"),
    "big-endian complex": np.dtype(">c16"),
    "big-endian half": np.dtype(">f2"),
    "big-endian metadata": np.dtype(">i4", metadata=ENUM),
    "big-endian fields": np.dtype(">i4,>f8"),
    "big-endian dates": np.dtype(">M8[25us]"),
    "with padding within": np.dtype("longdouble"),
    "complex": np.dtype("c16"),
    "half": np.dtype("f2"),
    "truth values": np.dtype("?"),
    "dates": np.dtype("M8[25us]"),
    "durations": np.dtype(">m8[D]"),
    "text": np.dtype(">U3"),
    "byte strings": np.dtype("S5"),
    "void": np.dtype("V7"),
    "no bytes": np.dtype("V0"),
    "metadata": np.dtype("i4", metadata=ENUM),
    "metadata of a date": np.dtype("M8[s]", metadata={"calendar": "julian"}),
    "fields": np.dtype("i4,f8"),
    "padding": np.dtype({"names": ["a", "b"], "formats": ["u1", "f4"], "offsets": [3, 9], "itemsize": 17}),
    "overlaps": np.dtype({"names": ["all", "low"], "formats": ["u4", "u2"], "offsets": [0, 0]}),
    "titles": np.dtype([(("a title", "x"), "f4"), (("another", "y"), "u1")]),
    "aligned": np.dtype([("a", "u1"), ("b", "f8"), ("c", "u2")], align=True),
    "aligned with metadata": np.dtype([("a", "u1"), ("b", "f8")], align=True, metadata={"unit": "m"}),
    "metadata of a field": np.dtype([("colour", np.dtype("i4", metadata=ENUM)), ("at", "f4", (2, 3))]),
    "nested": np.dtype([("in", np.dtype([("a", "i1"), ("b", "f8")], align=True)), ("S", "S3")]),
    "records": np.dtype((np.record, [("x", "f4"), ("y", "u1")])),
    "numbers with fields": np.dtype(("i4", [("low", "i2"), ("high", "i2")])),
    "big-endian with fields": np.dtype((">i4", [("low", ">i2"), ("high", ">i2")])),
} | extension_dtypes()

#: Whose elements are pointers.
OBJECTS: dict[str, np.dtype[Any]] = {
    "objects": np.dtype("O"),
    "a field of objects": np.dtype([("n", "i4"), ("o", "O")]),
}
if hasattr(np.dtypes, "StringDType"):
    OBJECTS["long text"] = np.dtypes.StringDType()
    OBJECTS["long text without a value"] = np.dtypes.StringDType(na_object=None)


class Named(np.ndarray):
    """A user's class with all that pickling may need."""

    def __array_finalize__(self, from_: Any) -> None:
        self.name = getattr(from_, "name", "nobody")

    def __reduce__(self) -> Any:
        rebuild, arguments, state = super().__reduce__()
        return rebuild, arguments, (*state, self.name)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[:-1])
        self.name = state[-1]


def named(a: Any) -> Any:
    a = a.view(Named)
    a.name = "somebody"
    return a


#: Classes of arrays, from a plain one of numbers.
CLASSES: dict[str, Callable[[Any], Any]] = {
    "masked": lambda a: np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) % 3 == 0, fill_value=7),
    "matrix": lambda a: a.reshape(len(a), -1).view(np.matrix),
    "recarray": lambda a: np.rec.fromarrays([a.ravel(), a.ravel()], names="x,y"),
    "user's": named,
}

Point = namedtuple("Point", "x y")

#: What a message may be, of two arrays.
CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "alone": lambda a, b: a,
    "list": lambda a, b: [a, b],
    "twice": lambda a, b: [a, a, (a,)],
    "tuple": lambda a, b: (a, (b, (a,))),
    "dict": lambda a, b: {"a": a, 1: {2: b}},
    "named tuple": lambda a, b: Point(a, b),
    "ordered": lambda a, b: OrderedDict(x=a, y=b),
    "deque": lambda a, b: deque([a, b], maxlen=5),
    "attributes": lambda a, b: SimpleNamespace(a=a, b=SimpleNamespace(c=b)),
    "an error": lambda a, b: ValueError(a, b),
    "an array of objects": lambda a, b: objects_of(a, b),
    "a function's arguments": lambda a, b: (sum, (a,), {"start": b}),
}


def objects_of(*values: Any) -> Any:
    a = np.empty(len(values), object)
    for i, value in enumerate(values):
        a[i] = value
    return a


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def filled(make: Any, shape: Any, dtype: Any, order: str, seed: int) -> Any:
    """With every byte of every element set, also those between fields; objects have a value each."""
    a = make.empty(shape, dtype, order=order)
    if a.dtype.hasobject:
        for i in range(a.size):
            if a.dtype.names:
                a.flat[i] = (i, f"{i}" * i)
            else:
                a.flat[i] = f"{i}" * i
    elif a.nbytes:
        raw = np.ndarray(a.nbytes, "u1", a.T if order == "F" else a) if _is_buffer(a) else _raw(a)
        raw[:] = np.arange(seed, seed + a.nbytes) % (2 if dtype == "?" else 120)
    return a


def _is_buffer(a: Any) -> bool:
    try:
        memoryview(a)
    except (ValueError, BufferError):
        return False
    return a.dtype.kind not in "UV" or not a.dtype.names


def _raw(a: Any) -> Any:
    return a.reshape(-1, order="A").view(np.dtype((np.void, a.itemsize))).view("u1")


@st.composite
def arrays(draw: Any, make: Any = np, dtypes: Any = None) -> Any:
    """Any array of `make` (numpy, or a region) and any view that numpy's indexing makes of it."""
    dtype = draw(st.sampled_from(list((dtypes or DTYPES).values())))
    a = filled(make, draw(shapes), dtype, draw(st.sampled_from("CF")), draw(st.integers(1, 100)))
    match draw(st.sampled_from(["whole", "whole", "index", "transpose", "field", "broadcast", "window"])):
        case "index" if a.ndim:
            view = a[draw(hnp.basic_indices(a.shape, allow_newaxis=True, allow_ellipsis=True))]
            a = view if isinstance(view, np.ndarray) else a
        case "transpose":
            a = a.transpose(draw(st.permutations(range(a.ndim))))
        case "field" if a.dtype.names:
            a = a[draw(st.sampled_from(a.dtype.names))]
        case "broadcast":
            a = np.broadcast_to(a, (3, *a.shape))
        case "window" if a.ndim == 1 and len(a) > 2 and a.dtype.isbuiltin == 1 and a.dtype.kind in "iufc":
            a = as_strided(a, (len(a) - 1, 2), a.strides * 2)
    if draw(st.booleans()):
        a = a.view()
        a.flags.writeable = False
    return a


# ---- what a receiver can tell ----


def facts(x: Any, *, of_layout: bool = True, of_order: bool = True) -> Any:
    """Everything but where it lies; without the layout, what a view keeps of itself and a copy does not.

    Without the order of bytes, what one that lies in a region keeps, and stock turns.
    """
    options = {"of_layout": of_layout, "of_order": of_order}
    if isinstance(x, np.ma.MaskedArray):
        return np.ma.MaskedArray, *(facts(np.asarray(part)) for part in (x.data, x.mask)), x.fill_value
    if isinstance(x, np.ndarray):
        if not of_order and type(x) is np.ndarray and not x.dtype.isnative:
            x = as_stock(x)
        flags = x.flags
        steps = [step for n, step in zip(x.shape, x.strides, strict=True) if n > 1]
        layout = flags.writeable, (steps, flags.c_contiguous, flags.f_contiguous) if x.nbytes else None
        return (
            type(x),
            Dtype(x.dtype),
            x.shape,
            _values(x, options),
            getattr(x, "name", None),
            of_layout and layout,
        )
    if isinstance(x, dict):
        return type(x), [(key, facts(value, **options)) for key, value in x.items()]
    if isinstance(x, list | tuple | deque):
        return type(x), [facts(value, **options) for value in x], getattr(x, "maxlen", None)
    if isinstance(x, BaseException):
        return type(x), facts(x.args, **options)
    if isinstance(x, SimpleNamespace):
        return type(x), facts(vars(x), **options)
    return x


def _values(a: Any, options: dict[str, bool]) -> Any:
    """Without the padding between fields: stock leaves it out, too, where elements do not lie in a row."""
    if a.dtype.hasobject:
        return facts(a.tolist(), **options)
    if a.dtype.names:
        return [_values(np.asarray(a)[name], {}) for name in a.dtype.names]
    return bytes_of(a)


def bytes_of(a: Any) -> bytes:
    """Of each element, padding included, in C order."""
    plain = np.asarray(a)
    return plain.view(np.dtype((np.void, plain.itemsize))).tobytes() if plain.itemsize else b""


class Dtype:
    """Equal to another one that is the same in all that numpy knows of it."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dtype) and is_same(self.dtype, other.dtype)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.dtype!r} {self.dtype.metadata}"


def as_stock(x: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Any:
    """What arrives without us."""
    return pickle.loads(pickle.dumps(x, protocol))
