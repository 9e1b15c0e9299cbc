# SPDX-License-Identifier: MIT
"""Blocks are memory without a shape: any buffer consumer takes them, release() is exact."""

import vmalloc

region = vmalloc.Region("16M")
with region.alloc(1_000_000, align=65536) as block:
    view = memoryview(block)
    view[:5] = b"hello"
    print(bytes(view[:5]), len(block), block.offset % 65536)
    try:
        block.release()
    except BufferError as e:
        print("not yet:", e)
    view.release()
print(region.stats().busy_pages, "pages in use")
