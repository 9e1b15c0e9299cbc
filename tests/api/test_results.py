# SPDX-License-Identifier: MIT
"""The table from results of the core to errors: each number has its documented class, and its text."""

from __future__ import annotations

import errno
import pathlib
import re

import pytest

import vmalloc
from vmalloc.results import RESULTS, error_of, meaning_of

DOCUMENTED = {
    "ENOTCONN": vmalloc.RegionUnavailable,
    "EBADF": vmalloc.RegionUnavailable,
    "ENOSPC": vmalloc.OutOfPages,
    "EXFULL": vmalloc.OutOfPages,
    "ENFILE": vmalloc.OutOfPages,
    "EDQUOT": vmalloc.OutOfPages,
    "ENOMEM": vmalloc.OutOfPages,
    "ENOENT": vmalloc.NotAllocated,
    "ESTALE": vmalloc.StaleReference,
    "EBUSY": vmalloc.RegionBusy,
    "EUCLEAN": vmalloc.RegionCorrupt,
    "EOWNERDEAD": vmalloc.RegionUnavailable,
    "ENOLCK": vmalloc.RegionUnavailable,
    "EROFS": vmalloc.RegionUnavailable,
    "EINVAL": ValueError,
}
DOCUMENTED_OF_CALLS = {
    ("set name", "EINVAL"): ValueError,
    ("set name", "EEXIST"): FileExistsError,
    ("find name", "ENOENT"): KeyError,
    ("create", "EINVAL"): ValueError,
    ("attach", "ENOEXEC"): vmalloc.RegionUnavailable,
    ("attach", "EPROTO"): vmalloc.RegionUnavailable,
    ("attach", "EUCLEAN"): vmalloc.RegionUnavailable,
    ("attach", "ENOLCK"): vmalloc.RegionUnavailable,
    ("attach", "EACCES"): vmalloc.RegionUnavailable,
    ("attach", "ENOENT"): vmalloc.RegionUnavailable,
    ("attach", "ENOMEM"): vmalloc.RegionUnavailable,
    ("create", "ENOMEM"): vmalloc.RegionUnavailable,
    ("create", "EFBIG"): vmalloc.RegionUnavailable,
    ("create", "EMFILE"): vmalloc.RegionUnavailable,
    ("create", "ENOENT"): vmalloc.RegionUnavailable,
}
TOLD = {
    "what": "it",
    "room": "700 free",
    "pid": 7,
    "timeout_s": 0.5,
    "name": "seven",
    "nbytes": 417,
    "versions": "two",
    "processes": 255,
}


def number(name: str) -> int:
    return int(getattr(errno, name))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_result_has_its_class_in_any_call(name: str) -> None:
    for call in ("", "set name", "find name"):
        if (call, name) not in DOCUMENTED_OF_CALLS:
            assert type(error_of(number(name), call, **TOLD)) is DOCUMENTED[name]


@pytest.mark.parametrize(("call", "name"), DOCUMENTED_OF_CALLS)
def test_calls_give_some_results_another_class(call: str, name: str) -> None:
    assert type(error_of(number(name), call, **TOLD)) is DOCUMENTED_OF_CALLS[call, name]


@pytest.mark.parametrize("call", ["", "create", "attach"])
def test_what_is_in_no_row_is_an_error_of_the_system(call: str) -> None:
    error = error_of(errno.EIO, call, **TOLD)
    assert type(error) is vmalloc.RegionUnavailable
    assert error.errno == errno.EIO
    assert str(error).endswith("Input/output error")


@pytest.mark.parametrize("call", ["create", "attach"])
@pytest.mark.parametrize("name", ["ENOSPC", "ENOMEM"])
def test_without_a_region_no_pages_are_short(call: str, name: str) -> None:
    assert type(error_of(number(name), call, **TOLD)) is vmalloc.RegionUnavailable


def test_the_table_has_these_rows_and_no_others() -> None:
    rows = {("", number(name)) for name in DOCUMENTED} | {(c, number(n)) for c, n in DOCUMENTED_OF_CALLS}
    assert {key for key in RESULTS if key[1]} == rows
    assert {key for key in RESULTS if not key[1]} == {("", 0), ("create", 0), ("attach", 0)}


@pytest.mark.parametrize("key", RESULTS, ids=str)
def test_every_text_is_complete_and_errors_of_the_system_have_their_number(key: tuple[str, int]) -> None:
    call, code = key
    error = error_of(code or errno.EMFILE, call, **TOLD)
    assert "{" not in str(error)
    assert str(error)
    if type(error) in (vmalloc.RegionUnavailable, FileExistsError):
        assert error.errno == (code or errno.EMFILE)  # type: ignore[attr-defined]


def test_every_error_that_the_header_names_has_a_row() -> None:
    header = (pathlib.Path(vmalloc.get_include()) / "vmalloc.h").read_text()
    text = header[header.index("Errors a caller should tell apart") :]
    names = set(re.findall(r"\bE[A-Z]{3,}\b", text[: text.index("*/")]))
    assert {"ENOSPC", "EUCLEAN", "EPROTO"} <= names
    never_seen = {"EAGAIN", "EINTR"}  # the binding's own affair: it asks again
    for name in names - never_seen:
        assert any(code == number(name) for _, code in RESULTS), name


def test_a_result_is_told_with_its_numbers() -> None:
    assert str(error_of(errno.EBUSY, what="stats", pid=1234, timeout_s=0.2)).startswith(
        "stats: process 1234 holds a lock of the region and does not run (stopped?); waited 0.2 s."
    )
    assert (
        meaning_of(errno.EEXIST, "set name").text.format(name="seven")
        == "the region has the name 'seven' already"
    )


def test_the_core_gives_these_results() -> None:
    region = vmalloc.Region("1M", name="results")
    block = region.alloc(1)
    region.fail_every(1)
    with pytest.raises(vmalloc.OutOfPages, match=r"1 pages requested \(4 KiB\); 255 of 256 free"):
        region.alloc(1)
    region.fail_every(0)
    region["seven"] = block
    with pytest.raises(FileExistsError, match="'seven'") as taken:
        region._name_set("seven", block, b"", True)
    assert taken.value.errno == errno.EEXIST
    with pytest.raises(ValueError, match="'eight' is too long to keep \\(417 bytes; at most 416\\)"):
        region._name_set("eight", block, b"x" * 417)
    with pytest.raises(KeyError, match="'nine'"):
        region["nine"]
    with pytest.raises(KeyError, match="'nine'"):
        del region["nine"]
    page, id = region._share(block)
    with pytest.raises(vmalloc.StaleReference, match="was freed"):
        region._adopt(page, id + (1 << 16), 1)


def test_a_tick_does_nothing_yet_and_wants_an_open_region() -> None:
    region, space = vmalloc.Region("1M"), vmalloc.AddressSpace(0, 4096)
    assert region.tick() is None
    assert space.tick() is None
    region.close()
    with pytest.raises(vmalloc.RegionClosed):
        region.tick()
