# SPDX-License-Identifier: MIT
"""vmalloc simulate, compare: results as asked for; bad input is one clear line and a non-zero exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmalloc.cli import main

SMALL = ["--cpus", "4", "run_test_mask=1", "test_loop_count=200"]


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, result.output


def test_a_run_is_shown_as_a_table() -> None:
    code, output = invoke("simulate", "--shrunk", "1", *SMALL)
    assert code == 0
    assert "linux-6.9, 4 threads on 4 CPUs of threadripper-3970x" in output
    assert "waiting for locks" in output


def test_a_run_is_written_as_json() -> None:
    code, output = invoke("simulate", "--json", "-", "--shrunk", "1", *SMALL)
    assert code == 0
    assert json.loads(output)["pairs"] == 800


def test_designs_machines_and_costs_are_listed_with_their_sources() -> None:
    code, output = invoke("simulate", "--list")
    assert code == 0
    assert "vmalloc/magazine" in output
    assert "epyc-448" in output
    assert "core-to-core measurements of Zen 2" in output


def test_a_comparison_is_a_table_and_a_second_one_reads_the_file(tmp_path: Path) -> None:
    store = str(tmp_path / "cells.parquet")
    words = ["compare", "--designs", "linux-6.9,linux-6.9:nodes_max=2", "--seeds", "2", "--jobs", "1"]
    first = invoke(*words, "--store", store, *SMALL)
    assert first[0] == 0
    assert "| linux-6.9,nodes_max=2 | 4 |" in first[1]
    assert invoke(*words, "--store", store, *SMALL) == first


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["simulate", "--design", "linux-9"], "there is no design 'linux-9'"),
        (["simulate", "--machine", "nowhere"], "there is no machine 'nowhere'"),
        (["simulate", "--machine", "nowhere.toml"], "nowhere.toml: No such file"),
        (["simulate", "--topology", "2x2"], "topology '2x2'"),
        (["simulate", "--cpus", "7", "--topology", "1x2x3x4"], "has 24 CPUs, not 7"),
        (["simulate", "--cost", "wake"], "wanted NAME=NUMBER"),
        (["simulate", "--cost", "nothing=1"], "there is no cost 'nothing'"),
        (["simulate", "--cost", "line_core=-1"], "cost line_core=-1: wanted 0 to 1e+09"),
        (["simulate", "--cost", "line_core=nan"], "cost line_core=nan"),
        (["simulate", "--cpus", "0"], "--cpus 0: wanted a number from 1 on; leave it out for the default"),
        (["simulate", "--cpus", "-3"], "-3 CPUs: wanted 1 to 4096"),
        (["simulate", "--shrunk", "0"], "--shrunk 0"),
        (["simulate", "--seed", "-1"], "seed -1: wanted 0 to"),
        (["simulate", "--shrink-every-us", "-5"], "a shrink every -5 us"),
        (["compare", "--shrunk", "0"], "--shrunk 0"),
        (["simulate", "use_huge=1"], "use_huge is not simulated"),
        (["simulate", "run_test_mask=4096"], "run_test_mask=4096"),
        (["simulate", "--json", "no/where/x.json"], "there is no directory"),
        (["compare", "--question", "why"], "--question why: there are llist"),
        (["compare", "--cpus", "4,x"], "--cpus x"),
        (["compare", "--designs", ","], "--designs names none"),
        (["compare", "--designs", "linux-9"], "there is no design"),
        (["compare", "--plot", "no/where.png"], "there is no directory"),
        (["compare", "--store", "no/where.parquet"], "--store: there is no directory"),
        (["calibrate", "--out", "here.json"], "wanted NAME.toml"),
    ],
)
def test_bad_input_is_one_clear_line(words: list[str], line: str) -> None:
    code, output = invoke(*words)
    assert code != 0
    assert line in output
    assert len(output.strip().splitlines()) == 1


def test_a_foreign_file_is_one_clear_line(tmp_path: Path) -> None:
    store = tmp_path / "cells.parquet"
    store.write_text("nothing")
    code, output = invoke("compare", "--seeds", "1", "--jobs", "1", "--store", str(store), *SMALL)
    assert code != 0
    assert "holds no cells of a sweep" in output
    assert len(output.strip().splitlines()) == 1
