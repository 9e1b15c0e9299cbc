# SPDX-License-Identifier: MIT
"""vmalloc report: one page of a recording, a replay or a region; what goes wrong is one line."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("numpy")

from tests.lab.trace_samples import ALLOC, DATA, FREE, PURGE, sample

import vmalloc
from vmalloc.cli import main
from vmalloc.cli.report import PICTURES

RECORDING = DATA / "guest" / "random_size.trace.xz"
STATE = DATA / "guest" / "random_size.state0.xz"
PLOTLY = "plotly is not there (pip install 'vmalloc[report]'): no page is drawn"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIGURES = {"map", "sizes", "callers", "lifetimes", "pages", "lazy", "purged", "fragmentation"}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)])


def numbers(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


_numbers = itertools.count()


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M", name=f"reported-{os.getpid()}-{next(_numbers)}", helper=False)
    yield region
    region.close()


# ---- numbers, without plotly ----


def test_the_numbers_of_a_recording_are_had_as_json() -> None:
    told = numbers(RECORDING)
    assert told["facts"]["areas"] == "8,008"
    assert told["pools"] == []


def test_a_replay_shows_the_pools_of_a_model() -> None:
    told = numbers(RECORDING, "--replay", "linux-6.9")
    assert told["pools"][0]["name"] == "in pools (linux-6.9)"
    assert max(told["pools"][0]["values"]) > 0


def test_a_start_state_adds_the_areas_that_were_there_before() -> None:
    told = numbers(RECORDING, "--state", STATE)
    assert told["facts"]["areas before"] == "109, by random_size.state0.xz"
    assert "(before)" in told["callers"]["labels"]


def test_a_recording_is_no_start_state() -> None:
    refused(run(RECORDING, "--state", RECORDING, "--json"), 1)


def test_one_picture_of_a_region_shows_who_holds_what(region: vmalloc.Region) -> None:
    blocks = [region.alloc(5 * 4096), region.alloc(4096)]
    told = numbers("--region", region.name, "--seconds", 0)
    assert told["facts"]["pictures"].startswith("1 in ")
    assert told["callers"] == {"labels": [f"process {os.getpid()}"], "values": {"pages": [6.0]}}
    assert told["sizes"]["labels"] == ["1", "2", "3 to 4", "5 to 8"]
    assert told["pages"][0] == {"name": "in busy ranges", "times": told["map"]["times"], "values": [6.0]}
    del blocks


def test_a_region_is_watched_for_the_seconds_asked_for(region: vmalloc.Region) -> None:
    told = numbers("--region", region.name, "--seconds", 0.05)
    assert 1 <= int(told["facts"]["pictures"].split()[0]) <= PICTURES
    assert told["map"] is None


def test_what_was_seen_until_an_interrupt_is_shown(
    region: vmalloc.Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr("vmalloc.cli.report.time", clock)
    result = run("--region", region.name, "--seconds", 3600, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["facts"]["pictures"].startswith("2 in ")
    assert "interrupted" in result.stderr


# ---- what goes wrong ----


def refused(result: Result, status: int, *said: str) -> None:
    assert result.exit_code == status, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for text in said:
        assert text in result.stderr


def test_without_plotly_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vmalloc.cli.report_page", raising=False)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    page = tmp_path / "page.html"
    refused(run(RECORDING, "-o", page), 2, "this needs plotly: pip install 'vmalloc[report]'")
    assert not page.exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused(run(RECORDING, "-o", page), 2, "page.html is there already; --force")
    assert page.read_text() == "mine"


def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    refused(run(RECORDING, "-o", tmp_path / "no" / "page.html"), 1, "No such file or directory")
    refused(run(RECORDING, "-o", tmp_path, "--force"), 1, "Is a directory")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no allocation and no free in it"),
        (b"# tracer: nop\n", "no allocation and no free in it"),
        (b"a letter\nto somebody\n", "not a line of ftrace, trace-cmd or perf"),
        (b"\0\1\2", "binary data"),
        (b"PERFILE2", "perf script -i FILE"),
        (PURGE, "no allocation and no free in it"),
    ],
)
def test_an_empty_or_foreign_recording_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(run(path, "--json"), 1, said)


def test_a_recording_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(run(tmp_path / "none", "--json"), 1, "No such file or directory")


def test_of_a_recording_that_is_cut_off_what_is_there_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "cut.trace"
    path.write_bytes(ALLOC + FREE + ALLOC[:60])
    words = [sys.executable, "-m", "vmalloc.cli", "report", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert "the file ends in the middle of a line" in done.stderr
    told = json.loads(done.stdout)
    assert told["facts"]["areas"] == "1"
    assert "the file ends in the middle of a line" in told["notes"][0]


def test_a_compressed_recording_that_is_cut_off_says_so(tmp_path: Path) -> None:
    whole = lzma.compress(sample("live_admin.trace"))
    path = tmp_path / "cut.trace.xz"
    path.write_bytes(whole[: len(whole) // 2])
    told = numbers(path)
    assert told["notes"][0].startswith("line ")


def test_a_region_that_is_not_there_is_refused() -> None:
    refused(run("--region", "no-such", "--json"), 2, "no-such")


@pytest.mark.parametrize(
    "words",
    [
        ["--json"],
        [RECORDING, "--region", "frames", "--json"],
        [RECORDING],
        [RECORDING, "--seconds", "1", "--json"],
        ["--region", "frames", "--replay", "linux-6.9", "--json"],
        ["--region", "frames", "--state", STATE, "--json"],
        [RECORDING, "--state", STATE, "--vmallocinfo", STATE, "--json"],
    ],
    ids=[
        "nothing",
        "both",
        "no output",
        "seconds of a recording",
        "replay of a region",
        "state of a region",
        "two starts",
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words: list[object]) -> None:
    refused(run(*words), 2)


def test_one_page_shows_one_design() -> None:
    result = run(RECORDING, "--replay", "all", "--json")
    assert (result.exit_code, "one page shows one design" in result.stderr) == (2, True)


# ---- the page ----


class Fetched(HTMLParser):
    """Whatever a browser would have to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    pytest.importorskip("plotly", reason=PLOTLY)
    page = tmp_path / "page.html"
    result = run(RECORDING, "-o", page)
    assert result.exit_code == 0, result.output
    return page


