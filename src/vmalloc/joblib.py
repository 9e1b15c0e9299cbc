# SPDX-License-Identifier: MIT
"""`import vmalloc.joblib` makes `joblib.parallel_config(backend="vmalloc")` known."""

from vmalloc.adapters.joblib import VmallocBackend

__all__ = ["VmallocBackend"]
