# SPDX-License-Identifier: MIT
"""Workers of a Dask cluster read one array by reference: one line. Where distributed is installed."""

import importlib.util

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc


def load():
    return np.arange(1_000_000)


def part(a, i):
    return vmalloc.is_shared(a), int(a[i::4].sum())


def cluster():
    import distributed

    import vmalloc.dask

    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        vmalloc.dask.install(client)
        first, second = sorted(client.scheduler_info()["workers"])
        a = client.submit(load, workers=first)
        parts = [client.submit(part, a, i, workers=second) for i in range(4)]
        told = client.gather(parts)
        assert all(is_shared for is_shared, _ in told)
        assert sum(total for _, total in told) == sum(range(1_000_000))


if __name__ == "__main__":
    if importlib.util.find_spec("distributed"):
        cluster()
    print("done")
