# SPDX-License-Identifier: MIT
"""vmalloc replay prints, writes JSON and says in one line what is wrong."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmalloc.cli.replay import command
from vmalloc.lab import replay
from vmalloc.lab.events import ALLOC, FREE, Event
from vmalloc.lab.predict import Prediction
from vmalloc.model import KERNEL_PRESETS, PAGE

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


def short_recording() -> replay.Recording:
    """Two seconds in which ever new addresses are freed at once: 1,024 pages each."""
    size, start = 1024 * PAGE, 0xFFFFC90000000000
    events = []
    for n in range(9):
        at, addr = n * 250_000_000, start + n * size
        events.append(Event(at, 0, 1, "a", ALLOC, addr, size, PAGE, start, start + (1 << 40)))
        events.append(Event(at + 1, 0, 1, "a", FREE, addr))
    return replay.Recording(events, (start, start + (1 << 40)), cpus=1)


@pytest.mark.parametrize(("purges", "seconds"), [(1, 7), (2, 4), (0, None)])
def test_a_recording_that_is_too_short_says_how_long_to_record(purges: int, seconds: int | None) -> None:
    recording = short_recording()
    prediction = Prediction(design="linux-6.16", purges=purges)
    prediction.page.add(False)
    design = KERNEL_PRESETS["linux-6.16"]
    if seconds is None:  # 9 times 1,024 pages in two seconds, and a bit
        seconds = math.ceil(2.000000001 * 3 / (9 * 1024 / design.lazy_pages_max(1)))
    told = replay.too_short(recording, design, prediction)
    assert told == f"too short: {purges} purges seen, record about {seconds} seconds"
    prediction.warm.add(True)
    assert replay.too_short(recording, design, prediction) is None


def test_a_recording_that_is_too_short_is_not_said_to_be_wrong(tmp_path: Path) -> None:
    lines = lzma.decompress((GUEST / "random_size_1t.trace.xz").read_bytes()).decode().splitlines()
    (tmp_path / "short.trace").write_text("\n".join(lines[:400]) + "\n")
    result = run(tmp_path / "short.trace", "--predict", "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert re.search(r"too short: \d+ purges seen", result.output)
    assert "0.000%" not in result.output
    assert "addresses exact" not in result.output
    assert "exact" in json.loads((tmp_path / "out.json").read_text())


def test_the_warm_figure_leads() -> None:
    output = run(
        GUEST / "vm_map_ram_1t.trace.xz", "--predict", "--design", "linux-6.9",
        "--state", GUEST / "vm_map_ram_1t.state0.xz",
    ).output  # fmt: skip
    rows = [line for line in output.splitlines() if "│" in line]
    assert "exact after warm-up" in rows[0]


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


def test_the_model_serves_a_recording_in_each_design_too(tmp_path):
    out = tmp_path / "out.json"
    trace = GUEST / "random_size_1t.trace.xz"
    result = run(trace, "--on", "model", "--pools", "off,percpu,magazine", "--json", out)
    assert result.exit_code == 0, result.output
    designs = json.loads(out.read_text())["designs"]
    assert [design["design"] for design in designs] == ["off", "percpu", "magazine"]
    off, percpu, magazine = (design["hit_share"] for design in designs)
    assert off == {"space": 1.0}
    assert percpu["slab"] > 0.5
    assert magazine["magazine"] > 0.5


def test_pools_of_a_kernels_design_are_refused():
    result = run(GUEST / "pcpu_1t.trace.xz", "--on", "model", "--design", "linux-6.9", "--pools", "off")
    assert result.exit_code == 2
    assert "--pools goes with --on core" in result.output


def test_the_core_serves_in_pool_designs_whatever_design_the_model_would_have():
    trace = GUEST / "pcpu_1t.trace.xz"
    result = run(trace, "--on", "core", "--design", "linux-6.9", "--pools", "off", "--repeat", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("target", ["core", "model"])
@pytest.mark.parametrize(("pools", "told"), [("lockfree", "lockfree"), ("off,free", "free"), ("", "nothing")])
def test_an_unknown_pool_design_is_told_with_those_there_are(target, pools, told):
    result = run(GUEST / "random_size_1t.trace.xz", "--on", target, "--pools", pools)
    assert result.exit_code == 1
    assert f" {told}: the pool designs are off, locked, llist, magazine, tagged, percpu" in result.output


def test_a_trace_is_not_a_state():
    result = run(GUEST / "pcpu_1t.trace.xz", "--predict", "--state", GUEST / "pcpu_1t.trace.xz")
    assert result.exit_code == 1
    assert "not a line of a state dump" in result.output


def test_one_must_say_what_to_do():
    result = run(GUEST / "pcpu_1t.trace.xz")
    assert result.exit_code == 2
    assert "--predict (a kernel's addresses)" in " ".join(result.output.split())


def test_a_machine_may_leave_out_cpu_numbers(tmp_path):
    line = (
        "            x-7     [{:03}] ..... {}.000000: alloc_vmap_area: va_start: {} size=8192 align=1 "
        "vstart=0xffffc90000000000 vend=0xffffe8ffffffffff failed=0\n"
    )
    sparse = tmp_path / "sparse.trace"
    sparse.write_text("".join(line.format(cpu, cpu, 0xFFFFC90000000000 + cpu * 8192) for cpu in (0, 2, 9)))
    assert replay.load(sparse).cpus == 10  # nothing says otherwise
    assert run(sparse, "--predict", "--cpus", "3").exit_code == 0
    refused = run(sparse, "--predict", "--cpus", "2")
    assert "3 CPUs are at work in it, so the machine has more than 2" in refused.output


def test_an_empty_recording_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty.trace").write_text("")
    result = run(tmp_path / "empty.trace", "--predict")
    assert result.exit_code != 0
    assert "empty.trace: no allocation in it: nothing to replay" in result.output
