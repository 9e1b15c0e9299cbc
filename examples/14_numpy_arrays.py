# SPDX-License-Identifier: MIT
"""Code that knows nothing of regions makes its large arrays in one."""

import pickle

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc


def their_code():
    return np.ones(1_000_000) * 2 - 1


region = vmalloc.Region("64M")
with region.numpy_arrays():  # arrays of 64 KiB and more
    a = their_code()

print(vmalloc.is_shared(a))  # True
b = pickle.loads(pickle.dumps(vmalloc.ref(a)))  # the same pages, not a copy
print(b.sum())  # 1000000.0

del a, b
print(region.stats().busy_pages, "pages in use")
