# SPDX-License-Identifier: MIT
"""The suite's parameters: the kernel's names, bits, modes and rules; sizes that follow from them."""

from __future__ import annotations

import random

import pytest

from vmalloc.facts import POOLS
from vmalloc.suite import TESTS, Parameters, Plan, parse
from vmalloc.suite.driver import shuffled


def test_names_and_bits_are_the_kernels() -> None:
    assert {test.bit: test.kernel_name for test in TESTS} == {
        1: "fix_size_alloc_test",
        2: "full_fit_alloc_test",
        4: "long_busy_list_alloc_test",
        8: "random_size_alloc_test",
        16: "fix_align_alloc_test",
        32: "random_size_align_alloc_test",
        64: "align_shift_alloc_test",
        128: "pcpu_alloc_test",
        256: "kvfree_rcu_1_arg_vmalloc_test",
        512: "kvfree_rcu_2_arg_vmalloc_test",
        1024: "vm_map_ram_test",
        2048: "no_block_alloc_test",
        4096: "vrealloc_test",
    }


def test_defaults_are_the_newest_kernels_with_ten_thousand_loops() -> None:
    assert parse([]) == Parameters(
        nr_threads=1, test_repeat_count=1, test_loop_count=10_000, nr_pages=0, use_huge=0, run_test_mask=7,
        sequential_test_order=0, nr_pcpu_objects=35_000,
    )  # fmt: skip


def test_words_set_parameters_and_the_last_wins() -> None:
    assert parse(["nr_threads=2", "run_test_mask=0xf", "nr_threads=64"]) == Parameters(
        nr_threads=64, run_test_mask=15
    )


def test_modes_are_those_of_the_kernels_script_and_can_be_changed() -> None:
    assert parse(["performance"]) == Parameters(sequential_test_order=1, test_repeat_count=3)
    assert parse(["smoke"]) == Parameters(test_loop_count=10_000, test_repeat_count=10)
    assert parse(["stress"]).test_repeat_count == 20
    assert parse(["smoke", "test_repeat_count=1"]).test_repeat_count == 1


BAD_WORDS = """nr_threads=0 nr_threads=-1 nr_threads=N nr_threads= nr_threads=65536 sequential_test_order=2
single_cpu_test=1 fast run_test_mask=8192"""


@pytest.mark.parametrize("word", BAD_WORDS.split())
def test_a_bad_word_is_told_with_what_is_allowed_in_one_line(word: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse([word])
    text = str(caught.value)
    assert "\n" not in text
    assert word.partition("=")[0] in text
    assert "1 to " in text or "nr_pcpu_objects" in text or "vrealloc" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"designs": ("off", "maple")}, ", ".join((*POOLS, "off-mutex"))),
        ({"designs": ("off", "off")}, "each design once"),
        ({"designs": ()}, "each design once"),
        ({"workers": "fibres"}, "threads or processes"),
        ({"region": "64M"}, "64 workers hold 3800 MiB"),
        ({"region": "-1"}, "is no size"),
    ],
)
def test_a_plan_that_cannot_work_says_why(more: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Plan(Parameters(nr_threads=64), **more)  # type: ignore[arg-type]


def test_processes_are_limited_by_the_regions_slots() -> None:
    with pytest.raises(ValueError, match="nr_threads=1019: at most 1018 as processes"):
        Plan(Parameters(nr_threads=1019), workers="processes")


def test_the_default_region_holds_what_sixty_four_workers_hold() -> None:
    assert Plan(Parameters(nr_threads=64)).nr_pages == 2 << 20  # 8 GiB: 64 * 15000 pages, twice, rounded up
    assert Plan(Parameters()).nr_pages == 1 << 18


def test_full_fit_is_scaled_so_that_all_workers_fill_a_quarter() -> None:
    plan = Plan(Parameters(nr_threads=64))
    assert plan.nr_fit == min((2 << 20) // 4 // 64 // 2, plan.nr_fit_kernel)
    assert Plan(Parameters(), region="64G").nr_fit == plan.nr_fit_kernel


def test_the_shuffle_leaves_no_test_in_its_place() -> None:
    for seed in range(20):
        order = shuffled(range(13), random.Random(seed))
        assert sorted(order) == list(range(13))
        assert all(place != number for place, number in enumerate(order))  # Sattolo makes one cycle
