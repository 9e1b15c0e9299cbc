# SPDX-License-Identifier: MIT
"""What install() did is counted, and why() says what it would do with a value."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest

import vmalloc
from vmalloc import Sent

LARGE = 1 << 20


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("32M", helper=False)
    vmalloc.install(region, on_full="copy")
    yield region
    vmalloc.uninstall()


def counted(*values: Any, plainly: bool = False) -> Sent:
    """What sending them adds; in a list, or each as a message of its own."""
    before = vmalloc.sent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for message in values if plainly else [list(values)]:
            ForkingPickler.dumps(message)
    return Sent(*(now - then for now, then in zip(vmalloc.sent(), before, strict=True)))


@pytest.mark.parametrize("plainly", [False, True], ids=["in a list", "alone"])
def test_every_array_is_counted_once_by_the_way_it_went(region: vmalloc.Region, plainly: bool) -> None:
    here = region.empty(10)
    values = [here, region.empty(LARGE, "u1"), np.zeros(LARGE, "u1"), np.zeros(5), np.zeros(10)[::2]]
    values += [np.array([None]), np.zeros(64 << 20, "u1")]
    assert counted(*values, plainly=plainly) == Sent(by_reference=2, copied_in=1, as_before=3, by_value=1)


def test_views_of_one_array_count_each(region: vmalloc.Region) -> None:
    whole = region.empty((10, 10))
    assert counted(whole, *whole, whole[::2, ::2], whole.view("u1")) == Sent(13, 0, 0, 0)


def test_a_block_is_counted(region: vmalloc.Region) -> None:
    assert counted(region.alloc(10)) == Sent(1, 0, 0, 0)


def test_a_closed_region_counts_as_by_value(region: vmalloc.Region) -> None:
    region.close()
    assert counted(np.zeros(LARGE, "u1"), np.zeros(3)) == Sent(0, 0, 1, 1)


def test_without_install_nothing_is_counted() -> None:
    assert counted(np.zeros(LARGE, "u1"), np.zeros(3)) == Sent(0, 0, 0, 0)


def _count(queue: Any) -> None:
    queue.put(tuple(vmalloc.sent()))


def test_a_forked_child_begins_anew(region: vmalloc.Region) -> None:
    counted(np.zeros(3))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_count, args=(queue,))
    child.start()
    child.join()
    assert queue.get() == (0, 0, 0, 0)


# ---- why ----


class Odd(np.ndarray):
    pass


CASES: dict[str, tuple[Callable[[vmalloc.Region], Any], str]] = {
    "in a region": (lambda r: r.empty(3), "by reference: it lies in a region"),
    "a view": (lambda r: r.empty(30)[::3], "by reference: it lies in a region"),
    "a block": (lambda r: r.alloc(3), "by reference: it lies in a region"),
    "a Ref": (lambda r: vmalloc.ref(r.empty(3)), "by reference: ref() made it, which needs no install()"),
    "large": (
        lambda r: np.zeros(LARGE, "u1"), "copied in: it lies in no region, and has 1 MiB, more than 64 KiB",
    ),
    "small": (
        lambda r: np.zeros(3),
        "as before: it lies in no region, and 24 B are not above the threshold of 64 KiB",
    ),
    "of objects": (lambda r: np.array([None]), "as before: what a ndarray like this has cannot lie in a"),
    "a subclass": (
        lambda r: np.zeros(LARGE).view(Odd), f"as before: a {__name__}.Odd may be more than the ndarray",
    ),
    "a list": (lambda r: [1], "as before: a builtins.list has no adapter; ask for what is in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_why_says_what_is_done_with_a_value(region: vmalloc.Region, case: str) -> None:
    make, text = CASES[case]
    value = make(region)
    before = vmalloc.sent()
    assert vmalloc.why(value).startswith(text)
    assert vmalloc.sent() == before
    way = vmalloc.why(value).partition(":")[0].replace(" ", "_")
    if isinstance(value, np.ndarray | vmalloc.Block) and not isinstance(value, Odd):
        assert getattr(counted(value), way) == 1


def test_why_without_install() -> None:
    assert vmalloc.why(np.zeros(LARGE)) == "as before: install() was not called in this process"


def test_why_after_a_wait_in_vain() -> None:
    region = vmalloc.Region("4M", helper=False)
    vmalloc.install(region, timeout=0.01)
    context = multiprocessing.get_context("fork")
    wake = context.Event()
    lent = region.empty(3 << 20, "u1")
    child = context.Process(target=wake.wait)  # it could give them back
    child.start()
    try:
        assert counted(np.zeros(2 << 20, "u1")) == Sent(0, 0, 0, 1)
        assert vmalloc.why(np.zeros(2 << 20, "u1")).startswith(
            "copied in if there is room by now, else as before"
        )
        assert vmalloc.why(np.zeros(LARGE >> 1, "u1")).startswith("copied in: ")
    finally:
        del lent
        vmalloc.uninstall()
        wake.set()
        child.join()


def test_why_a_closed_region(region: vmalloc.Region) -> None:
    inside = region.empty(LARGE, "u1")
    region.close()
    assert vmalloc.why(inside).startswith("as before: its region was closed, and install()'s own was closed")
    assert vmalloc.why(np.zeros(LARGE)).startswith("as before: it lies in no region, and install()'s own")


@pytest.mark.parametrize(
    ("private", "large", "small"),
    [
        (True, "by reference: it lies in a region; pages that", "as before: 24 B are not above"),
        ("copy", "copied in: what is sent is copied", "as before: what is sent is copied"),
    ],
)
def test_why_where_writes_are_private(region: vmalloc.Region, private: Any, large: str, small: str) -> None:
    vmalloc.install(region, private=private)
    assert vmalloc.why(region.empty(LARGE, "u1")).startswith(large)
    assert vmalloc.why(region.empty(3)).startswith(small)


def test_why_an_array_in_the_other_order_of_bytes_is_copied_where_writes_are_private(
    region: vmalloc.Region,
) -> None:
    a, small = region.zeros(100_000, ">f8"), region.zeros(3, ">f8")
    vmalloc.install(region)
    assert vmalloc.why(a).startswith("by reference")
    vmalloc.install(region, private=True)
    assert vmalloc.why(a).startswith("copied in: private=True, and the order of its bytes")
    assert vmalloc.why(small).startswith("as before")
    before = vmalloc.sent().copied_in
    assert pickle.loads(ForkingPickler.dumps(a)).dtype.isnative
    assert vmalloc.sent().copied_in == before + 1
