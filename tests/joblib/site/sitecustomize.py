# SPDX-License-Identifier: MIT
"""On the path of every interpreter that compare.py starts, workers included: our backend in loky's place."""

import os

if os.environ.get("VMALLOC_SWAPPED") and os.environ.get("JOBLIB_MULTIPROCESSING") != "0":
    import joblib.parallel

    import vmalloc.joblib

    joblib.parallel.register_parallel_backend("loky", vmalloc.joblib.VmallocBackend)
