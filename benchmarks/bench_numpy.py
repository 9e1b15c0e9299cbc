# SPDX-License-Identifier: MIT
"""Is numpy slower when its large arrays lie in a region? a * b + a, concatenate, where, on arrays of 64 MiB.

The same loop in one process for each allocator, all in turn: glibc as it is, mimalloc, jemalloc and tcmalloc
preloaded where they are installed, and `with region.numpy_arrays():`. Milliseconds of one operation, and page
faults. `--json FILE` writes the figures.
"""

import json
import os
import resource
import subprocess
import sys
import time

from _common import finish, interleaved, machine, median, options, result, show

MIB = 1 << 20
ROUNDS, TIMES = 5, 6
PEERS = {
    "mimalloc": "libmimalloc.so.2",
    "jemalloc": "libjemalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
}
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
OURS = "vmalloc"


def operations(np, nbytes):
    n = nbytes // 8
    a, b = np.ones(n), np.ones(n)
    return {
        "a * b + a": lambda: a * b + a,
        "concatenate": lambda: np.concatenate((a[: n // 2], b[n // 2 :])),
        "where": lambda: np.where(a > b, a, b),
    }


def serve(mib):
    """The process of one allocator: a line with an operation's name comes, a line with what it took goes."""
    import numpy as np

    work = operations(np, mib * MIB)
    for line in sys.stdin:
        call = work[line.strip()]
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        for _ in range(TIMES):
            call()
        took = (time.perf_counter() - started) / TIMES
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / TIMES
        print(json.dumps([took, faults]), flush=True)


def serve_in_region(mib):
    import vmalloc

    with vmalloc.Region(32 * mib * MIB).numpy_arrays(min_size=65536):
        serve(mib)


def library(name):
    return next((path for path in (f"{folder}/{name}" for folder in FOLDERS) if os.path.exists(path)), None)


class Server:
    def __init__(self, way, preload, mib):
        env = {**os.environ, "LD_PRELOAD": preload} if preload else None
        command = [sys.executable, __file__, "--serve", way, str(mib)]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.faults = {}

    def seconds(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        took, faults = json.loads(self.process.stdout.readline())
        self.faults.setdefault(name, []).append(faults)
        return took

    def end(self):
        self.process.communicate()


def main():
    if sys.argv[1:2] == ["--serve"]:
        way, mib = sys.argv[2], int(sys.argv[3])
        return serve_in_region(mib) if way == OURS else serve(mib)
    parser = options(__doc__)
    parser.add_argument("--mib", type=int, default=64)
    args = parser.parse_args()
    try:
        import numpy as np
    except ImportError as e:
        print(f"skipped: {e}")
        return None
    found = {"glibc": None, **{name: library(file) for name, file in PEERS.items()}, OURS: None}
    ways = {way: path for way, path in found.items() if path or way in ("glibc", OURS)}
    mib = 1 if args.quick else args.mib
    servers = {way: Server(way, path, mib) for way, path in ways.items()}
    results, rows = [], []
    for name in operations(np, 8):
        told = interleaved(
            1 if args.quick else ROUNDS, {way: lambda s=s, n=name: s.seconds(n) for way, s in servers.items()}
        )
        ms = {way: median(values) * 1e3 for way, values in told.items()}
        rows.append([name, *(f"{ms[w]:.1f} ({median(servers[w].faults[name]):.0f})" for w in servers)])
        results.append(result(name, OURS, ms[OURS], "ms", {way: v for way, v in ms.items() if way != OURS}))
    for server in servers.values():
        server.end()
    show(f"numpy on arrays of {mib} MiB: ms (page faults)", ["operation", *servers], rows)
    print(machine())
    finish(args, results)
    return None


if __name__ == "__main__":
    main()
