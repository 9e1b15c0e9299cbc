# SPDX-License-Identifier: MIT
"""Are frames and tables faster by reference? 64 MiB there and a word back, through a stock Queue.

Each is sent as stock sends it, then with install(): private (copied in), received before (in a region
already), and for tables put() into one block. Rounds of both alternate. `--json FILE` writes the figures.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import time

import numpy as np

import vmalloc

MIB = 1 << 20
ROUNDS = 5


def cases(nbytes):
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    rows = nbytes // 32
    numbers = pa.table({name: np.random.rand(rows) for name in "abcd"})
    texts = pa.table({"text": [f"word number {i:09}" for i in range(nbytes // 30)]})
    yield "pandas, numbers", pd.DataFrame(np.random.rand(rows, 4))
    yield "pyarrow, numbers", numbers
    yield "polars, numbers", pl.from_arrow(numbers)
    yield "pandas, text", texts.to_pandas()
    yield "pyarrow, text", texts
    yield "polars, text", pl.from_arrow(texts)


def reader(inbox, outbox):
    """Keeps nothing; sends back what comes under "keep"."""
    while (got := inbox.get()) is not None:
        what, value = got
        outbox.put(value if what == "keep" else "done")
        del got, value


def seconds(inbox, outbox, value):
    started = time.perf_counter()
    inbox.put(("look", value))
    outbox.get()
    return time.perf_counter() - started


def measure(value, inbox, outbox, region):
    import pyarrow as pa

    import vmalloc.arrow

    vmalloc.install(region)
    inbox.put(("keep", value))
    ways = {"private": value, "received": outbox.get()}
    if isinstance(value, pa.Table):
        ways["put"] = vmalloc.arrow.put(value, region)
    told = {name: [] for name in ("stock", *ways)}
    for _ in range(ROUNDS):
        vmalloc.uninstall()
        told["stock"].append(seconds(inbox, outbox, value))
        vmalloc.install(region)
        for name, x in ways.items():
            told[name].append(seconds(inbox, outbox, x))
    return {name: statistics.median(times) for name, times in told.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--mib", type=int, default=64)
    options = parser.parse_args()
    try:
        made = list(cases(options.mib * MIB))
    except ImportError as e:
        print(f"skipped: {e}")
        return
    context = mp.get_context("spawn")  # polars' threads do not survive a fork
    region = vmalloc.Region(32 * options.mib * MIB)
    vmalloc.install(region)
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=reader, args=(inbox, outbox))
    process.start()
    results = {}
    for name, value in made:
        results[name] = told = measure(value, inbox, outbox, region)
        ratios = ", ".join(f"{way} {told['stock'] / s:.1f}x" for way, s in told.items() if way != "stock")
        print(f"{name:18} stock {told['stock'] * 1e3:7.1f} ms: {ratios}", flush=True)
    inbox.put(None)
    process.join()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
