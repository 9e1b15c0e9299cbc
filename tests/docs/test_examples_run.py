# SPDX-License-Identifier: MIT
"""Every Python block of the README and of the user documents runs, in a process and a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.sources import text, tracked

import vmalloc

USER_DOCUMENTS = [
    "README.md",
    *(f"docs/{name}.md" for name in ("start", "services", "memory", "troubleshooting")),
]
FOR_READING = "# not run:"
"""First line of a block that needs what no test has; the reason follows."""


def blocks() -> Iterator[tuple[str, str]]:
    """Where a block begins, and what it says."""
    for path in USER_DOCUMENTS:
        if path in tracked():
            document = text(path)
            for found in re.finditer(r"(?ms)^```python\n(.*?)^```", document):
                if not found[1].startswith(FOR_READING):
                    yield f"{path}:{document.count(chr(10), 0, found.start(1)) + 1}", found[1]


BLOCKS = list(blocks())


@pytest.mark.parametrize("block", [code for _, code in BLOCKS], ids=[where for where, _ in BLOCKS])
def test_a_block_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    env = os.environ | {"PYTHONPATH": str(Path(vmalloc.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
