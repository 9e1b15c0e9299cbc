# SPDX-License-Identifier: MIT
"""What documents and comments name: code spans of Markdown, and in comments also what looks like a name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.docs import comments
from tests.docs.sources import current

FILE = re.compile(
    r"(?<![\w./*-])(?:[\w*-]+/)*[\w*-]+\.(?:c|h|py|pyx|pxi|pxd|pyi|pml|md|toml|build)\b(?![\w/])"
)
CALL = re.compile(r"(?<![\w.])([A-Za-z_]\w*(?:\.\w+)*)\(\)")
CONSTANT = re.compile(r"\b(?:VM|BUG)_[A-Z][A-Z0-9_]*[A-Z0-9]\b(?![_*])")
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\./|\.venv/bin/)?(?:make|vmalloc|python3?|pip|git|gdb|build/\S+)(?: |$)"
)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Mention:
    """Somebody names something: `kind` is span (code of any sort), call, file, constant or command."""

    path: str
    line: int
    kind: str
    text: str


def in_markdown(path: str, document: str) -> Iterator[Mention]:
    """Code spans; commands in code blocks; file names, calls and constants in prose."""
    fence = ""
    prose: list[tuple[int, str]] = []
    for begins, block in _python_blocks(document):
        yield from _in_python(path, begins, block)
    for number, line in enumerate(document.splitlines(), 1):
        if opened := re.match(r"```(\w*)", line):
            fence = "" if fence else opened[1] or "text"
        elif fence or line.startswith("    "):
            if COMMAND.match(line.strip()) and fence in ("", "sh", "console"):
                yield Mention(path, number, "command", line.split(" #")[0].strip())
        elif line.strip():
            prose.append((number, line))
            continue
        yield from _in_prose(
            path, prose
        )  # a span may go over the end of a line, not over that of a paragraph
        prose.clear()
    yield from _in_prose(path, prose)


def _python_blocks(document: str) -> Iterator[tuple[int, str]]:
    for at in re.finditer(r"(?ms)^```python\n(.*?)^```", document):
        yield document.count("\n", 0, at.start(1)), at[1]


def _in_python(path: str, begins: int, block: str) -> Iterator[Mention]:
    """Of an example: what it imports from us, and what it asks of a module or an object of ours."""
    for node in ast.walk(ast.parse(block)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("vmalloc"):
                asked = [module, *(alias.name for alias in names)]
            case ast.Attribute(value=ast.Name(id="vmalloc" | "region")):
                asked = [ast.unparse(node)]
            case _:
                continue
        yield from (Mention(path, begins + node.lineno, "span", name) for name in asked)


def in_source(path: str, source: str) -> Iterator[Mention]:
    """The same in the comments and docstrings of a source file."""
    if path.endswith(".py"):
        found = comments.of_python(source)
    elif path.endswith((".pyx", ".pxi", ".pxd", ".pyi")):
        found = comments.of_cython(source)
    else:
        found = comments.of_c(source)
    for first, text in found:
        yield from _in_prose(path, [(first + n, line) for n, line in enumerate(text.split("\n"))])


def _in_prose(path: str, lines: list[tuple[int, str]]) -> Iterator[Mention]:
    if not lines:
        return
    text = "\n".join(line for _, line in lines)

    def mention(kind: str, at: re.Match[str]) -> Mention:
        number = lines[text.count("\n", 0, at.start())][0]
        return Mention(path, number, kind, re.sub(r"\s+", " ", at[at.re.groups]).strip().replace("\\|", "|"))

    for at in SPAN.finditer(text):
        span = mention("span", at)
        yield Mention(path, span.line, "command", span.text) if _is_command(span.text) else span
    bare = SPAN.sub(lambda at: re.sub(r"[^\n]", " ", at[0]), text)
    bare = re.sub(
        r"\]\([^)\s]*\)|https?://\S+", lambda at: " " * len(at[0]), bare
    )  # links have a test of their own
    for kind, pattern in (("file", FILE), ("call", CALL), ("constant", CONSTANT)):
        yield from (mention(kind, at) for at in pattern.finditer(bare))


def _is_command(span: str) -> bool:
    return bool(COMMAND.match(span)) and (" " in span) and "(" not in span


@cache
def in_file(path: str) -> tuple[Mention, ...]:
    """All that a tracked file names."""
    return tuple((in_markdown if path.endswith(".md") else in_source)(path, current(path)))
