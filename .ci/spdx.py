#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every source file begins with its licence, in one line that tools can read.

.ci/spdx.py [FILE ...]          name the files that lack it (all that git knows), and fail
.ci/spdx.py --fix [FILE ...]    put it there
"""

import subprocess
import sys
from pathlib import Path

TAG = "SPDX-License-Identifier: MIT"
C_SUFFIXES = {".c", ".h", ".pml"}
HASH_SUFFIXES = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".sh", ".in", ".toml", ".yaml", ".yml"}
DOTFILES = {".clang-format", ".editorconfig", ".gitignore"}
HASH_NAMES = {"Makefile", "meson.build", "meson.options", "run"} | DOTFILES


def expected_line(path: Path) -> str | None:
    """The line as this kind of file writes a comment; None for a file that needs none."""
    if path.suffix in C_SUFFIXES:
        return f"/* {TAG} */\n"
    if path.suffix in HASH_SUFFIXES or path.name in HASH_NAMES:
        return f"# {TAG}\n"
    return None


def place(text: str) -> int:
    """Where the line belongs: first, or after the line that names the interpreter."""
    return text.index("\n") + 1 if text.startswith("#!") else 0


def lacks_line(path: Path) -> bool:
    line = expected_line(path)
    text = path.read_text() if line else ""
    return line is not None and not text.startswith(line, place(text))


def add_line(path: Path) -> None:
    text = path.read_text()
    at = place(text)
    path.write_text(text[:at] + (expected_line(path) or "") + text[at:])


def known_to_git() -> list[str]:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")


def main(arguments: list[str]) -> int:
    fix = arguments[:1] == ["--fix"]
    names = arguments[fix:] or known_to_git()
    lacking = [path for path in map(Path, names) if path.is_file() and lacks_line(path)]
    for path in lacking:
        if fix:
            add_line(path)
        else:
            print(f"{path}: must begin with: {expected_line(path)}", end="")
    return bool(lacking) and not fix


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
