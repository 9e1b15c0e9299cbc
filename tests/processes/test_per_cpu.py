# SPDX-License-Identifier: MIT
"""Slabs of a CPU are shared by processes; one without restartable sequences leaves them to the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.processes.workers import WAIT_S

import vmalloc

PAGE = os.sysconf("SC_PAGESIZE")
WITHOUT = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
WORK = """
import json, sys, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
before = region.stats()
blocks = [region.alloc(3 * region.stats().page_size) for _ in range(20)]
for block in blocks:
    block.release()
after = region.stats()
print(json.dumps([before.per_cpu, after.nr_slab_hit - before.nr_slab_hit, after.pooled_pages]))
if "shrink" in sys.argv:
    region.shrink()
region.close()
"""


@pytest.fixture
def region():
    """With ranges in the slab of this CPU, on which this process and its children stay."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with vmalloc.Region("16M", pools="percpu", helper=False) as region:
            if region.stats().per_cpu != "on":
                pytest.skip("no restartable sequences here")
            blocks = [region.alloc(3 * PAGE) for _ in range(20)]
            for block in blocks:
                block.release()
            yield region
    finally:
        os.sched_setaffinity(0, before)  # also where it was skipped


def in_another(region, *words, **environment):
    """What a new process told that took and gave back 20 ranges."""
    command = [sys.executable, "-c", WORK, str(region.fileno()), *words]
    done = subprocess.run(
        command, env=os.environ | environment, pass_fds=[region.fileno()], check=True, capture_output=True,
        text=True, timeout=WAIT_S,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_what_one_process_frees_another_takes_on_that_cpu(region):
    assert in_another(region) == ["on", 20, 60]


def test_a_process_without_sequences_says_so_and_leaves_the_slabs_alone(region):
    per_cpu, nr_slab_hit, pooled_pages = in_another(region, **WITHOUT)
    assert per_cpu.startswith("no: no restartable sequences")
    assert (nr_slab_hit, pooled_pages) == (0, 120)  # the slab's, and its own in the pools behind


def test_a_process_without_sequences_gives_back_what_slabs_keep(region):
    in_another(region, "shrink", **WITHOUT)
    assert region.stats().free_pages == region.stats().nr_pages
    block = region.alloc(3 * PAGE)  # past stale entries
    assert region.stats().nr_slab_hit == 0
    block.release()
    region.check()
