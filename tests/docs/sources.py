# SPDX-License-Identifier: MIT
"""The repository as the tests of documents see it: which files there are, and their text."""

from __future__ import annotations

import fnmatch
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = {
    "build",
    "dist",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".ruff_cache",
    ".mypy_cache",
    "PKG-INFO",
}


@cache
def tracked() -> tuple[str, ...]:
    """Paths of all files that git knows and that are there, relative to the root, in order.

    Without git, as in a source archive: all files, but for what is built or hidden by the user's tools.
    """
    if not (ROOT / ".git").exists():
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return tuple(sorted(str(path) for path in found if not BUILT & {*path.parts}))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return tuple(path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file())


def matching(*patterns: str) -> list[str]:
    """Tracked files that match one of the patterns; a `*` also matches folders in between."""
    return [path for path in tracked() if any(fnmatch.fnmatch(path, pattern) for pattern in patterns)]


@cache
def text(path: str) -> str:
    """A tracked file's text."""
    return (ROOT / path).read_text()


def documents() -> list[str]:
    """The Markdown files that describe the present."""
    return matching("*.md")


def current(path: str) -> str:
    """What a document says of the present: of the change log the first version; of a decision that another
    one superseded nothing. Lines keep their numbers."""
    whole = text(path)
    if path == "CHANGELOG.md":
        past = whole.find("\n## ", whole.find("\n## ") + 1)
        return whole if past < 0 else whole[:past]
    if path.startswith("docs/decisions/") and "\nStatus: superseded" in whole:
        return ""
    return whole
