# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Stand-ins: what a message loads as, where it cannot be loaded.

Pool's worker and result threads and the executor give an error while a message is loaded a meaning of its
own: an OSError is a closed pipe to them, any other ends the process or the thread, and the task is never
answered. So in a message nothing is raised. The value is a stand-in, and **each use of it raises** what was
wrong: the task fails with our error, and the pool lives. Pickled, a stand-in is the reference that it
stands for, so it may still be loaded where that is possible.

Where a program calls `pickle.loads()` itself, errors are raised as they are.

Some values are rebuilt around an array (a DataFrame): that uses the stand-in, and fails, too.
`load_tolerantly()` loads such a message again, with a stand-in for whatever cannot be rebuilt because it
holds one.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from vmalloc.errors import NotLoaded, StaleReference
from vmalloc.window import copy_of, may_copy

__all__ = ["StandIn", "instead_of", "load_tolerantly", "nr_made"]

#: Packages that load messages by themselves; a look at the innermost frame tells who loads.
_LOADERS = frozenset({"multiprocessing", "concurrent", "joblib", "loky", "torch", "billiard", "multiprocess"})
_OURS = frozenset({"vmalloc.message", __name__})
_DEPTH_MAX = 6  # of containers that are looked into

_nr_made = 0


def nr_made() -> int:
    """How many stand-ins this process made, ever."""
    return _nr_made


def in_message(error: BaseException) -> BaseException:
    """`error` as it may be raised within a task: Pool and Queue read OSError and EOFError as the end."""
    if not isinstance(error, OSError | EOFError):
        return error
    told = NotLoaded(str(error))
    told.__cause__ = error
    return told


class StandIn:
    """In the place of a value that could not be loaded: each use raises why. Only repr() tells it calmly."""

    __slots__ = ("_vmalloc_error", "_vmalloc_packed")
    _vmalloc_error: BaseException
    _vmalloc_packed: bytes | None

    def __init__(self, packed: bytes | None, error: BaseException) -> None:
        global _nr_made
        _nr_made += 1
        object.__setattr__(self, "_vmalloc_packed", packed)
        object.__setattr__(self, "_vmalloc_error", in_message(error))

    def __repr__(self) -> str:
        error = error_of(self)
        return f"<vmalloc: not loaded: {type(error).__name__}: {error}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        packed = object.__getattribute__(self, "_vmalloc_packed")
        if packed is None:
            _raise(self)
        from vmalloc._core import load_reference

        return load_reference, (packed,)

    def __getattribute__(self, name: str) -> Any:
        if name not in ("__reduce_ex__", "__repr__"):
            _raise(self)
        return object.__getattribute__(self, name)


def error_of(stand_in: StandIn) -> BaseException:
    """What its use raises."""
    error: BaseException = object.__getattribute__(stand_in, "_vmalloc_error")
    return error


def _raise(self: StandIn, *_: object, **__: object) -> NoReturn:
    error = error_of(self)
    raise error.with_traceback(None)


# Operators look for their methods in the class and not in the object. isinstance() asks __getattribute__ for
# __class__, and so raises as well: a task must not take the other branch in silence.
_OPERATORS = """
    abs add and bool bytes call ceil complex contains delattr delitem divmod enter eq exit float floor
    floordiv format ge getitem gt hash iadd iand ifloordiv ilshift imatmul imod imul index int invert ior
    ipow irshift isub iter itruediv ixor le len length_hint lshift lt matmul mod mul ne neg next or pos pow
    radd rand rdivmod reversed rfloordiv rlshift rmatmul rmod rmul ror round rpow rrshift rshift rsub
    rtruediv rxor setattr setitem str sub truediv trunc xor aiter anext await aenter aexit fspath buffer
    array array_ufunc array_function copy deepcopy dlpack
"""
for _name in _OPERATORS.split():
    setattr(StandIn, f"__{_name}__", _raise)


# ---- when a load failed ----


def instead_of(packed: bytes, error: Exception) -> Any:
    """For load_reference(), what failed with `error`: a copy, else a stand-in, or the error, raised."""
    if may_copy(error):
        try:
            return copy_of(packed)
        except StaleReference as e:
            error = e
        except Exception as e:
            error.add_note(f"a copy could not be had either: {type(e).__name__}: {e}")
    if not _is_in_message(sys._getframe(1)):
        raise error
    return StandIn(packed, error)


def _is_in_message(frame: Any) -> bool:
    """Whether this load is a library's, as part of a message. `frame`: the innermost that is not ours."""
    while frame is not None and frame.f_globals.get("__name__") == "pickle":
        frame = frame.f_back  # its version in Python
    if frame is None:
        return False
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and (name in _OURS or name.partition(".")[0] in _LOADERS)


def load_tolerantly(data: Any) -> Any:
    """What the message holds, with a stand-in for all that cannot be rebuilt because of one within it."""
    return _Tolerant(io.BytesIO(data)).load()


def _found_in(x: Any, depth: int = 0) -> StandIn | None:
    """A stand-in that `x` is or holds."""
    if type(x) is StandIn:
        return x
    if depth >= _DEPTH_MAX:
        return None
    parts: list[Any]
    if type(x) in (tuple, list, set, frozenset):
        parts = list(x)
    elif type(x) is dict:
        parts = [*x.keys(), *x.values()]
    else:
        return None
    return next((found for part in parts if (found := _found_in(part, depth + 1)) is not None), None)


def _Unpickler() -> Any:
    return pickle._Unpickler


class _Tolerant(_Unpickler()):  # type: ignore[misc]
    """The unpickler in Python: what fails because of a stand-in becomes one."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Unpickler().dispatch)

    def _try(self, step: Callable[[Any], None], nr_above: int) -> None:
        """`step` leaves its result on top of the stack, in the place of `nr_above` + 1 entries."""
        whole = list(self.stack)
        marks = list(self.metastack)
        try:
            step(self)
        except Exception:
            if nr_above < 0:  # all since the last mark, and what they were to be put into
                whole, above = list(marks.pop()), whole
                nr_above = 0
            else:
                above = whole[len(whole) - nr_above :] if nr_above else []
            keep = len(whole) - nr_above - 1
            found = _found_in([*above, whole[keep]])
            if found is None:
                raise
            self.metastack[:] = marks
            self.stack = whole[:keep]
            self.append = self.stack.append
            self.append(StandIn(None, error_of(found)))


def _tolerate(opcode: bytes, nr_above: int) -> None:
    step = _Tolerant.dispatch[opcode[0]]
    _Tolerant.dispatch[opcode[0]] = lambda self: self._try(step, nr_above)


for _opcode, _nr_above in (
    (pickle.REDUCE, 1),
    (pickle.NEWOBJ, 1),
    (pickle.NEWOBJ_EX, 2),
    (pickle.BUILD, 1),
    (pickle.APPEND, 1),
    (pickle.SETITEM, 2),
    (pickle.APPENDS, -1),
    (pickle.SETITEMS, -1),
    (pickle.ADDITEMS, -1),
):
    _tolerate(_opcode, _nr_above)
