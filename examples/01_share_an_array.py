# SPDX-License-Identifier: MIT
"""Hand an array to another process and see its writes, without a copy.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util
import multiprocessing

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")


def double(region: vmalloc.Region) -> None:
    a = region["numbers"]  # the same pages
    a *= 2


if __name__ == "__main__":
    region = vmalloc.Region("64M")
    a = region.array(range(5))
    region["numbers"] = a
    worker = multiprocessing.get_context("spawn").Process(target=double, args=(region,))
    worker.start()
    worker.join()
    print(a.tolist())  # [0, 2, 4, 6, 8]
