# SPDX-License-Identifier: MIT
"""The same allocator without memory: ranges of numbers, here the sectors of a disk."""

import vmalloc

disk = vmalloc.AddressSpace(2048, 2048 + (1 << 30), granule=8, name="sectors")
first, second = disk.alloc(1000), disk.alloc(100_000)
print(first, second, disk.size_of(first), disk.size_of(second))
disk.free(first)
try:
    disk.free(first)
except vmalloc.NotAllocated as e:
    print(e)
print(disk.stats().busy_bytes)
