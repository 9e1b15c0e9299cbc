# SPDX-License-Identifier: MIT
"""Numbers that documents give, beside the constants that they are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.docs import comments
from tests.docs.sources import matching, text

from vmalloc import facts

UNITS = {"ns": 1, "µs": 10**3, "ms": 10**6, "s": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
QUANTITY = r"(?:1/)?(\d[\d,.]*)(?:\^(\d+))?[ \u00a0]?(ns|µs|ms|s|KiB|MiB|GiB|%)?"
MARKED = re.compile(rf"`(\w+)` \(({QUANTITY})(?=[);,: ])")
ROW = re.compile(rf"\| `([A-Z]\w+)` \| ({QUANTITY})[^|]*\|")


def number(digits: str, power: str | None, unit: str | None) -> int:
    """What is written, in ns or bytes if it has a unit: "250 µs" is 250000, "2^16" is 65536."""
    value = float(digits.replace(",", "").rstrip("."))
    if power:
        value **= int(power)
    return round(value * UNITS.get(unit or "", 1))


def given(document: str) -> Iterator[tuple[int, str, str, int]]:
    """(line, constant, as written, number) of each `NAME` (number), and of `NAME` | number in tables."""
    for line, row in enumerate(document.splitlines(), 1):
        for pattern in (MARKED, ROW):
            for at in pattern.finditer(row):
                yield line, at[1], at[2], number(*at.groups()[2:])


def _value(expression: str, known: dict[str, set[int]]) -> int | None:
    """An expression of integers and known constants, in C or Python; None if it is more than that."""
    expression = re.sub(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", expression).strip()
    names = {name: min(values) for name, values in known.items()}
    try:
        if re.search(r"[^\w\s()+*/<>|&~^-]", expression):
            return None
        code = compile(ast.parse(expression.replace("/", "//"), mode="eval"), "constant", "eval")
        result = eval(code, {"__builtins__": {}}, names)
    except Exception:  # types, calls and names from elsewhere
        return None
    return result if isinstance(result, int) else None


@cache
def constants() -> dict[str, set[int]]:
    """Values of each constant and of each option's default; several if files disagree about a name."""
    found: dict[str, set[int]] = {}
    for name, value in facts.numbers().items():
        found.setdefault(name, set()).add(value)
        found.setdefault(f"VM_{name}", set()).add(value)
    expressions: list[tuple[str, str]] = []
    for path in matching("core/*.h", "core/*.c", "src/*.h", "src/*.c"):
        code = comments.without_c(text(path))
        expressions += re.findall(r"(?m)^[ \t]*#[ \t]*define[ \t]+([A-Z]\w+)[ \t]+(\S.*)$", code)
        for body in re.findall(r"\benum\b[^{;()]*\{([^}]*)\}", code):
            expressions += re.findall(r"\b([A-Z]\w*)\s*=\s*([^,}]+)", body)
    for path in matching("src/vmalloc/*.py"):
        expressions += _python_expressions(path)
    for _ in range(3):  # one may need another that stands below it
        for name, expression in expressions:
            if (value := _value(expression, found)) is not None:
                found.setdefault(name, set()).add(value)
    return found


def _python_expressions(path: str) -> Iterator[tuple[str, str]]:
    """Constants of a module; and of the public modules the options' defaults, seconds as ns."""
    tree = ast.parse(text(path))
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                yield name, ast.unparse(value)
    for node in ast.walk(tree) if path.count("/") == 2 else ():
        match node:
            case ast.FunctionDef(args=arguments):
                late = arguments.args[len(arguments.args) - len(arguments.defaults) :]
                defaults = [*arguments.defaults, *arguments.kw_defaults]
                for argument, default in zip([*late, *arguments.kwonlyargs], defaults, strict=True):
                    if default is not None:
                        yield argument.arg, _in_ns(argument.arg, ast.unparse(default))


def _in_ns(name: str, default: str) -> str:
    return re.sub(r"\.0$", "", default) + " * 1000000000" if name.endswith("_s") else default


def wrong(path: str, document: str) -> list[str]:
    """A line for each number that is not its constant's. Lower case is an option, or a field."""
    found = []
    for line, name, written, value in given(document):
        values = constants().get(name)
        if not values and name.isupper():
            found.append(f"{path}:{line}: {name} ({written}): no such constant")
        elif values and values != {value}:
            found.append(
                f"{path}:{line}: {name} ({written}): the code says {', '.join(map(str, sorted(values)))}"
            )
    return found
