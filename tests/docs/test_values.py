# SPDX-License-Identifier: MIT
"""Numbers in documents equal the code: `NAME` (30) in text, and rows `NAME` | 30 in tables."""

from __future__ import annotations

import re

import pytest
from tests.docs.sources import current, documents, text
from tests.docs.values import constants, given, wrong

from vmalloc import facts


@pytest.mark.parametrize("path", documents())
def test_a_number_beside_a_constant_is_its_value(path: str) -> None:
    assert not (found := wrong(path, current(path))), "\n" + "\n".join(found)


def test_facts_have_one_value_in_the_core_and_in_python() -> None:
    known = constants()
    assert {f"VM_{name}": known[f"VM_{name}"] for name in facts.numbers()} == {
        f"VM_{name}": {value} for name, value in facts.numbers().items()
    }


def test_a_wrong_number_is_found() -> None:
    cap = facts.MAGAZINE_CAP
    found = wrong("x.md", f"`MAGAZINE_CAP` ({cap}) and `MAGAZINE_CAP` ({cap + 1}),\n`NO_SUCH_CAP` (1)\n")
    assert found == [
        f"x.md:1: MAGAZINE_CAP ({cap + 1}): the code says {cap}",
        "x.md:2: NO_SUCH_CAP (1): no such constant",
    ]


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ("`CAP_NS` (250 µs)", 250_000),
        ("`CAP_BYTES` (32 MiB for each)", 32 << 20),
        ("`CAP` (65,536)", 65536),
        ("`CAP` (2^16)", 65536),
        ("`CAP_PERCENT` (25 %)", 25),
        ("`CAP_SHARE` (1/32) of it", 32),
        ("| `CAP` | 4,096 pages | so many |", 4096),
        ("| most of them | `CAP` | 4,096 |", 4096),
        ("| `CAP`, as always | 4,096 |", None),
        ("`CAP` (a word about 5)", None),
    ],
)
def test_numbers_are_read_as_people_write_them(document: str, value: int | None) -> None:
    assert [number for _, _, _, number in given(document)] == ([] if value is None else [value])


def test_the_table_of_designs_has_a_row_for_each_pool_design() -> None:
    table = text("docs/design.md").partition("| design |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"(?m)^\| `(\w+)` \|", table)) == facts.POOLS


def test_the_table_of_what_differs_between_designs_is_that_of_the_presets() -> None:
    from vmalloc.lab.kernel_model_report import differences_table, fill_in

    document = text("docs/kernel-model.md")
    assert document == fill_in(document, "differences", differences_table())
