# SPDX-License-Identifier: MIT
"""What the benchmarks share: options, the table, the JSON, the machine, building a C program."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypedDict


class Result(TypedDict):
    """One line of `--json`: `value` of ours, the same of each peer."""

    case: str
    design: str
    value: float
    unit: str
    peers: dict[str, float]


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=_to_write, help="write the results as a list")
    parser.add_argument("--quick", action="store_true", help="few, short rounds: does it run?")
    return parser


def _to_write(text: str) -> Path:
    """A file to be written when all is measured: what is wrong with it is said before."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be a file")
    return path


def library_flags() -> list[str]:
    """gcc's flags for the installed libvmalloc; VMALLOC_CFLAGS overrides them."""
    if flags := os.environ.get("VMALLOC_CFLAGS"):
        return shlex.split(flags)
    import vmalloc

    include = Path(vmalloc.get_include())
    library = include.parent / "lib"
    return [f"-I{include}", f"-L{library}", "-lvmalloc", f"-Wl,-rpath,{library}"]


def build(source: Path, name: str, flags: Iterable[str]) -> Path:
    """Compile one C file with gcc -O2; the program lives until the benchmark ends."""
    out = Path(_scratch.name) / name
    command = ["gcc", "-O2", "-std=gnu11", "-D_GNU_SOURCE", str(source), "-o", str(out), *flags]
    subprocess.run([*command, "-lpthread"], check=True)
    return out


_scratch = tempfile.TemporaryDirectory(prefix="vmalloc-bench-")


def interleaved(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """All measures in turn, `rounds` times, after one turn that does not count."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if turn:
                values[name].append(value)
    return values


def p99(values: list[float]) -> float:
    """The 99th percentile (the largest of few values)."""
    return quantiles(values, n=100)[98] if len(values) >= 100 else max(values)


def machine() -> str:
    """One line for the table's caption."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, load {load:.1f}"


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A rich table, or plain text where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in [columns, *rows]:
            print("  ".join(cell.rjust(14) if i else cell.ljust(24) for i, cell in enumerate(row)))
        print(machine())
        return
    table = Table(title=title, caption=machine())
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def finish(args: argparse.Namespace, results: list[Any]) -> None:
    """Write the JSON if it was asked for."""
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def result(case: str, design: str, value: float, unit: str, peers: dict[str, float] | None = None) -> Result:
    return {
        "case": case,
        "design": design,
        "value": round(value, 4),
        "unit": unit,
        "peers": {name: round(v, 4) for name, v in (peers or {}).items()},
    }


__all__ = [
    "Result", "build", "finish", "interleaved", "library_flags", "machine", "median", "options", "p99",
    "result", "show",
]  # fmt: skip
