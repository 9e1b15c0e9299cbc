# SPDX-License-Identifier: MIT
"""vmalloc replay prints, writes JSON and says in one line what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmalloc.cli.replay import command

GUEST = Path(__file__).parents[1] / "data" / "guest"


def run(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_prediction_is_written_as_json(tmp_path):
    out = tmp_path / "out.json"
    result = run(
        GUEST / "vm_map_ram_1t.trace.xz",
        "--predict",
        "--design",
        "linux-6.9",
        "--state",
        GUEST / "vm_map_ram_1t.state0.xz",
        "--end-state",
        GUEST / "vm_map_ram_1t.state1.xz",
        "--json",
        out,
    )
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert told["design"] == "linux-6.9"
    assert told["exact_page_aligned"] == 1.0
    assert told["within_bounds"] == 1.0
    assert told["level_right"] == 1.0
    assert told["misses"] == {}
    assert told["end_state_equal"] is True


def test_all_designs_are_ranked(tmp_path):
    out = tmp_path / "out.json"
    result = run(GUEST / "random_size_1t.trace.xz", "--predict", "--design", "all", "--json", out)
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert told["best"] == "6.9 to 6.15"
    assert {design["design"] for design in told["designs"]} == {
        "linux-6.8",
        "patch-v3",
        "linux-6.9",
        "linux-6.16",
        "llist",
    }


def test_our_own_design_predicts_no_kernel():
    result = run(GUEST / "random_size_1t.trace.xz", "--predict", "--design", "vmalloc")
    assert result.exit_code == 2
    assert "vmalloc is none of its designs" in result.output


def test_the_model_runs_on_its_own(tmp_path):
    out = tmp_path / "out.json"
    result = run(GUEST / "random_size_1t.trace.xz", "--on", "model", "--design", "vmalloc", "--json", out)
    assert result.exit_code == 0, result.output
    assert sum(json.loads(out.read_text())["hit_share"].values()) == pytest.approx(1.0)


def test_the_core_serves_a_recording_in_each_design(tmp_path):
    out = tmp_path / "out.json"
    trace = GUEST / "random_size_1t.trace.xz"
    result = run(trace, "--on", "core", "--pools", "off,magazine", "--repeat", 1, "--json", out)
    assert result.exit_code == 0, result.output
    off, magazine = json.loads(out.read_text())["designs"]
    assert (off["pools"], magazine["pools"]) == ("off", "magazine")
    assert off["failed"] == magazine["failed"] == 0
    assert off["hit_share"]["magazine"] == off["hit_share"]["pool"] == 0.0
    assert magazine["hit_share"]["magazine"] > 0.5
    for design in (off, magazine):
        assert sum(design["hit_share"].values()) == pytest.approx(1.0)


def test_an_unknown_pool_design_is_told_with_those_there_are():
    result = run(GUEST / "random_size_1t.trace.xz", "--on", "core", "--pools", "lockfree")
    assert result.exit_code == 1
    assert "off, locked, llist, magazine, tagged, percpu" in result.output


def test_a_trace_is_not_a_state():
    result = run(GUEST / "pcpu_1t.trace.xz", "--predict", "--state", GUEST / "pcpu_1t.trace.xz")
    assert result.exit_code == 1
    assert "not a line of a state dump" in result.output


def test_one_must_say_what_to_do():
    assert run(GUEST / "pcpu_1t.trace.xz").exit_code == 2
