# SPDX-License-Identifier: MIT
"""On the path of every interpreter that compare.py starts, workers included: our backend in loky's place."""

import os

if os.environ.get("VMALLOC_SWAPPED") and os.environ.get("JOBLIB_MULTIPROCESSING") != "0":
    import joblib.parallel

    import vmalloc.joblib  # noqa: F401

    joblib.parallel.BACKENDS["loky"] = joblib.parallel.BACKENDS.pop("vmalloc")
