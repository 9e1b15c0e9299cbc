# SPDX-License-Identifier: MIT
"""The prose in source files: comments of C and Promela, comments and docstrings of Python and Cython."""

from __future__ import annotations

import ast
import io
import re
import tokenize

C_PARTS = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
PYTHON_PARTS = re.compile(
    r"#[^\n]*|'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL
)
Prose = list[tuple[int, str]]  # number of the first line, text


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def of_c(source: str) -> Prose:
    """Comments, the stars at the lines' beginnings left out."""
    return [
        (_line(source, part.start()), re.sub(r"(?m)^[ \t]*\*(?!/)|^/\*|\*/$|^//", "", part[0]))
        for part in C_PARTS.finditer(source)
        if part[0][0] == "/"
    ]


def without_c(source: str) -> str:
    """The code alone: comments go, strings are emptied, lines stay where they are."""
    return C_PARTS.sub(lambda part: '""' if part[0][0] == '"' else "\n" * part[0].count("\n") or " ", source)


def of_python(source: str) -> Prose:
    """Comments, docstrings, and the strings that stand below a constant to say what it means."""
    prose = [
        (token.start[0], token.string[1:])
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(said))):
                prose.append((node.lineno, said))
    return sorted(prose)


def of_cython(source: str) -> Prose:
    """The same where Python's own parser cannot read."""
    return [
        (_line(source, part.start()), part[0].strip("#\"'"))
        for part in PYTHON_PARTS.finditer(source)
        if part[0][0] == "#" or part[0][:3] in ('"""', "'''")
    ]
