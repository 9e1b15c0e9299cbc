"""What every test gets. `make test` puts the build with hooks and assertions first on the path."""

from __future__ import annotations

import importlib.util


def pytest_report_header() -> str:
    spec = importlib.util.find_spec("vmalloc")
    return f"vmalloc: {spec.origin if spec else 'not found; run `make test`'}"
