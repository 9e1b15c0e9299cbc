# SPDX-License-Identifier: MIT
"""/proc/vmallocinfo: typed areas, and what its addresses are worth."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.lab.trace_samples import ALLOC, DATA, SAMPLES

from vmalloc.lab.events import Problems
from vmalloc.lab.trace import Area, Problem, TraceError, read_events, read_vmallocinfo
from vmalloc.lab.vmallocinfo import Summary, parse_vmallocinfo, summarize


def test_every_line_of_a_snapshot_is_an_area_with_a_kind():
    info = read_vmallocinfo(SAMPLES / "vmallocinfo.real.xz")
    assert info.addresses == "real"
    assert info.problems == []
    kinds = {"vmalloc": 558, "vmap": 4, "ioremap": 29, "vm_map_ram": 2, "unpurged": 28}
    assert Counter(area.kind for area in info) == kinds
    assert all(area.end - area.start == area.size for area in info)


def test_an_area_has_its_caller_pages_flags_and_nodes(tmp_path):
    lines = [
        "0xffffc9000000c000-0xffffc90000011000   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=3 N1=1",
        "0xffffc90000081000-0xffffc90000083000    8192 vp_map+0x12d/0x1c0 [virtio] phys=0x4000180000 ioremap",
        "0xffffc90000090000-0xffffc90000092000    8192 big+0x1/0x2 pages=1 vmalloc vpages N0=1",
    ]
    (tmp_path / "info").write_text("\n".join(lines) + "\n")
    clone, ioremap, pages = read_vmallocinfo(tmp_path / "info")
    start = 0xFFFFC9000000C000
    caller = "kernel_clone+0x94/0x3e0"
    assert clone == Area(
        start, start + 20480, 20480, "vmalloc", caller, pages=4, node_pages={0: 3, 1: 1}, line=1
    )
    assert (ioremap.kind, ioremap.phys, ioremap.caller) == (
        "ioremap",
        0x4000180000,
        "vp_map+0x12d/0x1c0 [virtio]",
    )
    assert pages.flags == {"vpages"}


@pytest.mark.parametrize(("name", "worth"), [("hashed", "hashed"), ("hidden", "hidden")])
def test_addresses_that_are_no_addresses_are_told_and_sizes_stay(name, worth):
    info = read_vmallocinfo(SAMPLES / f"vmallocinfo.{name}.xz")
    real = read_vmallocinfo(SAMPLES / "vmallocinfo.real.xz")
    assert info.addresses == worth
    assert str(info.problems[0]).startswith(f"line 1: addresses are {worth}")
    assert Counter(area.size for area in info) == Counter(area.size for area in real)


def test_damaged_lines_are_skipped_and_told(tmp_path):
    (tmp_path / "info").write_text("0xffffc90000000000-0xffffc90000005000   20480 vm_map_ram\n0xffffc9")
    info = read_vmallocinfo(tmp_path / "info")
    assert [area.kind for area in info] == ["vm_map_ram"]
    assert str(info.problems[0]) == "line 2: not a line of /proc/vmallocinfo, skipped: '0xffffc9'"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "info").write_bytes(ALLOC)
    with pytest.raises(TraceError, match="not /proc/vmallocinfo"):
        read_vmallocinfo(tmp_path / "info")


def test_a_snapshot_and_the_events_after_it_give_the_next_snapshot():
    busy = {area.start for area in read_vmallocinfo(DATA / "live/l8_snap_before.real.xz").busy()}
    for event in read_events(DATA / "live/l8_consist.trace.xz"):
        if event.kind == "alloc" and not event.failed:
            busy.add(event.addr)
        elif event.kind == "free":
            busy.discard(event.addr)
    after = read_vmallocinfo(DATA / "live/l8_snap_after.real.xz").busy()
    assert busy == {area.start for area in after}


def test_ptrval_addresses_are_hidden_and_a_cut_line_is_noted_and_used(tmp_path):
    path = tmp_path / "vmallocinfo"
    path.write_text(
        "0x(ptrval)-0x(ptrval)    8192 load_module+0x1/0x2 pages=1 vmalloc\n"
        "0x(____ptrval____)-0x(____ptrval____)   12288 vmap_pages+0x1/0x2 pages=2 vmalloc\n"
        "0xffffc90000000000-0xffffc90000002000    8192 gen_pool_add+0x1/0x2 pages="
    )
    problems: list[Problem] = []
    info = read_vmallocinfo(path, problems=problems)
    assert info.addresses == "hidden"
    assert [area.size for area in info] == [8192, 12288, 8192]
    assert any("cut" in problem.what for problem in problems)


@pytest.mark.parametrize("name", ["real", "hashed", "hidden"])
def test_a_summary_says_in_all_what_the_areas_say_one_by_one(name):
    path = SAMPLES / f"vmallocinfo.{name}.xz"
    areas, summary = read_vmallocinfo(path), summarize(path)
    assert (len(summary), summary.addresses) == (len(areas), areas.addresses)
    nbytes: Counter[tuple[str, str]] = Counter()
    for area in areas:
        nbytes[area.caller.partition("+")[0], area.kind] += area.size
    assert {(caller, kind): n for caller, kind, _, n in summary.groups()} == nbytes


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize(
    "line",
    [
        "0xffffc90000000000-0xffffc90000005000   20480 vm_map_ram",
        "0xffffc90000000000-0xffffc90000005000   20480",
        "0xffffc90000000000-0xffffc90000005000   20480 caller+0x1/0x2 pages=x vmalloc",
        "0xffffc90000000000-0xffffc90000005000 99999999999999999999 vm_map_ram",
        "0x12345678901234567-0x1   1 vm_map_ram",
        "0xffffc90000000000 0xffffc90000005000   20480 vm_map_ram",
        "0xffffc9",
        "  ",
        "",
    ],
)
def test_a_summary_and_the_areas_agree_on_odd_lines(line, end):
    text = (
        "0xffffc90000007000-0xffffc90000009000    8192 other+0x1/0x2 pages=1 vmalloc\n" + line + end
    ).encode()
    there, noted = Problems(), Problems()
    areas, summary = parse_vmallocinfo(text, there), Summary(text, noted)
    assert sum(n for *_, n in summary.groups()) == sum(area.size for area in areas)
    assert (len(summary), summary.addresses) == (len(areas), areas.addresses)
    assert {p.what for p in noted} == {p.what for p in there}


def test_a_map_shows_where_the_areas_lie():
    page, start = 4096, 0xFFFFC90000000000

    def line(first, last, what):
        return f"0x{start + first * page:x}-0x{start + last * page:x} {(last - first) * page} {what}\n"

    text = line(0, 2, "vm_map_ram") + line(7, 8, "vm_map_ram") + line(2, 4, "unpurged vm_area")
    assert Summary(text.encode(), Problems()).map(4) == (start, start + 8 * page, "#~.#")
    assert Summary(text.encode(), Problems()).map(1)[2] == "+"
