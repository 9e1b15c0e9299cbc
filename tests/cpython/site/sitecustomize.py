# SPDX-License-Identifier: MIT
"""On the path of every interpreter that compare.py starts, children included."""

import os

if os.environ.get("VMALLOC_INSTALLED"):
    import vmalloc.auto  # noqa: F401