def test_a_page_is_one_file_with_every_figure(page: Path) -> None:
    parser = Fetched()
    parser.feed(page.read_text())
    assert parser.found == []
    assert {name.removeprefix("figure-") for name in parser.ids if name.startswith("figure-")} == FIGURES


def test_a_page_has_no_button_that_sends_its_data_away(page: Path) -> None:
    text = page.read_text()
    figures = text[text.index("<h1>") :]
    assert figures.count('"showSendToCloud": false') == len(FIGURES)
    assert "http" not in figures


def test_a_page_has_no_colours(page: Path) -> None:
    text = page.read_text()
    figures = text[text.index("<h1>") :]
    drawn = "".join(re.findall(r"Plotly\.newPlot\((.*?)\{\"template\"", figures, re.S))
    colours = set(re.findall(r"#[0-9a-fA-F]{6}", drawn))
    assert colours
    assert {c for c in colours if not c[1:3] == c[3:5] == c[5:7]} == set()


def test_a_page_of_a_region_is_made(region: vmalloc.Region, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason=PLOTLY)
    block = region.alloc(4096)
    page = tmp_path / "page.html"
    result = run("--region", region.name, "--seconds", 0, "-o", page)
    assert result.exit_code == 0, result.output
    assert f"process {os.getpid()}" in page.read_text()
    del block


def test_force_replaces_a_page(page: Path) -> None:
    page.write_text("old")
    assert run(RECORDING, "-o", page, "--force").exit_code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_names_of_tasks_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason=PLOTLY)
    path = tmp_path / "evil.trace"
    path.write_bytes(ALLOC.replace(b"bash-", b"</script><b>-") + FREE)
    page = tmp_path / "page.html"
    assert run(path, "-o", page).exit_code == 0
    assert "</script><b>" not in page.read_text()


USE = """
<script>
const point = (where, type, x, y) =>
  where.dispatchEvent(new MouseEvent(type, {bubbles: true, clientX: x, clientY: y, view: window}));
window.addEventListener("load", () => setTimeout(() => {
  const figure = document.getElementById("figure-lazy");
  figure.scrollIntoView();
  const drag = figure.querySelector(".nsewdrag"), box = drag.getBoundingClientRect();
  const before = figure._fullLayout.xaxis.range.slice();
  point(drag, "mousedown", box.left + 50, box.top + 50);
  point(document, "mousemove", box.left + 250, box.top + 150);
  point(document, "mouseup", box.left + 250, box.top + 150);
  setTimeout(() => {
    const after = figure._fullLayout.xaxis.range;
    document.body.dataset.zoomed = after[0] > before[0] && after[1] < before[1];
    const entry = figure.querySelector(".legendtoggle");
    point(entry, "mousedown", 0, 0);
    point(document, "mouseup", 0, 0);
    point(entry, "mouseup", 0, 0);
    setTimeout(() => {
      document.body.dataset.first = figure._fullData[0].visible;
      document.body.dataset.errors = JSON.stringify(window.errors);
    }, 1500);
  }, 1500);
}, 500));
</script>
</body>
"""
LISTEN = """
<script>
window.errors = [];
window.addEventListener("error", event => window.errors.push(event.message));
document.addEventListener("securitypolicyviolation", event => window.errors.push(event.blockedURI));
console.error = console.warn = (...said) => window.errors.push(said.join(" "));
</script>
<title>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to look at the page with")
def test_in_a_browser_the_page_draws_zooms_and_hides_lines_without_an_error(page: Path) -> None:
    text = page.read_text()
    page.write_text(text.replace("<title>", LISTEN, 1).replace("</body>", USE, 1))
    words = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}/profile",
        "--window-size=1100,900", "--virtual-time-budget=10000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(words, capture_output=True, text=True, timeout=150).stdout
    body = re.findall(r"<body[^>]*>", shown)[-1]
    assert 'data-errors="[]"' in body
    assert 'data-zoomed="true"' in body
    assert 'data-first="legendonly"' in body
    drawn = re.findall(r'id="figure-(\w+)" class="plotly-graph-div[^"]*js-plotly-plot', shown)
    assert set(drawn) == FIGURES
    assert 'data-title="Zoom"' in shown
    assert 'data-title="Share' not in shown
