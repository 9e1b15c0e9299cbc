# SPDX-License-Identifier: MIT
"""The registry: from a type to its adapter, and from the kind in a description to who rebuilds it.

A value's adapter is that of the first class in its method resolution order that has one, so a subclass may
have its own; what has none is taken for an array. `install()` is stricter: it sends only values whose type
itself is registered, because a subclass may carry more than its adapter knows of.

A type may be registered by its name, "torch.Tensor", before its module is imported; it is looked up, where
`import` would find it, when a value comes that no known class explains.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmalloc._core import ArrayOwner, Holding, await_modules, holding_of, protocol_here
from vmalloc.description import Description
from vmalloc.errors import StaleReference

if TYPE_CHECKING:
    from vmalloc.region import Region

__all__ = ["Adapter", "adapter_for", "describe", "holding_of", "place", "rebuild", "register", "unregister"]

_KIND_BYTES_MAX = 255


class Adapter:
    """How values of a type lie in a region. Derive from it; docs/adapters.md has an example.

    A value lies in the pages of one **holding**: the block, or the private owner of an array, that keeps
    them. All methods may be called from any thread.
    """

    kind: str = ""
    """Names the adapter in references: the same in all processes, of any version; 1 to 255 bytes."""

    owner_type: type[Holding] = ArrayOwner
    """What holds the pages where a message is loaded: an ArrayOwner, or a Block that its user may release."""

    is_copied_in: bool = True
    """Whether `install()` copies in what lies in no region. If not, that goes as before."""

    by_parts: bool = False
    """`install()` leaves such values to whatever pickles them, for their parts have adapters."""

    def holding(self, x: Any) -> Holding | None:
        """The holding whose pages all of `x` lies in, or None. It must be quick, and raise nothing.

        Often `vmalloc.adapters.holding_of()` of the array within.
        """
        raise NotImplementedError(f"{type(self).__name__} has no holding()")

    def describe(self, x: Any, holding: Holding) -> Description:
        """What rebuild() needs to know of `x`, which lies in `holding`. `kind` is filled in."""
        raise NotImplementedError(f"{type(self).__name__} has no describe()")

    def rebuild(self, owner: Holding, description: Description) -> Any:
        """The value of that description, on `owner`'s pages, which it must keep alive.

        The description may come from anybody who can write to the region: what does not fit into
        `owner.nbytes` must raise ValueError, TypeError, LookupError or ArithmeticError, which become
        StaleReference. ArrayAdapter.rebuild() checks that.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rebuild()")

    def copy_in(self, x: Any, region: Region) -> Any:
        """A copy of `x` in `region`, where it has a holding. OutOfPages; TypeError if it cannot be copied."""
        raise TypeError(f"a {type(x).__name__} cannot be copied into a region; make it there")

    def nbytes(self, x: Any) -> int | None:
        """Bytes that copy_in() would take, which `install()` compares with its threshold.

        None: `install()` never copies it in. What lies in no region is pickled as before then.
        """
        return None

    def take_apart(self, x: Any, threshold: int) -> tuple[Any, ...] | None:
        """For a type whose values consist of several parts, each of which may go by reference, or not.

        What `__reduce__` would return, for `install()`: a function and its arguments, which are pickled in
        turn. Called for what has no holding. None: it goes as before.
        """
        return None

    def beside(self, x: Any, first: Any, holding: Holding) -> tuple[Any, ...] | None:
        """How `x` goes beside `first`, of the same type and in the same pages, which its message has already.

        What `__reduce__` would return; `first` among the arguments takes two bytes. Such a value needs no
        lease and is not adopted. None: it gets a reference of its own, as the first one has.
        """
        return None

    def as_before(self, x: Any, before: Callable[[Any], Any] | None) -> Any:
        """What `install()` makes of a value that does not go by reference, as `__reduce__` would.

        `before`: what was registered for its type before us, or None.
        """
        return x.__reduce_ex__(protocol_here()) if before is None else before(x)


