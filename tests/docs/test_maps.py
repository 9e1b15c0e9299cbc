# SPDX-License-Identifier: MIT
"""The maps name every tracked file once: the README's for the whole tree, others for their folder.

A map is the table under a heading that begins with "Map". Its first column names files and folders in
backticks. A folder, ending with a slash, stands for its contents; but if names without a slash follow it in
its row, it only says where they are. Where files of a folder are named one by one, all of them are.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from tests.docs.sources import documents, text, tracked


def entries(document: str) -> list[str]:
    """Paths that a map names, folders with a slash at the end."""
    section = re.search(r"(?ms)^## Map[^\n]*\n(.*?)(?=^## |\Z)", document)
    rows = [
        row.split("|")[1] for row in (section[1] if section else "").splitlines() if row.startswith("| `")
    ]
    return [path for row in rows for path in _of_row(re.findall(r"`([^`]+)`", row))]


def _of_row(names: list[str]) -> list[str]:
    first, *others = names
    if first.endswith("/") and any("/" not in name for name in others):
        return [name if "/" in name else first + name for name in others]
    return names


def faults(base: str, document: str, files: list[str]) -> list[str]:
    """What a map leaves out, names twice or makes up. Paths are from the map's folder."""
    named = entries(document)
    twice = {f"{base}{path} is named twice" for path in named if named.count(path) > 1}
    gone = [f"{base}{path} is named and does not exist" for path in named if not _stands_for(path, files)]
    left_out = [
        f"{base}{path} is not named"
        for path in files
        if not any(path in _stands_for(n, files) for n in named)
    ]
    return sorted(twice) + gone + left_out


def _stands_for(entry: str, files: list[str]) -> list[str]:
    if entry.endswith("/"):
        return [path for path in files if path.startswith(entry)]
    return [path for path in files if path == entry]


MAPS = [path for path in documents() if re.search(r"(?m)^## Map", text(path))]


@pytest.mark.parametrize("path", MAPS)
def test_a_map_names_every_file_of_its_folder_once(path: str) -> None:
    base = path.rpartition("/")[0]
    base = f"{base}/" if base else ""
    files = [file.removeprefix(base) for file in tracked() if file.startswith(base)]
    found = faults(base, text(path), files)
    assert not found, f"\n{path}: " + f"\n{path}: ".join(found)


def test_the_readme_has_a_map() -> None:
    assert "README.md" in MAPS


def test_what_a_map_leaves_out_names_twice_or_makes_up_is_found() -> None:
    rows = ["| `a/`, `e/` | |", "| `b/`, `x.py`, `gone.py`, `b/sub/` | |", "| `c` | |", "| `c` | |"]
    document = "\n".join(["## Map", "", "| | |", "|---|---|", *rows])
    files = ["a/1", "a/deep/2", "b/x.py", "b/y.py", "b/sub/z", "c", "d", "e/f"]
    assert faults("", document, files) == [
        "c is named twice",
        "b/gone.py is named and does not exist",
        "b/y.py is not named",
        "d is not named",
    ]


def test_folders_of_tests_are_all_in_the_table_of_tests() -> None:
    named = {PurePosixPath(name).parts[0] for name in re.findall(r"\| `([\w/.*]+)`", text("tests/README.md"))}
    folders = {
        path.split("/")[1] for path in tracked() if re.fullmatch(r"tests/\w+/.*test_\w+\.(py|c)", path)
    }
    assert not folders - named
