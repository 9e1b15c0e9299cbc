# SPDX-License-Identifier: MIT
"""Null: a made-up allocator that never uses an address twice, to put beside what is said of a live kernel.

With an unseen start state much is assumed, and some figures are high for any allocator: neighbours fit, and
"pool or space" is judged from them. The same requests at addresses that only go up show what such a figure is
worth: what the null allocator reaches as well says nothing about the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from vmalloc.lab.events import ALLOC, FREE
from vmalloc.lab.predict import Prediction, Predictor
from vmalloc.lab.replay import Recording
from vmalloc.model import PAGE, Design

EVENTS_MAX = 50_000
"""So many events show what a figure is worth; more only take time."""


def null_recording(recording: Recording) -> Recording:
    """The first EVENTS_MAX requests of a recording as the null allocator would have served them."""
    tops: dict[tuple[int, int], int] = {}
    moved: dict[int, int] = {}
    events = []
    for event in recording.events[:EVENTS_MAX]:
        if event.kind == ALLOC and not event.failed:
            window = event.vstart, event.vend
            align = max(event.align, PAGE)
            start = -(-tops.get(window, event.vstart) // align) * align
            tops[window] = start + event.size
            moved[event.addr] = start
            event = event._replace(addr=start)
        elif event.kind == FREE and event.addr in moved:
            event = event._replace(addr=moved.pop(event.addr))
        events.append(event)
    return Recording(events, recording.window, recording.cpus)


def predict_null(
    recording: Recording, design: Design, progress: Callable[[int], object] | None = None
) -> Prediction:
    """What a design, with no start state given, predicts of the null allocator."""
    null = null_recording(recording)
    return Predictor(null.kernel(design), null.line, start_known=False).run(progress)
