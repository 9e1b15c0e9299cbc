# SPDX-License-Identifier: MIT
"""install() for a test, and what arrives at the other end."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

from tests.conftest import assert_at_rest

import vmalloc

THRESHOLD = 1000  # bytes; of the tests


@contextmanager
def installed_region() -> Iterator[vmalloc.Region]:
    """16 MiB, installed; nothing may be left in it."""
    region = vmalloc.Region("16M", name="install")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    for name in region:
        del region[name]
    assert region.stats().nr_leases == 0
    assert_at_rest(region)
    assert region.stats().busy_pages == 0


def sent(x: Any, protocol: int | None = None) -> Any:
    """What arrives at the other end of any queue, pipe or pool."""
    return pickle.loads(ForkingPickler.dumps(x, protocol))


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be sent")
