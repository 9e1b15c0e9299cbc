# SPDX-License-Identifier: MIT
"""The kernel's vmalloc test suite on the real allocator, against every pool design.

Read in this order: parameters (what the kernel's script accepts), loops.h and loops.c (the tests),
board (what the workers share), driver (workers, rounds, designs), results, report (table, dmesg, JSON).
"""

from vmalloc.suite.driver import Plan, run
from vmalloc.suite.parameters import MODES, TESTS, Parameters, parse
from vmalloc.suite.results import Result, Run

__all__ = ["MODES", "TESTS", "Parameters", "Plan", "Result", "Run", "parse", "run"]
