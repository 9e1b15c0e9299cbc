# SPDX-License-Identifier: MIT
"""What a run is turned into: means, ratios, the kernel's lines, the file."""

from __future__ import annotations

import io
import json
import re

from rich.console import Console

from vmalloc.suite import TESTS, Parameters, Run
from vmalloc.suite.report import as_json, dmesg, headline, table
from vmalloc.suite.results import Tally, WorkerTally, results_of

TWO = TESTS[:2]


def workers(usec: int, failed: int = 0) -> list[WorkerTally]:
    tally = Tally(
        passed=2 - failed, failed=failed, ns=2 * usec * 1000, lock_wait_ns=usec * 500, error=-28 * failed
    )
    return [WorkerTally({0: tally, 1: Tally(2, 0, 0, 2000, 0)}, cycles=5) for _ in range(4)]


def a_run(failed: int = 0) -> Run:
    parameters = Parameters(nr_threads=4, run_test_mask=3, test_repeat_count=2)
    found = Run(parameters, ("off", "magazine"), "threads", 1 << 30, 10, 16384)
    for design, usec in (("off", 1000), ("magazine", 50)):
        found.workers[design] = workers(usec, failed)
        found.results += results_of(design, TWO, found.workers[design], 2, usec * 3000)
        found.single += results_of(design, TWO, workers(usec // 2 + 25)[:1], 2, usec * 1000)
    return found


def test_a_line_has_sums_the_mean_time_and_the_share_of_waiting() -> None:
    line = a_run().results[0]
    assert (line.pools, line.workers, line.test) == ("off", 4, "fix_size_alloc")
    assert (line.passed, line.failed, line.usec) == (8, 0, 1000.0)
    assert line.lock_wait_share == 0.25


def test_the_line_all_has_the_wall_time() -> None:
    line = a_run().results[2]
    assert (line.test, line.passed, line.usec) == ("all", 16, 3000.0)


def test_ratios_are_to_off_with_many_workers_and_with_one() -> None:
    found = a_run()
    magazine = found.results[3]
    assert found.speedup(magazine) == 1000 / 50
    assert found.speedup(magazine, single=True) == 525 / 50
    found.results = [line for line in found.results if line.pools != "off"]
    assert found.speedup(magazine) is None


def test_failures_are_counted_and_named() -> None:
    found = a_run(failed=1)
    assert found.failed == 8
    assert found.results[0].error == "No space left on device"


def test_the_table_shows_every_design_under_every_test() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(table(a_run(failed=1)))
    text = out.getvalue()
    assert text.count("magazine") == 3
    assert "20.00x" in text
    assert "4 failed (No space left on device)" in text
    assert "L=10 (the kernel's 16384" in headline(a_run())


def test_dmesg_has_the_newest_kernels_lines() -> None:
    lines = list(dmesg(a_run()))
    assert lines[1] == (
        "Summary: fix_size_alloc_test passed: 2 failed: 0 xfailed: 0 repeat: 2 loops: 10000 avg: 1000 usec"
    )
    summary = r"Summary: \w+_test passed: \d+ failed: \d+ xfailed: \d+ repeat: 2 loops: 10000 avg: \d+ usec"
    cycles = r"All test took worker(\d)=\d+ cycles"
    assert len([line for line in lines if re.fullmatch(summary, line)]) == 2 * 4 * 2
    assert [m[1] for line in lines if (m := re.fullmatch(cycles, line))] == list("01230123")


def test_its_json_is_a_list_of_flat_objects() -> None:
    lines = json.loads(json.dumps(as_json(a_run())))
    assert [(line["pools"], line["test"]) for line in lines] == [
        (pools, test) for pools in ("off", "magazine") for test in ("fix_size_alloc", "full_fit_alloc", "all")
    ]
    assert lines[0] == {
        "pools": "off", "workers": 4, "test": "fix_size_alloc", "passed": 8, "failed": 0, "xfailed": 0,
        "usec": 1000.0, "lock_wait_share": 0.25,
    }  # fmt: skip
