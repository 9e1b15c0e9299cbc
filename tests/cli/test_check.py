# SPDX-License-Identifier: MIT
"""`vmalloc check`: what it finds, mends, saves, says and exits with."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.conftest import PAGE

import vmalloc
from vmalloc.cli import main

SECRET = b"what only its owner should see " * 100


def check(*words: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M", name=f"checked-{os.getpid()}", nodes=1)
    region["secret"] = region.array(bytearray(SECRET), dtype="u1")
    blocks = [region.alloc(n * PAGE) for n in (1, 2, 3, 300, 7)]
    del blocks
    yield region
    region.close()


def path_of(region: vmalloc.RegionBase) -> str:
    return f"/proc/{os.getpid()}/fd/{region.fileno()}"


def counter_of_free_pages(fd: int, nr_free: int) -> int:
    """Where a header says that so many pages are free: the one place in it that has that number."""
    header = os.pread(fd, 2 * PAGE, 0)
    places = [i for i in range(0, 2 * PAGE, 8) if struct.unpack_from("Q", header, i)[0] == nr_free]
    assert len(places) == 1
    return places[0]


def scribble(fd: int, nr_free: int) -> None:
    """A counter that lies: a hint, so that it can be mended."""
    os.pwrite(fd, struct.pack("Q", 5), counter_of_free_pages(fd, nr_free))


def forge_last_word(image: Path, region: vmalloc.Region, word: int) -> None:
    """The last range is free; its word is the last thing in an image that says so."""
    last = region.ranges()[-1]
    assert last.state == "free"
    with open(image, "r+b") as f, mmap.mmap(f.fileno(), 0) as bytes_of_image:
        at = bytes_of_image.rfind(struct.pack("Q", last.nr_pages << 7 | (1 << 4 if last.dirty else 0)))
        bytes_of_image[at : at + 8] = struct.pack("Q", word)


def saved(region: vmalloc.Region, tmp_path: Path) -> Path:
    image = tmp_path / "region.image"
    done = check("--dump", image, path_of(region))
    assert done.exit_code == 0, done.output
    return image


def test_nothing_to_find_is_exit_status_0(region: vmalloc.Region) -> None:
    done = check(path_of(region))
    assert done.exit_code == 0, done.output
    assert "0 findings" in done.output


def test_a_live_region_says_which_checks_were_left_out(region: vmalloc.Region) -> None:
    live = json.loads(check("--json", path_of(region)).output)
    assert "magazines" in live["left_out"]
    assert "magazines" not in live["checked"]
    at_rest = json.loads(check("--json", "--at-rest", path_of(region)).output)
    assert at_rest["left_out"] == []
    assert at_rest["checked"] == live["checked"] + live["left_out"]


def test_states_are_counted_as_the_words_say(region: vmalloc.Region) -> None:
    states = json.loads(check("--json", path_of(region)).output)["states"]
    assert states["busy"] == {"ranges": 1, "pages": 1}
    assert states["cached"]["pages"] >= 1 + 2 + 3 + 7  # a miss may have taken more than one
    assert sum(count["pages"] for count in states.values()) == region.nr_pages


def test_a_finding_is_exit_status_1_and_repair_says_what_it_mended(region: vmalloc.Region) -> None:
    nr_free = region.stats().free_pages
    scribble(region.fileno(), nr_free)
    found = check(path_of(region))
    assert found.exit_code == 1
    assert f"free pages: counter 5, words {nr_free}" in found.output
    mended = check("--repair", path_of(region))
    assert mended.exit_code == 0, mended.output
    assert f"mended: free pages: counter was 5, is {nr_free}" in mended.output
    region.check(at_rest=True)


def test_read_only_looks_and_takes_no_slot(region: vmalloc.Region) -> None:
    done = json.loads(check("--json", "--read-only", path_of(region)).output)
    assert done["readonly"]
    assert done["stats"]["nr_processes"] == 1
    assert done["findings"] == []


def test_an_image_has_the_metadata_and_not_the_data(region: vmalloc.Region, tmp_path: Path) -> None:
    image = saved(region, tmp_path)
    assert SECRET[:31] not in image.read_bytes()
    assert image.stat().st_mode & 0o777 == 0o600
    assert image.stat().st_blocks * 512 < region.stats().resident_bytes
    whole = tmp_path / "whole.image"
    assert check("--dump", whole, "--with-data", path_of(region)).exit_code == 0
    assert SECRET[:31] in whole.read_bytes()


def test_an_image_of_a_region_at_rest_is_checked_like_the_region(
    region: vmalloc.Region, tmp_path: Path
) -> None:
    live = json.loads(check("--json", "--at-rest", path_of(region)).output)
    image = json.loads(check("--json", "--at-rest", saved(region, tmp_path)).output)
    assert image["source"] == "image"
    assert image["region"] == region.id
    for key in ("findings", "states", "checked"):
        assert image[key] == live[key]


def test_an_image_is_mended_in_memory_and_never_changed(region: vmalloc.Region, tmp_path: Path) -> None:
    image = saved(region, tmp_path)
    with open(image, "r+b") as f:
        scribble(f.fileno(), region.stats().free_pages)
    before = image.read_bytes()
    assert check(image).exit_code == 1
    mended = check("--repair", "--json", image)
    assert mended.exit_code == 0, mended.output
    assert any("free pages: counter was" in text for text in json.loads(mended.output)["mended"])
    assert image.read_bytes() == before
    assert check(image).exit_code == 1
    assert vmalloc.Region.attach(path_of(region)) is region


def test_words_that_do_not_parse_are_told_and_not_mended(region: vmalloc.Region, tmp_path: Path) -> None:
    image = saved(region, tmp_path)
    forge_last_word(image, region, (region.ranges()[-1].nr_pages + 1) << 7)  # past the region's end
    found = json.loads(check("--json", image).output)
    assert found["states"] is None
    assert any("stop parsing at page" in text for text in found["findings"])
    assert check("--repair", image).exit_code == 1


def test_a_state_that_does_not_exist_is_told(region: vmalloc.Region, tmp_path: Path) -> None:
    image = saved(region, tmp_path)
    forge_last_word(image, region, region.ranges()[-1].nr_pages << 7 | 9)
    found = json.loads(check("--json", image).output)
    assert found["states"]["state 9"]["ranges"] == 1
    assert any("state 9 does not exist" in text for text in found["findings"])


def test_an_address_space_is_checked_and_saved_too(tmp_path: Path) -> None:
    space = vmalloc.AddressSpace(0, 1 << 30, name="numbers")
    start = space.alloc(1 << 20)
    assert check(path_of(space)).exit_code == 0
    image = tmp_path / "numbers.image"
    assert check("--dump", image, path_of(space)).exit_code == 0
    assert json.loads(check("--json", "--at-rest", image).output)["states"]["busy"]["ranges"] == 1
    space.free(start)
    space.close()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("no-region-is-called-this",), id="no such region"),
        pytest.param((__file__,), id="no image"),
        pytest.param(("--repair", "--read-only", "x"), id="repair without changes"),
        pytest.param(("--with-data", "x"), id="data without a dump"),
        pytest.param(("--dump", "y", "--at-rest", "x"), id="dump is no check"),
        pytest.param((), id="nothing named"),
    ],
)
def test_what_cannot_be_checked_is_exit_status_2(words: tuple[Any, ...]) -> None:
    assert check(*words).exit_code == 2


def test_a_dump_overwrites_nothing(region: vmalloc.Region, tmp_path: Path) -> None:
    there = tmp_path / "precious"
    there.write_text("precious")
    assert check("--dump", there, path_of(region)).exit_code == 2
    assert there.read_text() == "precious"


def test_an_image_cut_short_is_exit_status_2(region: vmalloc.Region, tmp_path: Path) -> None:
    image = saved(region, tmp_path)
    os.truncate(image, 100 * PAGE)
    done = check(image)
    assert done.exit_code == 2
    assert "damaged or truncated" in done.output
