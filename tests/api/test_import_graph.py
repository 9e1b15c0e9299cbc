# SPDX-License-Identifier: MIT
"""Which module of the package imports which: in layers, without a circle."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import vmalloc

PACKAGE = Path(vmalloc.__file__).parent
MODULES = {
    ".".join(("vmalloc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path, *, deep: bool) -> Iterator[str]:
    """Modules of the package that a file imports; `deep`: within functions, too."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if is_for_types_only(node):
            nodes += node.orelse  # type: ignore[attr-defined]
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def graph(*, deep: bool) -> dict[str, set[str]]:
    found = {name: {m for m in imports(path, deep=deep) if m in MODULES} for name, path in MODULES.items()}
    found["vmalloc"] = set()  # its names are loaded on first use
    return found


def test_no_module_imports_itself_in_a_circle():
    order = list(graphlib.TopologicalSorter(graph(deep=False)).static_order())  # raises CycleError
    assert order.index("vmalloc.attach") < order.index("vmalloc.region") < order.index("vmalloc.message")


def test_attach_and_region_do_not_import_each_other_anywhere():
    found = graph(deep=True)
    assert "vmalloc.attach" in found["vmalloc.region"]
    assert "vmalloc.region" not in found["vmalloc.attach"]


def test_adapters_know_nothing_of_regions_and_messages():
    above = {"vmalloc.region", "vmalloc.attach", "vmalloc.reference", "vmalloc.message"}
    for name, imported in graph(deep=True).items():
        if name.startswith("vmalloc.adapters"):
            assert not imported & above, name


def test_only_the_adapter_of_arrays_asks_what_an_array_is():
    asks = [
        name for name, path in MODULES.items() if re.search(r"isinstance\([^)]*ndarray", path.read_text())
    ]
    assert asks == []
