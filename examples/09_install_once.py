# SPDX-License-Identifier: MIT
"""One line, and stock pools pass arrays by reference, in both directions, under every start method.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc


def row_sums(image: Any) -> Any:
    sums = vmalloc.default_region().empty(len(image), "u8")
    np.sum(image, axis=1, out=sums)
    image[0, 0] = 99  # the sender's own pixel: there is only one copy
    return sums


if __name__ == "__main__":
    vmalloc.install()  # or: import vmalloc.auto
    region = vmalloc.default_region()
    image = region.full((1000, 1000), 2, "u1")
    private = np.ones((1000, 1000), "u1")  # over the threshold: copied in once, when it is sent
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ours, theirs = pool.map(row_sums, [image, private])
    print(vmalloc.region_of(ours) is region)  # True: what the worker made, though the worker is gone
    print(int(ours[1]), int(theirs[1]))  # 2000 1000
    print(int(image[0, 0]), int(private[0, 0]))  # 99 1
    region.recover()
    del image, ours, theirs
    print(region.stats().busy_pages, "pages in use")
