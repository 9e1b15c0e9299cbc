# SPDX-License-Identifier: MIT
"""A limit gives an exception that can be caught, never a signal.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

region = vmalloc.Region("1G", limit="1M")
held = []
try:
    while True:
        held.append(region.zeros((64, 1024), "u1"))
except vmalloc.OutOfPages as e:
    print(f"after {len(held)} arrays: {e}")
except MemoryError:
    print("never here: OutOfPages is a MemoryError, and the first clause took it")
held.clear()
print(region.zeros((1024, 1024), "u1").nbytes)
