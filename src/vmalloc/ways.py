# SPDX-License-Identifier: MIT
"""Ways: what install() did with the values of this process's messages, and why it would do so with one."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple, cast

from vmalloc._core import get_settings, sent_counts
from vmalloc.adapters import registry
from vmalloc.message import Settings
from vmalloc.pickled import is_turned
from vmalloc.reference import Ref
from vmalloc.results import size_text

__all__ = ["Sent", "sent", "why"]


class Sent(NamedTuple):
    """How many arrays, and values of other types that have an adapter, were pickled in which way."""

    by_reference: int  #: lay in a region already
    copied_in: int  #: copied into the region, then by reference
    as_before: int  #: small ones, arrays of objects, and what went to another user or machine
    by_value: int  #: large ones that went as before, for the region had no room or could not be used


def sent() -> Sent:
    """What this process sent since it started (or was forked), whatever became of the messages."""
    return Sent(*sent_counts())


def why(x: object) -> str:
    """How `x` would be sent now, and why: "by reference: ...", "copied in: ...", "as before: ...".

    "in parts: ..." says that it consists of several, each of which goes its own way.

    It sends nothing. Of a list or another container it tells nothing of what is in it: ask for that.
    """
    settings = cast("Settings | None", get_settings())
    if type(x) is Ref:
        return "by reference: ref() made it, which needs no install()"
    if settings is None:
        return "as before: install() was not called in this process"
    types = registry.exact_types()
    if type(x) not in types:
        return _why_not_its_type(type(x), types)
    adapter = registry.adapter_for(type(x))
    holding, nbytes = adapter.holding(x), adapter.nbytes(x)
    if holding is not None and not holding.region.closed:
        is_turned_there = adapter.kind == "array" and is_turned(cast("Any", x), pickle.DEFAULT_PROTOCOL)
        return _why_what_lies_in_a_region(nbytes, settings, is_turned_there)
    if holding is None and adapter.take_apart(x, settings.threshold) is not None:
        return f"in parts: each buffer of a {type(x).__name__} goes its own way"
    if holding is None and not adapter.is_copied_in:
        return f"as before: it lies in no region, and a {type(x).__name__} is not copied into one"
    if nbytes is None:
        return f"as before: what a {type(x).__name__} like this has cannot lie in a region (Python objects?)"
    return _why_private_memory(nbytes, settings, was_in_one=holding is not None)


def _why_not_its_type(kind: type, types: dict[type, Any]) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    base = next((c for c in kind.__mro__ if c in types), None)
    if base is not None:
        return f"as before: a {name} may be more than the {base.__name__} it derives from; an adapter can say"
    return f"as before: a {name} has no adapter; ask for what is in it"


def _why_what_lies_in_a_region(nbytes: int | None, settings: Settings, is_turned_there: bool) -> str:
    if not settings.private or nbytes is None:
        return "by reference: it lies in a region"
    if settings.private == "copy":
        return _why_private_memory(nbytes, settings, was_in_one=False)
    if nbytes <= settings.threshold:
        return f"as before: {_at_most(nbytes, settings)}, and private=True makes it the receiver's own"
    if is_turned_there:
        return "copied in: private=True, and the order of its bytes becomes the machine's, as pickle makes it"
    return "by reference: it lies in a region; pages that the receiver writes become its own"


def _at_most(nbytes: int, settings: Settings) -> str:
    return f"{size_text(nbytes)} are not above the threshold of {size_text(settings.threshold)}"


def _why_private_memory(nbytes: int, settings: Settings, *, was_in_one: bool) -> str:
    where = "its region was closed" if was_in_one else "it lies in no region"
    if settings.private == "copy" and not was_in_one:
        where = "what is sent is copied (private='copy')"
    if nbytes <= settings.threshold:
        return f"as before: {where}, and {_at_most(nbytes, settings)}"
    if settings.usable_region() is None:
        return f"as before: {where}, and install()'s own was closed or cannot be used here"
    if settings.room.waited_in_vain(nbytes):
        return f"copied in if there is room by now, else as before: {where}, and the last send found no room"
    return f"copied in: {where}, and has {size_text(nbytes)}, more than {size_text(settings.threshold)}"
