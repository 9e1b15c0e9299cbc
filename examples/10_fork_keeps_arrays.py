# SPDX-License-Identifier: MIT
"""A forked child keeps what it finds in its memory, whatever its parent frees; or lets go of it.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util
import os

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

region = vmalloc.Region("16M")
frame = region.full((100, 4096), 7, "u1")  # 100 pages
told, tell = os.pipe()
answer, say = os.pipe()

if os.fork() == 0:
    os.read(told, 1)  # by now the parent has dropped its own
    print(int(frame.min()), int(frame.max()), flush=True)  # 7 7
    region.drop_inherited()  # a worker that lives long need not keep it
    os.write(say, b".")
    os._exit(0)

del frame
others = [region.full(4096, 1, "u1") for _ in range(1000)]
print(region.stats().busy_pages, "pages in use", flush=True)  # 1100: the child's 100 are not among ours
os.write(tell, b".")
os.read(answer, 1)
print(region.stats().busy_pages, "pages in use")  # 1000
os.wait()
