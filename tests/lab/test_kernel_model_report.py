# SPDX-License-Identifier: MIT
"""What needs no recording in docs/kernel-model.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmalloc.lab.kernel_model_report import differences_table, fill_in

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel-model.md"


def test_the_table_of_versions_is_what_the_code_says():
    text = DOCUMENT.read_text()
    now = fill_in(text, "differences", differences_table())
    assert now == text, "make it anew: python -m vmalloc.lab.kernel_model_report DATA"


def test_a_block_that_the_document_lacks_is_an_error():
    with pytest.raises(ValueError, match="no block 'dreams'"):
        fill_in("text", "dreams", "")
