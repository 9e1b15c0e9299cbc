# SPDX-License-Identifier: MIT
"""dtypes in descriptions: numpy's text, or JSON, or a pickle.

A pickle keeps everything, but loading one runs code: only what is pickled anyway may bear it. A name's
description lies in memory that others can write, so it is JSON: what numpy's own file format writes where
that says all, else an object with every part named:

    {"of": dtype, "metadata": {...}}     {"of": dtype, "shape": [...]}
    {"names": [...], "formats": [dtypes], "offsets": [...], "titles": [...], "itemsize": n, "aligned": bool,
     "record": bool}
"""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

__all__ = ["bytes_of_dtype", "dtype_of_bytes", "is_same"]


def bytes_of_dtype(dtype: Any, may_pickle: bool) -> tuple[bytes, bool]:
    """And whether they are a pickle. TypeError for a dtype that they cannot keep."""
    if dtype is None or isinstance(dtype, str):
        return (dtype or "").encode(), False
    if may_pickle:
        return pickle.dumps(dtype), True
    return _json_of(dtype), False


def dtype_of_bytes(text: bytes, is_pickled: bool) -> Any:
    """What bytes_of_dtype() wrote; any exception if it is something else."""
    if is_pickled:
        return pickle.loads(text)
    if text.startswith((b"[", b'"', b"{")):
        return _from_json(json.loads(text))
    return text.decode() or None


def is_same(a: Any, b: Any) -> bool:
    """Equal, and in what numpy's == does not look at: metadata, alignment, class of the elements."""
    if type(a) is not type(b) or a != b or a.type is not b.type or a.isalignedstruct != b.isalignedstruct:
        return False
    if not _is_same_value(dict(a.metadata or {}), dict(b.metadata or {})):
        return False
    if a.subdtype is not None:
        return is_same(a.base, b.base)
    return all(is_same(a[name], b[name]) for name in a.names or ())


def _is_same_value(a: Any, b: Any) -> bool:
    """For metadata: 1 and True are two things."""
    kind: Any = a.__class__
    if kind is not b.__class__:
        return False
    if kind is dict:
        return list(a) == list(b) and all(_is_same_value(a[key], b[key]) for key in a)
    if kind is list:
        return len(a) == len(b) and all(map(_is_same_value, a, b))
    return bool(a == b)


def _json_of(dtype: Any) -> bytes:
    for write in (_short, _long):
        try:
            text = json.dumps(write(dtype), separators=(",", ":"))
            if is_same(_from_json(json.loads(text)), dtype):
                return text.encode()
        except (TypeError, ValueError):  # not JSON, or not a dtype
            pass
    raise TypeError(
        f"a named reference cannot keep dtype {dtype!r}; view the array as a plainer one, "
        "or pass vmalloc.ref()"
    )


def _short(dtype: Any) -> Any:
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that metadata is not kept: _long() keeps it
        return np.lib.format.dtype_to_descr(dtype)


def _long(dtype: Any) -> Any:
    if dtype.metadata:
        return {"of": _bare(dtype), "metadata": dict(dtype.metadata)}
    return _bare(dtype)


def _bare(dtype: Any) -> Any:
    """Without its own metadata; its fields keep theirs."""
    import numpy as np

    if dtype.subdtype is not None:
        return {"of": _long(dtype.base), "shape": dtype.shape}
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": dtype.names,
        "formats": [_long(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": dtype.type is np.record,
    }


# ---- from JSON ----


def _from_json(text: Any) -> Any:
    import numpy as np

    if type(text) in (str, list):
        return np.lib.format.descr_to_dtype(_tuples(text))
    if "names" in text:
        return _of_fields(text)
    if "shape" in text:
        return np.dtype((_from_json(text["of"]), tuple(text["shape"])))
    return np.dtype(_from_json(text["of"]), metadata=text["metadata"])


def _of_fields(text: Any) -> Any:
    import numpy as np

    described: Any = {key: text[key] for key in ("names", "offsets", "titles", "itemsize")}
    described["formats"] = [_from_json(form) for form in text["formats"]]
    dtype = np.dtype(described, align=text["aligned"])
    return np.dtype((np.record, dtype)) if text["record"] else dtype


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
