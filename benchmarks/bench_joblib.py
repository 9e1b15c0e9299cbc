# SPDX-License-Identifier: MIT
"""Is joblib faster by reference? Results of 16 MiB, 64 tasks a call, and an argument of 256 MiB to 4 workers.

Stock loky and backend="vmalloc", each in a process of its own, for joblib has one set of workers, which a
change of backend ends. Results are made privately and copied in once, the same under
`numpy_arrays=True`, or made in the region; an argument is made privately or in the region,
and is another array in each call, so that each call is its first use. Calls in turn, after one that
does not count. Says how many workers there were: loky ends those that seem to leak. `--json FILE` writes the
figures.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from _common import interleaved, machine, median

MIB = 1 << 20
RESULTS = (64, 16 * MIB)
ARGUMENT_BYTES, ARGUMENT_WORKERS = 256 * MIB, 4
ROUNDS = 5


def make_private(i, nbytes):
    import numpy as np

    return os.getpid(), np.full(nbytes // 8, i, "f8")


def make_in_region(i, nbytes):
    import vmalloc.joblib

    a = vmalloc.joblib.region().empty(nbytes // 8)
    a[:] = i
    return os.getpid(), a


MAKERS = {"private": make_private, "numpy": make_private, "region": make_in_region}


def read(a):
    """One element a page: how it comes, and not how quickly it is summed."""
    return os.getpid(), float(a[::512].sum())


class Case:
    """In a process of one backend: calls, and the workers that served them."""

    def __init__(self, backend, share):
        import joblib

        import vmalloc
        import vmalloc.joblib

        self.joblib, self.backend, self.share = joblib, {"backend": backend}, share
        if backend != "loky":
            self.backend["region"] = vmalloc.Region(4 << 30)
        self.nr, self.pids = 0, set()

    def parallel(self, nr_jobs, tasks, **options):
        """Seconds until the caller has all that they give, and that."""
        started = time.perf_counter()
        with self.joblib.parallel_config(**self.backend, **options):
            got = self.joblib.Parallel(n_jobs=nr_jobs)(tasks)
        took = time.perf_counter() - started
        self.pids.update(pid for pid, _ in got)
        return took, [value for _, value in got]

    def results(self, where):
        nr, nbytes = RESULTS
        make = self.joblib.delayed(MAKERS[where])
        options = {"numpy_arrays": True} if where == "numpy" else {}
        took, got = self.parallel(2, [make(i, nbytes // self.share) for i in range(nr)], **options)
        assert [a[-1] for a in got] == list(range(nr))
        return took

    def argument(self, where):
        import numpy as np

        self.nr += 1
        n = ARGUMENT_BYTES // self.share // 8
        made = np.empty(n) if where == "private" else self.backend["region"].empty(n)
        made[:] = self.nr
        task = self.joblib.delayed(read)
        took, got = self.parallel(ARGUMENT_WORKERS, [task(made) for _ in range(ARGUMENT_WORKERS)])
        assert got == [self.nr * (n // 512)] * ARGUMENT_WORKERS
        return took


def serve(backend, share):
    """A line with a question comes, a line with the seconds and how many workers there were goes."""
    case = Case(backend, share)
    for line in sys.stdin:
        if line == "forget\n":
            case.pids.clear()
            continue
        question, where = line.split()
        print(json.dumps([getattr(case, question)(where), len(case.pids)]), flush=True)


class Server:
    def __init__(self, backend, share):
        command = [sys.executable, __file__, "--serve", backend, str(share)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.nr_workers = 0

    def seconds(self, question, where):
        self.process.stdin.write(f"{question} {where}\n")
        self.process.stdin.flush()
        took, self.nr_workers = json.loads(self.process.stdout.readline())
        return took

    def forget(self):
        self.process.stdin.write("forget\n")

    def end(self):
        self.process.communicate()


def main():
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="few, small: does it run?")
    options = parser.parse_args()
    try:
        import joblib  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as e:
        print(f"skipped: {e}")
        return None
    share = 16 if options.quick else 1
    stock, ours = Server("loky", share), Server("vmalloc", share)
    names = {
        "results": f"{RESULTS[0]} results of {RESULTS[1] // MIB // share} MiB",
        "argument": f"argument of {ARGUMENT_BYTES // MIB // share} MiB",
    }
    results = {}
    for question, name in names.items():
        ways = {
            "stock": lambda q=question: stock.seconds(q, "private"),
            "private": lambda q=question: ours.seconds(q, "private"),
            "region": lambda q=question: ours.seconds(q, "region"),
        }
        if question == "results":
            ways["numpy"] = lambda: ours.seconds("results", "numpy")
        for server in (stock, ours):
            server.forget()
        told = interleaved(1 if options.quick else ROUNDS, ways)
        results[name] = medians = {way: median(values) for way, values in told.items()}
        for way, seconds in medians.items():
            print(
                f"{name:24} {way:10} {seconds * 1e3:8.1f} ms  {medians['stock'] / seconds:5.1f}x", flush=True
            )
        print(f"{name:24} workers: {stock.nr_workers} stock, {ours.nr_workers} ours")
    for server in (stock, ours):
        server.end()
    print(machine())
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)
    return None


if __name__ == "__main__":
    main()
