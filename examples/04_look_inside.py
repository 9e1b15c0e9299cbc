# SPDX-License-Identifier: MIT
"""Where the pages are: busy, ready in a magazine, lazy, free.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

region = vmalloc.Region("16M")
keep = [region.zeros((n, 4096), "u1") for n in (3, 300, 20)]
del keep[1]
for r in region.ranges():
    print(f"{r.start:5} {r.nr_pages:5} pages {r.state}")
print("purged", region.purge() >> 10, "KiB")
print(region.stats().free_pages, "of", region.nr_pages, "pages free")
