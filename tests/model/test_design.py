# SPDX-License-Identifier: MIT
"""A preset says everything in which its version differs."""

from __future__ import annotations

from vmalloc.model import PRESETS, differences


def test_the_presets_are_the_six_of_the_design():
    assert list(PRESETS) == ["linux-6.8", "patch-v3", "linux-6.9", "linux-6.16", "llist", "vmalloc"]


def test_nodes_are_the_cpus_up_to_128():
    assert [PRESETS["linux-6.9"].nodes(cpus) for cpus in (1, 4, 128, 1024)] == [1, 4, 128, 128]
    assert PRESETS["linux-6.8"].nodes(64) == 1


def test_the_table_of_differences_names_only_choices_that_differ():
    rows = dict(differences())
    assert rows["decay_rounding"][2:4] == ["down, but 1 to 3 are emptied", "down"]
    assert "guard_pages" in rows
    assert "pool_pages_max" in rows
    assert "zone_pages" not in rows


def test_our_pools_keep_32_mib_of_a_size_but_16_ranges_in_any_case():
    design = PRESETS["vmalloc"]
    assert [design.pool_capacity(pages) for pages in (1, 64, 256, 1024)] == [8192, 128, 32, 16]
    assert PRESETS["linux-6.16"].pool_capacity(1) is None
