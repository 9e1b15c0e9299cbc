# SPDX-License-Identifier: MIT
"""The standard library's SharedMemory with one import line changed: nothing to track, nothing left behind.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

from multiprocessing import get_context

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

from vmalloc.shared_memory import SharedMemory  # was: from multiprocessing.shared_memory


def double(name: str) -> None:
    memory = SharedMemory(name)  # found by its name
    a = np.ndarray(5, "i8", memory.buf)
    a *= 2


if __name__ == "__main__":
    memory = SharedMemory(create=True, size=40)
    a = np.ndarray(5, "i8", memory.buf)
    a[:] = range(5)
    worker = get_context("spawn").Process(target=double, args=(memory.name,))
    worker.start()
    worker.join()
    memory.close()
    memory.unlink()  # forgotten, it would end with the last process that has the region
    print(a.tolist())  # [0, 2, 4, 6, 8]: an array keeps its memory
