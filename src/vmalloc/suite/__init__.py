# SPDX-License-Identifier: MIT
"""The kernel's vmalloc test suite on the real allocator, against every pool design.

Read in this order: parameters (what the kernel's script accepts), loops.h and loops.c (the tests),
board (what the workers share), driver (workers, rounds, designs), results, report (table, dmesg, JSON).
"""

import importlib
from typing import TYPE_CHECKING, Any

from vmalloc.suite.parameters import MODES, TESTS, Parameters, parse
from vmalloc.suite.results import Result, Run

if TYPE_CHECKING:
    from vmalloc.suite.driver import Plan, run

__all__ = ["MODES", "TESTS", "Parameters", "Plan", "Result", "Run", "parse", "run"]


def __getattr__(name: str) -> Any:
    if name in ("Plan", "run"):  # the driver needs the core; who asks for help does not
        return getattr(importlib.import_module("vmalloc.suite.driver"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
