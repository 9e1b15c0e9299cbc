# SPDX-License-Identifier: MIT
"""A table in one block, by name; joblib's results by reference. Each where its library is installed."""

import importlib.util

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc


def tables(region):
    import pyarrow as pa

    import vmalloc.arrow

    table = pa.table({"x": np.arange(100_000.0), "word": ["one", "two"] * 50_000})
    region["words"] = vmalloc.arrow.put(table, region)  # one copy, one block
    assert region["words"].equals(table)  # no copy: any process that has the region may ask
    del region["words"]


def results(region):
    import joblib

    import vmalloc.joblib

    with joblib.parallel_config(backend="vmalloc", region=region):
        made = joblib.Parallel(n_jobs=2)(joblib.delayed(np.full)(100_000, i) for i in range(4))
    assert all(vmalloc.region_of(a) is region for a in made)
    assert [a[0] for a in made] == [0, 1, 2, 3]


if __name__ == "__main__":
    region = vmalloc.Region("256M")
    for library, example in (("pyarrow", tables), ("joblib", results)):
        if importlib.util.find_spec(library):
            example(region)
    print("done")
