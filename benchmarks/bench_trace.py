# SPDX-License-Identifier: MIT
"""How fast are recordings read, beside polars and pyarrow reading the same rows and columns from CSV?

    python benchmarks/bench_trace.py                      about a minute
    python benchmarks/bench_trace.py --events 10000000    the memory bar: 10^7 events within 2 GiB

A recording (tests/data/live/l2_proc.trace.xz) is repeated with later times until it has enough events. CSV
has the 17 columns of docs/trace-format.md. Readers take turns, the best of the repeats counts; each runs in a
process of its own, so that the peak of its memory can be told. Files are in the page cache; 10^7 events take
3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDING = REPOSITORY / "tests/data/live/l2_proc.trace.xz"
TIME = re.compile(rb"(?m)(?<= )(\d+)(?=\.\d{6}: \w+: )")

# What each reader does in its process: (what it reads, code). `n` is the number of rows.
READERS = {
    "vmalloc.lab columns": (
        "trace",
        "from vmalloc.lab.trace import read_columns; n = read_columns(path).nr_rows",
    ),
    "vmalloc.lab columns, 1 thread": (
        "trace",
        "from vmalloc.lab.trace import read_columns; n = read_columns(path, threads=1).nr_rows",
    ),
    "vmalloc.lab events": (
        "trace",
        "from vmalloc.lab.trace import read_events; n = sum(1 for _ in read_events(path))",
    ),
    "vmalloc.lab parquet": (
        "parquet",
        "from vmalloc.lab.trace import read_columns; n = read_columns(path).nr_rows",
    ),
    "polars csv": ("csv", "import polars; n = len(polars.read_csv(path))"),
    "pyarrow csv": ("csv", "import pyarrow.csv; n = pyarrow.csv.read_csv(path).num_rows"),
    "polars parquet": ("parquet", "import polars; n = len(polars.read_parquet(path))"),
}
PEERS = {"trace": ("polars csv", "pyarrow csv"), "parquet": ("polars parquet",), "csv": ()}

RUN = """
import json, sys, time
path = sys.argv[1]
{imports}
wall, cpu = time.perf_counter(), time.process_time()
{code}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({{"rows": n, "rows_s": n / wall, "rows_cpu_s": n / cpu, "peak_mib": peak}}))
"""


def make_trace(path: Path, nr_events: int) -> None:
    """Repeat a recording, an hour later each time."""
    with lzma.open(RECORDING) as stream:
        lines = [line for line in stream if not line.startswith(b"#")]
    text = b"".join(lines)
    with open(path, "wb") as out:
        out.write(b"# tracer: nop\n#\n")
        for hour in range(-(-nr_events // len(lines))):
            shift = 3600 * hour
            part = text if len(lines) * (hour + 1) <= nr_events else b"".join(lines[: nr_events % len(lines)])
            out.write(TIME.sub(lambda found, shift=shift: b"%d" % (int(found[0]) + shift), part))


def make_others(trace: Path, csv: Path, parquet: Path) -> None:
    """The same rows as CSV and as our Parquet, made in a process of its own."""
    code = """
import sys
import pyarrow.csv
from vmalloc.lab.columnar import to_arrow, write_columnar
from vmalloc.lab.trace import read_columns
columns = read_columns(sys.argv[1])
write_columnar(sys.argv[3], columns)
pyarrow.csv.write_csv(to_arrow(columns), sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, str(trace), str(csv), str(parquet)], check=True)


def run(name: str, files: dict[str, Path]) -> dict[str, float]:
    kind, code = READERS[name]
    imports, _, code = code.rpartition("; ")
    script = RUN.format(imports=imports, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script, str(files[kind])], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = {kind: Path(scratch) / f"bench.{kind}" for kind in ("trace", "csv", "parquet")}
        make_trace(files["trace"], arguments.events)
        make_others(files["trace"], files["csv"], files["parquet"])
        for kind, path in files.items():
            print(f"{kind:8} {path.stat().st_size / 1e6:8.0f} MB")
        results: dict[str, dict[str, float]] = {}
        for _ in range(arguments.repeats):
            for name in READERS:
                result = run(name, files)
                best = results.setdefault(name, result)
                for key in ("rows_s", "rows_cpu_s"):
                    best[key] = max(best[key], result[key])
    print(
        f"\n{'reader':32} {'rows/s':>12} {'rows/CPU s':>12} {'peak MiB':>9}   of {arguments.events:,} events"
    )
    for name, result in results.items():
        print(f"{name:32} {result['rows_s']:12,.0f} {result['rows_cpu_s']:12,.0f} {result['peak_mib']:9,.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(as_cases(results), indent=1) + "\n")


def as_cases(results: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    units = {"rows_s": "lines/s", "rows_cpu_s": "lines/CPU s", "peak_mib": "MiB"}
    cases = []
    for name, result in results.items():
        peers = PEERS[READERS[name][0]]
        for key, unit in units.items():
            if not name.startswith("vmalloc"):
                continue
            cases.append(
                {
                    "case": f"read {READERS[name][0]}, {int(result['rows']):,} events",
                    "design": name,
                    "value": round(result[key]),
                    "unit": unit,
                    "peers": {peer: round(results[peer][key]) for peer in peers},
                }
            )
    return cases


if __name__ == "__main__":
    os.environ.setdefault("POLARS_MAX_THREADS", str(os.cpu_count() or 1))
    main()
