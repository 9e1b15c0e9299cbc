# SPDX-License-Identifier: MIT
"""docs/region-format.md gives the bytes that the C compiler gives."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.sources import ROOT, matching, text

DOCUMENT = "docs/region-format.md"
SIZE = re.compile(r"^\| `(vm_\w+)` \| ([\d,]+) \|")
OFFSET = re.compile(r"^\| (\d+) \| `(\w+)`")
PART = re.compile(r"^\| `(off_\w+)` \| ([\d,]+) \|")


def _number(written: str) -> int:
    return int(written.replace(",", ""))


def claims(document: str) -> list[str]:
    """What a document says of sizes and offsets, as assertions for the compiler."""
    found = []
    for line, row in enumerate(document.splitlines(), 1):
        if size := SIZE.match(row):
            found.append(
                f'_Static_assert(sizeof({size[1]}) == {_number(size[2])}, "{DOCUMENT}:{line}: {size[1]}");'
            )
        elif offset := OFFSET.match(row):
            where = f"offsetof(vm_header, {offset[2]}) == {offset[1]}"
            found.append(f'_Static_assert({where}, "{DOCUMENT}:{line}: {offset[2]}");')
    return found


def refused(assertions: list[str], folder: Path) -> str:
    """What the compiler says of those that do not hold; "" if all hold."""
    made = [sys.executable, "core/write_facts.py", "src/vmalloc/facts.py", str(folder / "vmalloc_facts.h")]
    subprocess.run(made, cwd=ROOT, check=True)
    includes = {f"-I{ROOT / path.rpartition('/')[0]}" for path in matching("core/*.h")}
    program = "\n".join(['#include "layout.h"', "#include <stddef.h>", *assertions])
    gcc = ["gcc", "-std=c11", "-fsyntax-only", f"-I{folder}", *sorted(includes), "-x", "c", "-"]
    return subprocess.run(gcc, input=program, capture_output=True, text=True).stderr


def test_sizes_and_offsets_are_those_of_the_compiler(tmp_path: Path) -> None:
    found = claims(text(DOCUMENT))
    assert len(found) > 12
    assert not (said := refused(found, tmp_path)), said


def test_a_wrong_size_is_found(tmp_path: Path) -> None:
    assert "1: vm_head" in refused(claims("| `vm_head` | 17 |"), tmp_path)


@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="the example is of pages of 4 KiB")
def test_the_example_is_what_a_region_has() -> None:
    from vmalloc import Region

    fields = re.search(r"(?m)^\| (\d+) \| (`off_processes`.*?) \|", text(DOCUMENT))
    assert fields
    names = re.findall(r"`(\w+)`", fields[2])
    with Region("4G", nodes=4, max_threads=1024) as region:
        header = os.pread(region.fileno(), 8 * len(names), int(fields[1]))
    offsets = dict(zip(names, struct.unpack(f"={len(names)}Q", header), strict=True))
    rows = filter(None, map(PART.match, text(DOCUMENT).splitlines()))
    assert {row[1]: _number(row[2]) for row in rows} == offsets
