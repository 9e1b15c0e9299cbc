# SPDX-License-Identifier: MIT
"""A message made by the short way against the one that the standard library's ForkingPickler makes."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

import vmalloc
from vmalloc import _core
from vmalloc.channel import WRAPPERS

SHARED: list[Any] = []
VALUES: dict[str, Any] = {
    "nothing": None,
    "numbers": [1, 2.5, 3 + 4j, 1 << 70, True],
    "texts": ("", "text", b"bytes", bytearray(b"array"), "x" * 100_000),
    "one object twice": [SHARED, SHARED, {"again": SHARED}],
    "a function": sorted,
    "a method": [].append,
    "a method of a class": dict.fromkeys,
    "a partial": partial(sorted, key=len),
    "a pattern": re.compile("a+"),
    "an error": ValueError("wrong", 3),
    "a set": frozenset({1}),
}


class Own:
    def __reduce__(self) -> Any:
        return int, (3,)


class Other(ForkingPickler):
    """Has reducers of its own."""

    _extra_reducers: dict[type, Any] = {}  # noqa: RUF012


class Loud(pickle.Pickler):
    def dump(self, obj: Any) -> None:
        super().dump(["loud", obj])


class LoudForkingPickler(ForkingPickler, Loud):
    pass


@pytest.fixture
def installed() -> Iterator[None]:
    with vmalloc.Region("1M", nodes=1, helper=False) as region:
        yield vmalloc.install(region)
        vmalloc.uninstall()


@pytest.mark.parametrize("protocol", [None, 0, 2, 5, -1])
def test_a_message_is_byte_for_byte_what_it_was_before(request: Any, protocol: int | None) -> None:
    before = {what: bytes(ForkingPickler.dumps(x, protocol)) for what, x in VALUES.items()}
    request.getfixturevalue("installed")
    short = {what: _core.dump_as_stock(x, protocol) for what, x in VALUES.items()}
    assert {what: bytes(made) for what, made in short.items() if made is not None} == before
    assert {what: bytes(ForkingPickler.dumps(x, protocol)) for what, x in VALUES.items()} == before


def test_what_is_registered_later_is_used_by_the_next_message(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ForkingPickler.loads(ForkingPickler.dumps(Own())) == 3
    monkeypatch.setitem(ForkingPickler._extra_reducers, Own, lambda own: (int, (4,)))  # type: ignore[attr-defined]
    assert ForkingPickler.loads(ForkingPickler.dumps(Own())) == 4


def test_a_class_derived_from_the_pickler_keeps_its_own_reducers(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Other.register(Own, lambda own: (int, (5,)))
    assert ForkingPickler.loads(Other.dumps(Own())) == 5
    assert ForkingPickler.loads(ForkingPickler.dumps(Own())) == 3


def test_a_class_derived_from_the_pickler_keeps_them_also_when_ours_have_changed(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ForkingPickler._extra_reducers, Own, lambda own: (int, (4,)))  # type: ignore[attr-defined]
    Other.register(Own, lambda own: (int, (5,)))
    _core.await_modules(())
    assert ForkingPickler.loads(Other.dumps(Own())) == 5


def test_a_class_derived_from_the_pickler_and_from_another_one_dumps_as_both_do(installed: None) -> None:
    assert ForkingPickler.loads(LoudForkingPickler.dumps(1)) == ["loud", 1]


def test_a_pickler_that_took_the_place_of_the_stock_one_before_us_is_made() -> None:
    program = """
import multiprocessing.reduction as reduction

class Mine(reduction.ForkingPickler):
    def __init__(self, *args):
        super().__init__(*args)
        self.dispatch_table[complex] = lambda x: (str, ("mine",))

    @classmethod
    def dumps(cls, *args):
        return super().dumps(*args)

reduction.ForkingPickler = Mine
import vmalloc
vmalloc.install(vmalloc.Region("1M", nodes=1, helper=False))
print(Mine.loads(Mine.dumps([1j])))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['mine']\n", "")


def test_a_method_in_anothers_place_is_pickled_by_that_name() -> None:
    """Programs give `queue.get` to a process that they start."""
    received = [(owner, name) for owner, name in WRAPPERS if name in ("get", "put", "recv")]
    assert [WRAPPERS[where].__name__ for where in received] == [name for _, name in received]
    assert len(received) == 4


def test_an_uninstall_while_an_array_is_looked_at_harms_nobody(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, or by a finalizer."""
    np = pytest.importorskip("numpy")

    class Uninstalls(dict[type, Any]):
        def get(self, kind: Any, *default: Any) -> Any:
            found = super().get(kind, *default)
            vmalloc.uninstall()
            return found

    ForkingPickler.dumps(np.zeros(3))
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", Uninstalls(ForkingPickler._extra_reducers))  # type: ignore[attr-defined]
    assert (ForkingPickler.loads(ForkingPickler.dumps(np.ones(3))) == 1).all()


@pytest.mark.parametrize("name", ["__init__", "dumps", "reducer_override", "persistent_id"])
def test_a_pickler_that_another_library_changed_is_made(
    request: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The short way would pass its change by."""
    former = getattr(ForkingPickler, name, None)

    def others(self: Any, *args: Any) -> Any:
        return former(self, *args)  # type: ignore[misc]

    if name == "dumps":
        monkeypatch.setattr(ForkingPickler, name, classmethod(lambda cls, *args: former(*args)))  # type: ignore[misc]
    elif name == "__init__":
        monkeypatch.setattr(ForkingPickler, name, others)
    else:
        monkeypatch.setattr(ForkingPickler, name, lambda self, x: NotImplemented, raising=False)
    request.getfixturevalue("installed")
    assert _core.dump_as_stock([1], None) is None
