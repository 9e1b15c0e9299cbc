# SPDX-License-Identifier: MIT
"""What there is to be named: a scan of the C, Cython, Python, Promela and make sources, as ctags does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

from tests.docs import comments
from tests.docs.sources import matching, text, tracked

from vmalloc import facts

C_KEYWORDS = frozenset(
    (
        "if",
        "for",
        "while",
        "switch",
        "return",
        "sizeof",
        "defined",
        "_Alignas",
        "_Static_assert",
        "__attribute__",
    )
)


@dataclass
class Defined:
    """Names by kind. A name may be of several kinds, and defined in several files."""

    functions: set[str] = field(default_factory=set)  #: what `name()` may mean: functions, macros, classes
    others: set[str] = field(default_factory=set)  #: fields, variables, constants, types, modules, options
    words: set[str] = field(default_factory=set)  #: values: string constants of the package, whole
    members: dict[str, set[str]] = field(default_factory=dict)  #: of a struct or class, by its name
    bases: dict[str, set[str]] = field(default_factory=dict)  #: of a class

    @cached_property
    def names(self) -> set[str]:
        """All but words; asked for when the scan is over."""
        return self.functions | self.others

    def members_of(self, owner: str) -> set[str]:
        """Those of a struct or class and of its bases; empty if it is not known."""
        inherited = (self.members_of(base) for base in self.bases.get(owner, ()) if base != owner)
        return self.members.get(owner, set()).union(*inherited)


# ---- C ------------------------------------------------------------------------------------------


def _c_statements(source: str) -> Iterator[tuple[str, str | None]]:
    """(what stands before, body or None) of each definition or declaration outside of functions."""
    code = re.sub(r"(?m)^[ \t]*#(?:.*\\\n)*.*$", "", comments.without_c(source))
    code = re.sub(r'extern ""\s*\{|__attribute__\(\((?:[^()]|\([^()]*\))*\)\)', "", code)
    depth, start, opened = 0, 0, 0
    for at in re.finditer(r"[{};]", code):
        if at[0] == "{":
            depth += 1
            if depth == 1:
                opened = at.start()
        elif at[0] == "}":
            depth = max(depth - 1, 0)
            head = code[start:opened]
            if depth == 0 and _is_function(head):
                yield head, ""
                start = at.end()
        elif depth == 0:
            statement = code[start : at.start()]
            before, brace, rest = statement.partition("{")
            yield (
                (before + " " + rest.rpartition("}")[2], rest.rpartition("}")[0])
                if brace
                else (statement, None)
            )
            start = at.end()


def _is_function(head: str) -> bool:
    return "(" in head and "=" not in head and not re.search(r"\b(struct|union|enum)\s+\w*\s*$", head)


def _last_names(code: str) -> set[str]:
    """Names that something introduces: those before ; , [ = : } or an end."""
    return set(re.findall(r"\b([A-Za-z_]\w*)\s*(?=[;,\[=:}]|$)", code))


def scan_c(source: str, found: Defined) -> None:
    """Functions with a body, macros, types with their members, constants, variables of the file."""
    code = comments.without_c(source)
    for name, call in re.findall(r"(?m)^[ \t]*#[ \t]*define[ \t]+(\w+)(\(?)", code):
        (found.functions if call else found.others).add(name)
    for head, body in _c_statements(source):
        kind = re.search(r"\b(struct|union|enum)\b\s*(\w*)", head)
        if body == "":
            called = re.findall(r"\b([A-Za-z_]\w*)\s*\(", head)
            found.functions.update([name for name in called if name not in C_KEYWORDS][:1])
            found.others.update(re.findall(r"\b([A-Za-z_]\w*)\)?\s*(?=[,)]|\()", head.partition("(")[2]))
        elif kind and body is not None and "=" not in head.split("{")[0]:
            members = _last_names(body) | set(re.findall(r"\(\*(\w+)\)", body))
            found.functions.update(re.findall(r"\(\*(\w+)\)", body))
            found.others |= members | _last_names(head) | {kind[2]}
            for name in {kind[2], *re.findall(r"(\w+)\s*$", head)} - {""}:
                found.members.setdefault(name, set()).update(members)
        elif "(" not in head or "=" in head or re.search(r"\btypedef\b", head):
            found.others |= _last_names(head) | set(re.findall(r"\(\*(\w+)\)", head))


# ---- Python and Cython --------------------------------------------------------------------------


def scan_python(source: str, found: Defined, with_words: bool) -> None:
    """Functions, classes with their members, arguments, names that are assigned; and strings, if asked."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.functions.add(node.name)
                every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                found.others.update(argument.arg for argument in every)
            case ast.ClassDef():
                found.functions.add(node.name)
                found.members.setdefault(node.name, set()).update(_members(node))
                found.bases.setdefault(node.name, set()).update(
                    base.id for base in node.bases if isinstance(base, ast.Name)
                )
            case ast.Name(ctx=ast.Store()):
                found.others.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                found.others.add(node.attr)
            case ast.Constant(value=str(word)) if with_words and len(word) < 40:
                found.words.add(word)


