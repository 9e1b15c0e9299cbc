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
holds one. An exception that cannot be is our error itself: whoever gets it raises it, and first asks whether
there is one.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, NoReturn, cast

from vmalloc._core import load_reference
from vmalloc.errors import NotLoaded, StaleReference
from vmalloc.window import copy_of, may_copy

__all__ = ["StandIn", "has_stand_in", "instead_of", "load_tolerantly"]

#: Packages that load messages by themselves; a look at the innermost frame tells who loads.
_LOADERS = frozenset({"multiprocessing", "concurrent", "joblib", "loky", "torch", "billiard", "multiprocess"})
_OURS = frozenset({"vmalloc.message", __name__})
_REBUILDERS = frozenset({"_rebuild_exc", "rebuild_exc"})  # what pools and executors send exceptions by
_DEPTH_MAX = 6  # of containers that are looked into

Loaded = list[tuple[bytes, Any]]  # references of a message, and what they loaded as


def has_stand_in(loaded: Loaded) -> bool:
    """Whether one of them could not be loaded."""
    return any(type(value) is StandIn for _, value in loaded)


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
        object.__setattr__(self, "_vmalloc_packed", packed)
        object.__setattr__(self, "_vmalloc_error", in_message(error))

    def __repr__(self) -> str:
        error = error_of(self)
        return f"<vmalloc: not loaded: {type(error).__name__}: {error}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        packed = object.__getattribute__(self, "_vmalloc_packed")
        if packed is None:
            _raise(self)
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


def load_tolerantly(data: Any, loaded: Loaded) -> Any:
    """What the message holds, with a stand-in for all that cannot be rebuilt because of one within it.

    `loaded`: by the load that failed. It claimed the leases, so that is what the references are now.
    """
    return _Tolerant(data, loaded).load()


def _is_of_exceptions(made_by: Any) -> bool:
    """Whether it makes exceptions: their class, what pools rebuild them with, or one that gets its state."""
    kind: type[Any] = type(made_by)  # pyright: ignore[reportUnknownVariableType]
    if issubclass(kind, type):
        return issubclass(made_by, BaseException)
    return issubclass(kind, BaseException) or (kind is FunctionType and made_by.__name__ in _REBUILDERS)


def _Unpickler() -> Any:
    return pickle._Unpickler


class _Tolerant(_Unpickler()):  # type: ignore[misc]
    """The unpickler in Python: what fails because of a stand-in becomes one."""

    stack: list[Any]
    metastack: list[list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Unpickler().dispatch)

    def __init__(self, data: Any, loaded: Loaded) -> None:
        _Unpickler().__init__(self, io.BytesIO(data))
        self._loaded = dict(loaded)
        self._errors: list[BaseException] = []  # in the places of exceptions

    def _try(self, step: Callable[[Any], None], nr_above: int) -> None:
        """`step` uses the entry under the `nr_above` on top of the stack, and leaves its result in its place.

        -1: all since the last mark. Nothing below is looked at, for a message may be long.
        """
        if nr_above < 0:
            stack, above = self.metastack[-1], self.stack
        else:
            stack, above = self.stack, self.stack[-nr_above:]
        place = len(stack) - 1 - max(nr_above, 0)
        user, nr_marks = stack[place], len(self.metastack) - (nr_above < 0)
        try:
            step(self)
        except Exception:
            error = self._error_in([*above, user])
            if error is None:
                raise
            error.__traceback__ = None  # it would hold all that was loaded
            del self.metastack[nr_marks:], stack[place:]
            self.stack, self.append = stack, stack.append
            self.append(self._instead_of_made_by(user, error))

    def _instead_of_made_by(self, user: Any, error: BaseException) -> Any:
        if not _is_of_exceptions(user):
            return StandIn(None, error)
        self._errors.append(error)
        return error

    def _is_error(self, x: Any) -> bool:
        return any(x is error for error in self._errors)

    def _error_in(self, x: Any, depth: int = 0) -> BaseException | None:
        """What is wrong with a stand-in that `x` is or holds, or with an error in an exception's place."""
        if type(x) is StandIn:
            return error_of(x)
        if self._is_error(x):
            return cast("BaseException", x)
        if depth >= _DEPTH_MAX:
            return None
        parts: list[Any] = []
        if type(x) in (tuple, list, set, frozenset):
            parts = list(x)
        elif type(x) is dict:
            parts = [*x.keys(), *x.values()]
        return next((found for part in parts if (found := self._error_in(part, depth + 1)) is not None), None)

    def load_known_reduce(self) -> None:
        """REDUCE. A reference is what it was for the load that failed."""
        args = self.stack[-1]
        if self.stack[-2] is load_reference and args[0] in self._loaded:
            del self.stack[-2:]
            self.append(self._loaded[args[0]])
        else:
            _Unpickler().load_reduce(self)

    def load_build_unless_error(self) -> None:
        """BUILD. An error has a state of its own."""
        if self._is_error(self.stack[-2]):
            self.stack.pop()
        else:
            _Unpickler().load_build(self)

    dispatch[pickle.REDUCE[0]] = load_known_reduce
    dispatch[pickle.BUILD[0]] = load_build_unless_error


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