_lock = threading.RLock()
_classes: dict[type, Adapter] = {}
_names: dict[str, Adapter] = {}  # of types whose module is not imported yet
_awaited: tuple[str, ...] = ()  # those modules
_kinds: dict[str, tuple[Adapter, int]] = {}  # and how many types have it
_found: dict[type, Adapter] = {}  # what adapter_for() told before
_built_in: frozenset[str | type] = frozenset()
_default: Adapter  # for what no class has registered


def _renew_lock_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_in_child)


def begin(arrays: Adapter, array_type: str, blocks: Adapter, *block_types: type) -> None:
    """The first entries, which stay."""
    global _built_in, _default
    _default = arrays
    register(array_type, arrays)
    for block_type in block_types:
        register(block_type, blocks)
    _built_in = frozenset((array_type, *block_types))


def register(type_or_name: type | str, adapter: Adapter) -> None:
    """Let values of a type go by reference, as `adapter` says.

    The type is a class or its importable name, "torch.Tensor"; naming it imports nothing. One adapter may
    serve several types. The same adapter for the same type again does nothing. ValueError if the type has
    another adapter, or the kind another; TypeError for what is no adapter or no type; AttributeError if the
    module is imported and has no such class.

    Holds for this process and its forked children. A spawned one has to import the module that does this, as
    it does if it is done at the top of the program's main module, or of that of a function it is given.
    """
    if not isinstance(adapter, Adapter):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"an adapter is an object of a class derived from Adapter, not {adapter!r:.100}")
    if not 0 < len(adapter.kind.encode()) <= _KIND_BYTES_MAX:
        raise ValueError(
            f"{type(adapter).__name__}.kind must be 1 to {_KIND_BYTES_MAX} bytes: {adapter.kind!r}"
        )
    key = _key(type_or_name)
    with _lock:
        before = _registered(key)
        if before is adapter:
            return
        if before is not None:
            raise ValueError(f"{_text(key)} has an adapter already, {before!r}; unregister it first")
        same_kind, nr_types = _kinds.get(adapter.kind, (adapter, 0))
        if same_kind is not adapter:
            raise ValueError(f"kind {adapter.kind!r} is taken by {same_kind!r}, which references name by it")
        _kinds[adapter.kind] = adapter, nr_types + 1
        if isinstance(key, str):
            _names[key] = adapter
        else:
            _classes[key] = adapter
        _changed()


def unregister(type_or_name: type | str) -> None:
    """Undo register(); what is under way and of no other type's kind is stale here from now on.

    LookupError if it is not registered; ValueError for np.ndarray and Block, which all others build on.
    """
    key = _key(type_or_name)
    with _lock:
        adapter = _registered(key)
        if adapter is None:
            raise LookupError(f"{_text(key)} has no adapter of its own")
        if key in _built_in or _text(key) in _built_in:
            raise ValueError(f"the adapter of {_text(key)} stays: others build on it")
        if isinstance(key, str):
            del _names[key]
        else:
            del _classes[key]
        _drop_kind(adapter)
        _changed()


def _drop_kind(adapter: Adapter) -> None:
    """One type less has it."""
    nr_types = _kinds[adapter.kind][1] - 1
    if nr_types:
        _kinds[adapter.kind] = adapter, nr_types
    else:
        del _kinds[adapter.kind]


def _changed() -> None:
    global _awaited
    _found.clear()
    _awaited = tuple({name.rpartition(".")[0] for name in _names})
    await_modules(_awaited)


