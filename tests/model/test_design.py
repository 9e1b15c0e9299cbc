# SPDX-License-Identifier: MIT
"""A preset of the kernel says everything in which its version differs."""

from __future__ import annotations

from vmalloc.model import KERNEL_PRESETS, differences


def test_nodes_are_the_cpus_up_to_128():
    assert [KERNEL_PRESETS["linux-6.9"].nodes(cpus) for cpus in (1, 4, 128, 1024)] == [1, 4, 128, 128]
    assert KERNEL_PRESETS["linux-6.8"].nodes(64) == 1


def test_the_table_of_differences_names_only_choices_that_differ():
    rows = dict(differences())
    assert rows["decay_rounding"][2:4] == ["down, but 1 to 3 are emptied", "down"]
    assert "pool_pages_max" in rows
    assert "lazy_bytes_per_log2_cpu" not in rows
