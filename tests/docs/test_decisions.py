# SPDX-License-Identifier: MIT
"""Decisions are numbered without gaps, say whether they hold, and lead to what replaced them."""

from __future__ import annotations

import re

import pytest
from tests.docs.sources import matching, text

DECISIONS = {path: text(path) for path in matching("docs/decisions/*.md")}
STATUS = re.compile(
    r"Status: (?:accepted|superseded by (?P<by>\d{4}))"
    r"(?:; (?P<part>.+?) (?:is|are) superseded by (?P<in_part>\d{4}))?\."
)


def _number(path: str) -> str:
    return path.rpartition("/")[2][:4]


def status(decision: str) -> re.Match[str] | None:
    """The line below the title: "Status: accepted.", "Status: superseded by 0014.", or of a part of it."""
    lines = decision.splitlines()
    return STATUS.fullmatch(lines[2]) if len(lines) > 2 else None


def test_numbers_are_unique_and_without_gaps() -> None:
    assert [_number(path) for path in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("path", DECISIONS)
def test_the_title_has_the_number_of_the_file(path: str) -> None:
    assert DECISIONS[path].startswith(f"# {_number(path)}: ")


@pytest.mark.parametrize("path", DECISIONS)
def test_a_decision_says_whether_it_holds_and_what_replaced_it(path: str) -> None:
    found = status(DECISIONS[path])
    assert found, f'{path}:3: "{DECISIONS[path].splitlines()[2]}" is no status; see CONTRIBUTING.md'
    known = {_number(other) for other in DECISIONS} - {_number(path)}
    for by in (found["by"], found["in_part"]):
        assert by is None or by in known, f"{path}:3: there is no decision {by}"


@pytest.mark.parametrize("path", DECISIONS)
def test_a_decision_says_what_would_change_it(path: str) -> None:
    found = status(DECISIONS[path])
    assert (found and found["by"]) or "**What would change our mind.**" in DECISIONS[path]


@pytest.mark.parametrize(
    ("line", "is_status"),
    [
        ("Status: accepted.", True),
        ("Status: superseded by 0014.", True),
        ("Status: accepted; rule 6 is superseded by 0010.", True),
        ("**Status:** accepted for region format 1.", False),
        ("**Question.** Is it?", False),
    ],
)
def test_a_status_has_one_form(line: str, is_status: bool) -> None:
    assert bool(status(f"# 0001: made up\n\n{line}\n")) == is_status
