# SPDX-License-Identifier: MIT
"""pandas: frames and series go part by part, as pandas pickles them; its arrays of Arrow need a word.

Numbers, dates and categories lie in arrays of numpy, which have their adapter. Text lies in Arrow's
buffers, which have theirs, but pandas joins an array's chunks before each pickle, into new memory even
where there is one. So what was received would be copied in again. Here the chunks go as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmalloc.adapters.registry import Adapter

if TYPE_CHECKING:
    from vmalloc._core import Holding

__all__ = ["ArrowArrayAdapter"]


class ArrowArrayAdapter(Adapter):
    """An ArrowStringArray or ArrowExtensionArray."""

    kind = "pandas.arrow"

    def holding(self, x: Any) -> Holding | None:
        return None

    def take_apart(self, x: Any, threshold: int) -> tuple[Any, ...] | None:
        if x.nbytes <= threshold or "_pa_array" not in x.__dict__:
            return None
        state = {**x.__dict__, "_cache": {}} if "_cache" in x.__dict__ else dict(x.__dict__)
        return load_array, (type(x), state)


def load_array(kind: Any, state: dict[str, Any]) -> Any:
    """The array of that state."""
    x = kind.__new__(kind)
    x.__dict__.update(state)
    return x
