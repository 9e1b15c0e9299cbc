# SPDX-License-Identifier: MIT
"""Camera, worker, sink: 1080p frames through stock queues, as they are, with install(), and made in a region.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import time
from multiprocessing import get_context
from typing import Any

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc

FRAMES = 60
SHAPE = (1080, 1920, 3)  # 6 MiB
WAYS = {"stock": False, "install()": True, "frames made in the region": True}


def camera(way: str, out: Any) -> None:
    region = vmalloc.default_region() if way == "frames made in the region" else None
    for number in range(FRAMES):
        frame = np.empty(SHAPE, "u1") if region is None else region.empty(SHAPE, "u1")
        frame[:] = number
        out.put(frame)
    out.put(None)


def worker(frames: Any, out: Any) -> None:
    while (frame := frames.get()) is not None:
        frame[:8] = 255  # draws a line
        out.put(frame)
    out.put(None)


def frames_per_second(way: str) -> tuple[float, int]:
    """And the sum of one pixel of each frame, which no way may change."""
    context = get_context("fork")
    raw, drawn = context.Queue(4), context.Queue(4)
    processes = [
        context.Process(target=camera, args=(way, raw)),
        context.Process(target=worker, args=(raw, drawn)),
    ]
    for process in processes:
        process.start()
    total, begin = 0, time.perf_counter()
    while (frame := drawn.get()) is not None:  # the sink
        total += int(frame[500, 500, 0])
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    return FRAMES / seconds, total


if __name__ == "__main__":
    totals = set()
    for way, installed in WAYS.items():
        if installed:
            vmalloc.install()
            vmalloc.default_region()
        rate, total = frames_per_second(way)
        totals.add(total)
        print(f"{way:26} {rate:6.0f} frames/s")
    print("every frame arrived:", totals == {sum(range(FRAMES))})