def _members(node: ast.ClassDef) -> set[str]:
    members: set[str] = set()
    for inner in node.body:
        match inner:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                members.add(inner.name)
            case ast.Assign(targets=targets):
                members.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                members.add(name)
    stored = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
    return members | {inner.attr for inner in stored if isinstance(inner.ctx, ast.Store)}


def scan_cython(source: str, found: Defined) -> None:
    """The same by its looks: what follows def, cdef, cpdef and class, and what is assigned or declared."""
    code = comments.PYTHON_PARTS.sub(lambda part: "" if part[0][0] == "#" else '""', source)
    owner = ""
    for line in code.splitlines():
        if line[:1].strip():
            opened = re.match(r"(?:cdef |cpdef )?(?:class|struct) (\w+)", line)
            owner = opened[1] if opened else ""
            found.functions.update([owner] if owner else [])
        named = re.match(r"\s*(?:async )?(?:c?def|cpdef)\b.*?(\w+)\(", line)
        fields = re.match(r"\s+(?:cdef )?(?:readonly |public )?\w[\w ]*[ *](\w+)\s*(?:=|$)", line)
        if named:
            found.functions.add(named[1])
        for name in [m[1] for m in (named, fields) if m] + re.findall(r"(\w+)\s*=(?!=)", line):
            found.others.add(name)
            if owner:
                found.members.setdefault(owner, set()).add(name)


# ---- all of it ----------------------------------------------------------------------------------


@cache
def defined(for_tests: bool) -> Defined:
    """Everything that documents and comments may name; what is of the tests alone only where they name it.

    A function that is renamed is thus missed though a test or a model has one of the old name.
    """
    found = Defined()
    for path in matching("*.c", "*.h"):
        if for_tests or not path.startswith("tests/"):
            scan_c(text(path), found)
        found.others.add(path.rpartition("/")[2].partition(".")[0])  # the program it becomes
        found.others.update(re.findall(r'"([A-Z][A-Z0-9_]*_[A-Z0-9_]+)"', text(path)))  # in its environment
    for path in matching("*.py", "*.pyi"):
        if for_tests or not path.startswith("tests/"):
            scan_python(text(path), found, with_words=path.startswith("src/"))
    for path in matching("*.pyx", "*.pxi", "*.pxd"):
        scan_cython(text(path), found)
    for path in matching("*.pml"):
        found.others.update(re.findall(r"\b[A-Z][A-Z0-9_]+\b", comments.without_c(text(path))))
        if for_tests:
            found.functions.update(re.findall(r"\b(?:inline|proctype)\s+(\w+)", text(path)))
    for path in matching("src/*.py", "src/*.pyx"):
        found.others.update(path.removesuffix(".py").removesuffix(".pyx").split("/")[1:])
    found.others.update(f"VM_{name}" for name in facts.numbers())
    found.others.update(f"VM_POOLS_{name.upper()}" for name in facts.POOLS)
    found.words.update(facts.POOLS)
    found.others.update(re.findall(r"option\('(\w+)'", text("meson.options")))
    found.others.update(re.findall(r"(?m)^(\w+)\s*[?:]?=", text("Makefile")))
    return found


@cache
def words_of(path: str) -> frozenset[str]:
    """Every word in a source file's code, strings too: what its own comments may name."""
    if path not in tracked():
        return frozenset()
    parts = comments.C_PARTS if path.endswith((".c", ".h", ".pml")) else comments.PYTHON_PARTS
    code = parts.sub(_without_prose, text(path))
    return frozenset(re.findall(r"[A-Za-z_]\w*", code))


def _without_prose(part: re.Match[str]) -> str:
    return "" if part[0][0] in "#/" or part[0][:3] in ('"""', "'''") else part[0]
