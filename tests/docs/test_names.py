# SPDX-License-Identifier: MIT
"""Every function, file, option, class and constant that documents and comments name exists."""

from __future__ import annotations

import pytest
from tests.docs.checker import findings
from tests.docs.mentioned import in_file
from tests.docs.sources import documents, matching

SOURCES = [
    path
    for path in matching("*.c", "*.h", "*.pml", "*.py", "*.pyx", "*.pxi", "*.pxd", "*.pyi")
    if not path.startswith("tests/docs/")  # there made-up names are the subject
]


@pytest.mark.parametrize("path", documents())
def test_a_document_names_only_what_exists(path: str) -> None:
    assert not (found := findings(in_file(path))), "\n" + "\n".join(found)


def test_comments_and_docstrings_name_only_what_exists() -> None:
    found = findings(mention for path in SOURCES for mention in in_file(path))
    assert not found, "\n" + "\n".join(found)
