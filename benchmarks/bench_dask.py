# SPDX-License-Identifier: MIT
"""Does Dask win by references? One array read by 4 workers, and a shuffle, beside stock.

Two clusters of 4 worker processes, one of them after `vmalloc.dask.install()`, in turn. Measured is the time
until every worker has read the array that one of them has; copies are what all processes hold then and did
not at the start, in arrays. `--mib 1024` takes 6 GiB of memory. `--json FILE` writes the figures.
"""

import argparse
import json
import os
import statistics
import time

WORKERS = 4
SHUFFLE_SHARE = 8  # of --mib: it takes long


def make(nbytes, where):
    import numpy as np

    if where == "private":
        return np.ones(nbytes // 8)
    import vmalloc.dask

    a = vmalloc.dask.region().empty(nbytes // 8)
    a[:] = 1
    return a


def read(a, sparsely):
    """All of it, or one element a page: how it comes, and not how quickly it is summed."""
    return float(a[::512].sum() if sparsely else a.sum())


def memory_of(pids):
    """Proportional, so that what several share counts once."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


class Cluster:
    def __init__(self, is_ours):
        import distributed

        self.cluster = distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, memory_limit=0, dashboard_address=None, host="127.0.0.1"
        )
        self.client = distributed.Client(self.cluster)
        self.client.wait_for_workers(WORKERS)
        if is_ours:
            import vmalloc.dask

            vmalloc.dask.install(self.client)
        self.workers = sorted(self.client.scheduler_info(n_workers=-1)["workers"])
        self.pids, self.at_rest = [], 0
        self.read_by_all(1 << 20, "private", True)  # all is imported
        self.pids = list(self.client.run(os.getpid).values())
        self.at_rest = memory_of(self.pids)

    def wait_until_empty(self):
        while any(self.client.run(lambda dask_worker: len(dask_worker.data)).values()):
            time.sleep(0.05)

    def read_by_all(self, nbytes, where, sparsely):
        """(seconds, copies of the array that all workers hold)."""
        import distributed

        self.wait_until_empty()
        made = self.client.submit(make, nbytes, where, workers=self.workers[0], pure=False)
        distributed.wait(made)
        started = time.perf_counter()
        reads = [self.client.submit(read, made, sparsely, workers=w, pure=False) for w in self.workers]
        self.client.gather(reads)
        took = time.perf_counter() - started
        return took, (memory_of(self.pids) - self.at_rest) / nbytes

    def shuffle(self, nbytes):
        """Every worker gets a part of each of 8 frames."""
        import dask.dataframe as dd
        import numpy as np
        import pandas as pd

        rows = nbytes // 16 // 8

        def part(i):
            keys = np.random.default_rng(i).integers(0, 1 << 30, rows)
            return pd.DataFrame({"key": keys, "value": np.arange(rows, dtype="f8")})

        frame = dd.from_map(part, range(8), meta=part(0)[:0]).persist()
        started = time.perf_counter()
        frame.shuffle("key").map_partitions(len).compute()
        return time.perf_counter() - started, 0

    def close(self):
        self.client.close()
        self.cluster.close()


def compare(name, ways, rounds):
    """Every way in turn, after one turn that does not count."""
    told = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, measure in ways.items():
            result = measure()
            if turn:
                told[way].append(result)
    medians = {way: [statistics.median(v) for v in zip(*values, strict=True)] for way, values in told.items()}
    stock = medians["stock"][0]
    for way, (seconds, copies) in medians.items():
        ratio = stock / seconds
        print(f"{name:24} {way:10} {seconds * 1e3:8.0f} ms  {ratio:5.1f}x  {copies:4.1f} copies", flush=True)
    return {way: {"seconds": seconds, "copies": copies} for way, (seconds, copies) in medians.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        import distributed  # noqa: F401

        import vmalloc.dask  # noqa: F401
    except ImportError as e:
        print(f"skipped: {e}")
        return
    nbytes = options.mib << 20
    stock, ours = Cluster(False), Cluster(True)
    results = {}
    for how, sparsely in {"every page": True, "summed": False}.items():
        name = f"{options.mib} MiB, {how}"
        results[name] = compare(
            name,
            {
                "stock": lambda s=sparsely: stock.read_by_all(nbytes, "private", s),
                "private": lambda s=sparsely: ours.read_by_all(nbytes, "private", s),
                "in region": lambda s=sparsely: ours.read_by_all(nbytes, "region", s),
            },
            options.rounds,
        )
    try:
        import dask.dataframe  # noqa: F401
    except ImportError as e:
        print(f"no shuffle: {e}")
    else:
        name = f"shuffle of {options.mib // SHUFFLE_SHARE} MiB"
        part = nbytes // SHUFFLE_SHARE
        ways = {"stock": lambda: stock.shuffle(part), "vmalloc": lambda: ours.shuffle(part)}
        results[name] = compare(name, ways, options.rounds)
    stock.close()
    ours.close()
    print("load", *os.getloadavg())
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