def _key(type_or_name: type | str) -> type | str:
    """The class; the name while its module is not imported."""
    with _lock:
        _resolve_names()
    if isinstance(type_or_name, type):
        return type_or_name
    if not isinstance(type_or_name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a type or its name like 'torch.Tensor', not {type_or_name!r:.100}")
    if not all(part.isidentifier() for part in type_or_name.split(".")) or "." not in type_or_name:
        raise ValueError(
            f"a type's name has its module in front, like 'torch.Tensor', not {type_or_name!r:.100}"
        )
    return _class_named(type_or_name) or type_or_name


def _class_named(name: str) -> type | None:
    """None while its module is not imported. AttributeError, TypeError if the module has no such class."""
    module_name, _, qualname = name.rpartition(".")
    module = sys.modules.get(module_name)
    if module is None:
        return None
    found = getattr(module, qualname, None)
    if found is None:
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            return None  # it is being imported just now
        raise AttributeError(f"module {module_name} has no {qualname}")
    if not isinstance(found, type):
        raise TypeError(f"{name} is no class: {found!r:.100}")
    return found


def _is_being_imported(package: str) -> bool:
    """Then it may yet tell picklers of its types, over what we tell them."""
    return bool(getattr(getattr(sys.modules.get(package), "__spec__", None), "_initializing", False))


def _registered(key: type | str) -> Adapter | None:
    return _names.get(key) if isinstance(key, str) else _classes.get(key)


def _text(key: type | str) -> str:
    return key if isinstance(key, str) else f"{key.__module__}.{key.__qualname__}"


def _resolve_names() -> bool:
    """Names whose modules were imported meanwhile become classes; whether one did."""
    did = False
    for name in list(_names):
        if name.rpartition(".")[0] not in sys.modules or _is_being_imported(name.partition(".")[0]):
            continue
        try:
            found = _class_named(name)
        except (AttributeError, TypeError) as e:
            warnings.warn(f"vmalloc.adapters: {name} is registered, but {e}", RuntimeWarning, stacklevel=3)
            _drop_kind(_names.pop(name))
            did = True
            continue
        if found is not None:
            adapter = _names.pop(name)
            if (
                _classes.setdefault(found, adapter) is not adapter
            ):  # two names, or its class was registered, too
                _drop_kind(adapter)
            did = True
    if did:
        _changed()
    return did


def exact_types() -> dict[type, Adapter]:
    """For install(): the types that are known by now."""
    with _lock:
        _resolve_names()
        return {kind: adapter for kind, adapter in _classes.items() if not adapter.by_parts}


# ---- what the others ask ----


def adapter_for(kind_of_value: type) -> Adapter:
    """Of values of that type: its own, an ancestor's, or else that of arrays."""
    adapter = _found.get(kind_of_value)
    if adapter is None:
        with _lock:
            _resolve_names()
            ancestors = (_classes[c] for c in kind_of_value.__mro__ if c in _classes)
            adapter = next(ancestors, _default)
            if kind_of_value in _classes or len(_found) < 1000:
                _found[kind_of_value] = adapter
    return adapter


def adapter_of_kind(kind: str) -> Adapter:
    """The one that rebuilds what has this kind. StaleReference if this process has none."""
    try:
        return _kinds[kind][0]
    except KeyError:
        raise StaleReference(
            f"the reference is to a value of kind {kind!r:.100}, and no adapter here has that kind: "
            "import the module that registers it, in this process too"
        ) from None


def holding_by_adapter(x: object) -> Holding | None:
    """What the adapter of its type tells: for holding_of()."""
    return adapter_for(type(x)).holding(x)


def describe(x: Any, holding: Holding) -> Description:
    """How `x` lies in `holding`'s pages."""
    adapter = adapter_for(type(x))
    description = adapter.describe(x, holding)
    return description if description.kind == adapter.kind else description._replace(kind=adapter.kind)


def rebuild(owner: Holding, description: Description) -> Any:
    """The value that `describe` told of, on `owner`'s pages.

    What does not lie within them raises StaleReference, so a forged description shows no other bytes.
    """
    adapter = adapter_of_kind(description.kind)
    try:
        return adapter.rebuild(owner, description)
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RecursionError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as e:
        raise StaleReference(
            f"the reference tells of no {description.kind} within its {owner.nbytes} bytes: {e}"
        ) from None


def place(x: Any, region: Region, *, anew: bool = False) -> tuple[Any, Holding]:
    """`x` if it lies in `region`, else (or `anew`) its copy there; what holds it. OutOfPages, TypeError."""
    adapter = adapter_for(type(x))
    holding = adapter.holding(x)
    if holding is not None and holding.region is region and not anew:
        return x, holding
    copy = adapter.copy_in(x, region)
    holding = holding_of(copy)
    if holding is None or holding.region is not region:
        raise TypeError(
            f"copy_in() of {adapter!r} gave a {type(copy).__name__} that does not lie in the region"
        )
    return copy, holding
