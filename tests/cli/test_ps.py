# SPDX-License-Identifier: MIT
"""`vmalloc ps` and `vmalloc info`: who holds what, without disturbing anybody."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.conftest import PAGE

import vmalloc
import vmalloc.stats
from vmalloc._core import STATES
from vmalloc.cli import info, main, ps
from vmalloc.facts import REGION_NAME_BYTES_MAX
from vmalloc.overview import look_at_all

HOLD = """
import sys, time, vmalloc
region = vmalloc.Region.attach(sys.argv[1], helper=False)
block = region.alloc(int(sys.argv[2]))
print("ready", flush=True)
time.sleep(600)
"""


_numbers = itertools.count()


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M", name=f"shown-{os.getpid()}-{next(_numbers)}", limit="8M", helper=False)
    yield region
    region.close()


@pytest.fixture
def holder(region: vmalloc.Region) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLD, region.name, str(3 * PAGE)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def seen(region: vmalloc.Region) -> dict[str, Any]:
    everything = json.loads(CliRunner().invoke(main, ["ps", "--json"]).output)
    return next(one for one in everything if one["name"] == region.name)


def test_a_region_is_told_with_its_processes(region: vmalloc.Region, holder: subprocess.Popen[str]) -> None:
    block = region.alloc(5 * PAGE)
    told = seen(region)
    by_pid = {process["pid"]: process for process in told["processes"]}
    assert set(by_pid) == {os.getpid(), holder.pid}
    assert by_pid[holder.pid]["nbytes"] >= 3 * PAGE  # and what is ready in its magazines
    assert "block = region.alloc" in by_pid[holder.pid]["command"]
    assert told["used_bytes"] == 8 * PAGE
    assert (told["nbytes"], told["limit"], told["uid"]) == (16 << 20, 8 << 20, os.geteuid())
    assert told["health"] == "ok"
    assert told["age_s"] is None or told["age_s"] < 600
    block.release()


def test_stopped_and_dead_processes_are_told(region: vmalloc.Region, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.waitpid(holder.pid, os.WUNTRACED)
    assert seen(region)["health"] == "1 stopped"
    holder.kill()
    holder.wait()
    told = seen(region)
    assert told["health"] == "1 dead not yet recovered"
    assert {p["pid"]: p["state"] for p in told["processes"]}[holder.pid] == "dead"
    region.recover()
    assert seen(region)["health"] == "ok"


def test_it_takes_no_slot_and_waits_for_nobody(region: vmalloc.Region, holder: subprocess.Popen[str]) -> None:
    before = region.processes()
    holder.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    seen(region)
    assert time.monotonic() - begin < 5  # a lock would be waited for 10 s
    assert region.processes() == before


def test_a_hostile_name_does_not_reach_the_terminal(region: vmalloc.Region) -> None:
    fd = os.memfd_create("vmalloc:\x1b[31mred\nrow")
    output = CliRunner().invoke(main, ["ps"]).output
    os.close(fd)
    assert "\x1b" not in output
    assert "\\x1b[31mred\\nrow" in output


def test_in_a_pipe_no_column_is_cut(region: vmalloc.Region) -> None:
    long = vmalloc.Region("1M", name="n" * REGION_NAME_BYTES_MAX, helper=False)
    assert "n" * REGION_NAME_BYTES_MAX in CliRunner().invoke(main, ["ps"]).output
    assert vmalloc.Region.attach(long.name) is long
    long.close()


def test_in_a_small_terminal_the_health_is_seen(region: vmalloc.Region) -> None:
    row = look_at_all()[0]
    row.name, row.uid, row.health = "n" * 100, 0, "full"
    table = ps.lines([row], 60)
    assert all(len(line) <= 60 for line in table)
    assert table[0].endswith("health")
    assert table[1].endswith("full")


def test_info_shows_ranges_as_the_kernel_does(region: vmalloc.Region) -> None:
    block = region.alloc(5 * PAGE)
    lines = CliRunner().invoke(main, ["info", region.name]).output.splitlines()
    held = [line for line in lines if f"pages=5 busy pid={os.getpid()}" in line]
    assert len(held) == 1
    assert held[0].split()[1] == str(5 * PAGE)
    assert lines[-3].startswith("[")
    assert lines[-1] == "requests: 1 served: space 100.0%"
    assert any(line.startswith("free ") and "busy 20K in 1" in line for line in lines)
    told = json.loads(CliRunner().invoke(main, ["info", "--json", region.name]).output)
    assert sum(r["end"] - r["start"] for r in told["ranges"]) == told["nr_pages"]
    block.release()


def test_info_of_many_ranges_shows_the_first_and_says_how_to_see_all(region: vmalloc.Region) -> None:
    blocks = [region.alloc(PAGE) for _ in range(info.MOST + 7)]
    lines = CliRunner().invoke(main, ["info", region.name]).output.splitlines()
    ranges = [line for line in lines if line.startswith("0x")]
    more = next(line for line in lines if line.startswith("..."))
    everything = CliRunner().invoke(main, ["info", region.name, "--all"]).output.splitlines()
    assert len(ranges) == info.MOST
    assert more.endswith("--all shows them")
    assert len([line for line in everything if line.startswith("0x")]) == len(region.ranges())
    del blocks


def test_some_regions_are_chosen_by_name_or_pid(
    region: vmalloc.Region, holder: subprocess.Popen[str]
) -> None:
    with vmalloc.Region("1M", name=f"{region.name}-other", helper=False) as other:
        for which, names in [
            ([region.name], {region.name}),
            ([str(holder.pid)], {region.name}),
            ([region.name, other.name], {region.name, other.name}),
        ]:
            shown = json.loads(CliRunner().invoke(main, ["ps", *which, "--json"]).output)
            assert {one["name"] for one in shown} == names
    done = CliRunner().invoke(main, ["ps", f"{region.name}-none"])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)


def test_a_socket_is_attached_by_unix_and_info_says_so(region: vmalloc.Region, tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    region.serve(path)
    done = CliRunner().invoke(main, ["info", str(path)])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert done.output.endswith(f"it is a socket: unix:{path} attaches what is served there\n")
    assert CliRunner().invoke(main, ["info", f"unix:{path}"]).exit_code == 0


def test_a_line_says_what_its_row_does(region: vmalloc.Region) -> None:
    blocks = [region.alloc(n * PAGE) for n in (1, 300, 2)]
    blocks.pop(1).release()
    region["named"] = blocks[0]
    table, ranges = region._range_table(), region.ranges()
    owner = next(r.owner for r in ranges if r.state == "busy" and not r.shared)
    table.know({owner: 2**63})
    expected = []
    for r in ranges:
        who = ""
        if r.state == "busy":
            who = f" pid={2**63}" if r.owner == owner else f" process={r.owner}"
        marks = " shared" * r.shared + " dirty" * r.dirty
        expected.append(
            f"0x{r.start * PAGE:012x}-0x{r.end * PAGE:012x} {r.nr_pages * PAGE:12d} pages={r.nr_pages} "
            f"{r.state}{who}{marks}\n"
        )
    assert table.lines(0, len(table), True, False)[0] == "".join(expected)
    del blocks


def test_the_table_tells_the_ranges_as_ranges_does(region: vmalloc.Region) -> None:
    blocks = [region.alloc(n * PAGE) for n in (1, 300, 2, 5)]
    blocks.pop(1).release()
    region["named"] = blocks[0]
    table, ranges = region._range_table(), region.ranges()
    table.know({ranges[0].owner: 7})
    assert table.rows() == ranges
    rows = json.loads("[" + table.lines(0, len(table), True, True)[0] + "]")
    assert [vmalloc.stats.Range(**{k: v for k, v in row.items() if k != "pid"}) for row in rows] == ranges
    fields = struct.iter_unpack("QQQII??6x", table)
    assert [(r.start, r.nr_pages, r.id) for r in ranges] == [row[:3] for row in fields]
    assert sum(pages for _, pages in table.totals().values()) == region.nr_pages
    letters = [STATES[state] for state in table.most_of_each(region.nr_pages)]
    assert letters == [r.state for r in ranges for _ in range(r.nr_pages)]
    del blocks


def test_the_map_fits_a_small_terminal(region: vmalloc.Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert len(f"[{info._map(region._range_table(), info._width())}]") == 40


def test_info_shows_the_kernels_areas_by_caller(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "vmallocinfo"
    path.write_text(
        "0xffffc90000000000-0xffffc90000005000   20480 a_caller+0xca/0x100 vmap\n"
        "0xffffc90000005000-0xffffc90000008000   12288 b_caller+0x94/0x3e0 pages=2 vmalloc N0=2\n"
        "0xffffc90000008000-0xffffc9000000d000   20480 a_caller+0xca/0x100 vmap\n"
    )
    lines = CliRunner().invoke(main, ["info", "--kernel", str(path)]).output.splitlines()
    assert lines[1].split() == ["40K", "2", "vmap", "a_caller"]
    assert "3 areas, 52K" in lines[-1]
    assert lines[-3] == "[" + "#" * info.MAP_WIDTH + "]"
