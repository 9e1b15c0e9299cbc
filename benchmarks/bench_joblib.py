# SPDX-License-Identifier: MIT
"""Is joblib faster by reference? Results of 16 MiB, 64 tasks a call, and an argument of 256 MiB to 4 workers.

Stock loky, and the same workers under backend="vmalloc": results made privately, copied in once, and results
made in the region; an argument that is private, and one made in the region. Calls in turn, after one that does
not count. An argument is another array in each call, so that each call is its first use. Says how many workers
were replaced meanwhile (loky ends those that seem to leak). `--json FILE` writes the figures.
"""

import argparse
import json
import os
import time

from _common import interleaved, machine, median

MIB = 1 << 20
RESULTS, ARGUMENT_WORKERS = (64, 16 * MIB), 4
ROUNDS = 5


def make_private(i, nbytes):
    import numpy as np

    return np.full(nbytes // 8, i, "f8")


def make_in_region(i, nbytes):
    import vmalloc.joblib

    a = vmalloc.joblib.region().empty(nbytes // 8)
    a[:] = i
    return a


def read(a):
    """One element a page: how it comes, and not how quickly it is summed."""
    return os.getpid(), float(a[::512].sum())


def call(backend, tasks, n_jobs, **options):
    import joblib

    with joblib.parallel_config(backend=backend, **options):
        return joblib.Parallel(n_jobs=n_jobs)(tasks)


class Results:
    """Seconds until the caller has all of them."""

    def __init__(self, region, nr, nbytes):
        self.region, self.nr, self.nbytes = region, nr, nbytes

    def seconds(self, make, **options):
        import joblib

        tasks = [joblib.delayed(make)(i, self.nbytes) for i in range(self.nr)]
        started = time.perf_counter()
        got = call(tasks=tasks, n_jobs=2, **options)
        took = time.perf_counter() - started
        assert [a[-1] for a in got] == list(range(self.nr))
        return took

    def ways(self):
        ours = {"backend": "vmalloc", "region": self.region}
        return {
            "stock": lambda: self.seconds(make_private, backend="loky"),
            "private": lambda: self.seconds(make_private, **ours),
            "in region": lambda: self.seconds(make_in_region, **ours),
        }


class Arguments:
    """Seconds until every worker has read an array that none of them has seen."""

    def __init__(self, region, nbytes):
        self.region, self.nbytes, self.nr = region, nbytes, 0
        self.pids = {}

    def seconds(self, is_made_in_region, **options):
        import joblib
        import numpy as np

        self.nr += 1
        made = self.region.empty(self.nbytes // 8) if is_made_in_region else np.empty(self.nbytes // 8)
        made[:] = self.nr
        tasks = [joblib.delayed(read)(made) for _ in range(ARGUMENT_WORKERS)]
        started = time.perf_counter()
        got = call(tasks=tasks, n_jobs=ARGUMENT_WORKERS, **options)
        took = time.perf_counter() - started
        assert all(total == self.nr * (self.nbytes // 4096) for _, total in got)
        self.pids.setdefault(options["backend"], set()).update(pid for pid, _ in got)
        return took

    def ways(self):
        ours = {"backend": "vmalloc", "region": self.region}
        return {
            "stock": lambda: self.seconds(False, backend="loky"),
            "private": lambda: self.seconds(False, **ours),
            "in region": lambda: self.seconds(True, **ours),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="few, small: does it run?")
    options = parser.parse_args()
    try:
        import joblib  # noqa: F401
        import numpy  # noqa: F401

        import vmalloc
        import vmalloc.joblib
    except ImportError as e:
        print(f"skipped: {e}")
        return
    share = 16 if options.quick else 1
    nr, nbytes = RESULTS
    region = vmalloc.Region(4 << 30)
    cases = {
        f"{nr} results of {nbytes // MIB // share} MiB": Results(region, nr, nbytes // share),
        f"argument of {256 // share} MiB": Arguments(region, 256 * MIB // share),
    }
    results = {}
    for name, case in cases.items():
        told = interleaved(1 if options.quick else ROUNDS, case.ways())
        results[name] = medians = {way: median(values) for way, values in told.items()}
        for way, seconds in medians.items():
            print(f"{name:24} {way:10} {seconds * 1e3:8.1f} ms  {medians['stock'] / seconds:5.1f}x", flush=True)
    print(machine())
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
