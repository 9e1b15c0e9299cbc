# SPDX-License-Identifier: MIT
"""What the kernel's suite can be told, with its names, its bits and its script's rules.

After: Linux lib/test_vmalloc.c and tools/testing/selftests/mm/test_vmalloc.sh.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MODES", "TESTS", "Parameters", "SuiteTest", "parse"]


@dataclass(frozen=True)
class SuiteTest:
    """One test: its number is its bit in run_test_mask and its place in loops.c."""

    number: int
    name: str
    meaning: str
    may_fail: bool = False

    @property
    def bit(self) -> int:
        return 1 << self.number

    @property
    def kernel_name(self) -> str:
        return f"{self.name}_test"


TESTS = tuple(
    SuiteTest(number, name, meaning, name in ("align_shift_alloc", "no_block_alloc"))
    for number, (name, meaning) in enumerate(
        {
            "fix_size_alloc": "nr_pages (1), again and again",
            "full_fit_alloc": "one page, with L one-page holes to look through",
            "long_busy_list_alloc": "100 pages and 1 page, with 15000 one-page areas held",
            "random_size_alloc": "1 to 100 pages",
            "fix_align_alloc": "5 pages at a multiple of 32 KiB, zeroed",
            "random_size_align_alloc": "1 to 10 pages, aligned to 1 B to 4 MiB, zeroed",
            "align_shift_alloc": "a page aligned to 1 << 0 .. 1 << 63; xfail",
            "pcpu_alloc": "nr_pcpu_objects in chunks at congruent offsets",
            "kvfree_rcu_1_arg_vmalloc": "freed later in batches of 64, by the worker itself",
            "kvfree_rcu_2_arg_vmalloc": "freed later in batches of 64, by another worker",
            "vm_map_ram": "a second reference to a shared range, taken and dropped",
            "no_block_alloc": "fails at once instead of purging or waiting; xfail allowed",
            "vrealloc": "1 page to 4, to 1, to half, to 1; contents checked",
        }.items()
    )
)


@dataclass(frozen=True)
class Parameters:
    """The kernel module's parameters. Defaults: 10,000 loops; the rest as the newest kernel's."""

    nr_threads: int = 1
    test_repeat_count: int = 1
    test_loop_count: int = 10_000
    nr_pages: int = 0
    use_huge: int = 0
    run_test_mask: int = 7
    sequential_test_order: int = 0
    nr_pcpu_objects: int = 35_000

    @property
    def tests(self) -> tuple[SuiteTest, ...]:
        """The enabled ones, in table order."""
        return tuple(test for test in TESTS if self.run_test_mask & test.bit)

    def words(self) -> str:
        return " ".join(f"{key}={value}" for key, value in dataclasses.asdict(self).items() if value)


_CPUS = os.cpu_count() or 1
MODES: dict[str, dict[str, int]] = {
    "performance": {"sequential_test_order": 1, "test_repeat_count": 3},
    "smoke": {"test_loop_count": 10_000, "test_repeat_count": 10},
    "stress": {"nr_threads": _CPUS, "test_repeat_count": 20},
}
NAMES = tuple(field.name for field in dataclasses.fields(Parameters))
_MOST = {
    "nr_threads": 65_535,
    "test_repeat_count": 1 << 20,
    "test_loop_count": 1 << 40,
    "nr_pages": 1 << 28,
    "run_test_mask": 1 << 31,
    "nr_pcpu_objects": 1 << 26,
}


def parse(words: Iterable[str]) -> Parameters:
    """Parameters from `smoke`, `nr_threads=64 run_test_mask=7`; later words win. ValueError, one line."""
    chosen: dict[str, int] = {}
    for word in words:
        chosen |= _mode(word) if "=" not in word else _assignment(word)
    parameters = Parameters(**chosen)
    if not parameters.tests:
        bits = ", ".join(f"{test.bit} {test.name}" for test in TESTS)
        raise ValueError(f"run_test_mask={parameters.run_test_mask} enables no test; the bits are {bits}")
    return parameters


def _mode(word: str) -> dict[str, int]:
    if word not in MODES:
        raise ValueError(
            f"{word!r} is neither a mode ({', '.join(MODES)}) nor key=value ({', '.join(NAMES)})"
        )
    return MODES[word]


def _assignment(word: str) -> dict[str, int]:
    key, _, text = word.partition("=")
    if key not in NAMES:
        raise ValueError(f"{key!r} is no parameter; the parameters are {', '.join(NAMES)}")
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    most = _MOST.get(key, 1)
    if not 0 < value <= most:
        raise ValueError(f"{key}={text}: the value must be a number from 1 to {most}")
    return {key: value}
