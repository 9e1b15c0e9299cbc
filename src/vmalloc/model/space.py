# SPDX-License-Identifier: MIT
"""Space: every free range in address order; lowest-address first fit.

One global space lies behind all nodes. It covers the whole kernel address range, so one structure serves the
vmalloc window, the module window and every other caller-given window; a window only bounds the search.

What it promises:

1. No two free ranges touch: `add` merges with both neighbours.
2. `find` returns the lowest start at which the request fits in a range of at least `length` bytes.
   The window's end takes no part in the search; the caller checks it on the one range found.
3. Both cost O(log n): ranges live in leaves of at most LEAF entries; above them are levels of summaries,
   each entry the longest range of FAN entries below.
4. `find` counts one search, and one step for each length, of a range or of a summary entry, that it looks
   at. Finding the place of `vstart` by bisection is not counted.

The kernel keeps a red-black tree with the same summary. For alignments up to a page both give the same
answer. For larger ones the kernel searches for size + align - 1 but also accepts a smaller range that it
meets on its way down, which depends on the tree's shape: see `bounds`.

After: Linux mm/vmalloc.c, find_vmap_lowest_match(), va_clip() and merge_or_add_vmap_area().
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from vmalloc.model.area import PAGE

LEAF = 128
FAN = 32


def search_length(size: int, align: int, vstart: int, vend: int) -> int:
    """The range length that surely holds an aligned request; exact-window requests search their own size."""
    if align <= PAGE or vend - vstart == size:
        return size
    return size + align - 1


class Space:
    """Disjoint, never adjacent free ranges `[start, end)` in bytes."""

    __slots__ = ("_firsts", "_levels", "_sizes", "_starts", "searches", "steps", "steps_max")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        ordered = sorted(ranges)
        half = LEAF // 2
        cuts = range(0, len(ordered), half)
        self._starts = [[start for start, _ in ordered[cut : cut + half]] for cut in cuts] or [[]]
        self._sizes = [[end - start for start, end in ordered[cut : cut + half]] for cut in cuts] or [[]]
        self._firsts = [starts[0] if starts else 0 for starts in self._starts]
        self._levels = [[max(sizes, default=0) for sizes in self._sizes]]
        self._summarise(0)
        self.searches = self.steps = self.steps_max = 0  # steps_max: of one search

    def copy(self) -> Space:
        """An independent copy."""
        other = Space.__new__(Space)
        self.copy_into(other)
        return other

    def copy_into(self, other: Space) -> None:
        """Make `other`, which need not be initialised, a copy of this space."""
        other._starts = [leaf[:] for leaf in self._starts]
        other._sizes = [leaf[:] for leaf in self._sizes]
        other._firsts = self._firsts[:]
        other._levels = [level[:] for level in self._levels]
        other.searches, other.steps, other.steps_max = self.searches, self.steps, self.steps_max

    def __len__(self) -> int:
        return sum(map(len, self._starts))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for starts, sizes in zip(self._starts, self._sizes, strict=True):
            for start, size in zip(starts, sizes, strict=True):
                yield start, start + size

    @property
    def longest(self) -> int:
        """Bytes of the longest free range; 0 if none."""
        return max(self._levels[-1])

    # ------------------------------------------------------------------ the search

    def find(self, size: int, align: int = 1, vstart: int = 0, length: int | None = None) -> int | None:
        """The lowest aligned start >= vstart with `size` free bytes in a range of `length` or more."""
        want = size if length is None else length
        before = self.steps
        leaf, index = self._at_or_after(vstart)
        mask = align - 1
        fit = None
        while (place := self._next(leaf, index, want)) is not None:
            leaf, index = place
            start = self._starts[leaf][index]
            fit = (max(start, vstart) + mask) & ~mask
            if fit + size <= start + self._sizes[leaf][index]:
                break
            fit = None
            index += 1
        self.searches += 1
        if self.steps - before > self.steps_max:
            self.steps_max = self.steps - before
        return fit

    def bounds(self, size: int, align: int, vstart: int, vend: int) -> tuple[int | None, int | None]:
        """The lowest and the highest answer a tree of any shape can give for this request."""
        sure = self.find(size, align, vstart, search_length(size, align, vstart, vend))
        return self.find(size, align, vstart), sure

    def covering(self, address: int) -> tuple[int, int] | None:
        """The free range that contains `address`, if any."""
        leaf, index = self._at_or_after(address)
        if index >= len(self._starts[leaf]):
            return None
        start = self._starts[leaf][index]
        return (start, start + self._sizes[leaf][index]) if start <= address else None

    def next_free(self, address: int) -> int:
        """The lowest start of a free range at or after `address`; 2^65 if there is none."""
        leaf = max(bisect_right(self._firsts, address) - 1, 0)
        return self._start_after(leaf, bisect_right(self._starts[leaf], address - 1))

    def _at_or_after(self, address: int) -> tuple[int, int]:
        """The place of the first range that ends above `address`; may be one past a leaf's last."""
        leaf = max(bisect_right(self._firsts, address) - 1, 0)
        starts = self._starts[leaf]
        index = bisect_right(starts, address)
        if index and starts[index - 1] + self._sizes[leaf][index - 1] > address:
            index -= 1
        return leaf, index

    def _next(self, leaf: int, index: int, want: int) -> tuple[int, int] | None:
        """The place of the first range of at least `want` bytes, at or after (leaf, index)."""
        self.steps += 1
        if self._levels[0][leaf] >= want:
            sizes = self._sizes[leaf]
            for place in range(index, len(sizes)):
                if sizes[place] >= want:
                    self.steps += place - index + 1
                    return leaf, place
            self.steps += len(sizes) - index
        following = self._next_leaf(leaf + 1, want)
        if following is None:
            return None
        for place, size in enumerate(self._sizes[following]):
            if size >= want:
                self.steps += place + 1
                return following, place
        raise AssertionError("a summary promised a longer range than its leaf holds")

    def _next_leaf(self, at: int, want: int) -> int | None:
        """The first leaf at or after `at` that holds a range of at least `want` bytes."""
        levels = self._levels
        top = len(levels) - 1
        for depth, level in enumerate(levels):  # up, to the right end of each group
            stop = len(level) if depth == top else min(len(level), -(-at // FAN) * FAN)
            for entry in range(at, stop):
                if level[entry] >= want:
                    self.steps += entry - at + 1
                    return self._down(depth, entry, want)
            self.steps += max(stop - at, 0)
            at = -(-at // FAN)
        return None

    def _down(self, depth: int, at: int, want: int) -> int:
        """The first leaf that is long enough below entry `at` of a level."""
        while depth:
            depth -= 1
            level = self._levels[depth]
            first = at = at * FAN
            while level[at] < want:
                at += 1
            self.steps += at - first + 1
        return at

    # ------------------------------------------------------------------ changes

    def take(self, start: int, size: int) -> None:
        """Remove `[start, start + size)`, which lies within one free range (full, edge or middle fit)."""
        leaf, index = self._at_or_after(start)
        starts, sizes = self._starts[leaf], self._sizes[leaf]
        low, high = starts[index], starts[index] + sizes[index]
        end = start + size
        if not (low <= start and end <= high):
            raise ValueError(f"{start:#x}-{end:#x} is not free as a whole")
        if low == start and end == high:
            del starts[index], sizes[index]
        elif low == start:
            starts[index], sizes[index] = end, high - end
        else:
            sizes[index] = start - low
            if end < high:
                starts.insert(index + 1, end)
                sizes.insert(index + 1, high - end)
        self._changed(leaf)

    def add(self, start: int, size: int) -> None:
        """Put `[start, start + size)` back, merged with the free ranges it touches.

        Raises ValueError if any byte of it is free already.
        """
        end = start + size
        leaf = max(bisect_right(self._firsts, start) - 1, 0)
        starts, sizes = self._starts[leaf], self._sizes[leaf]
        index = bisect_right(starts, start)
        before_end = starts[index - 1] + sizes[index - 1] if index else 0
        after = self._start_after(leaf, index)
        if before_end > start or after < end:
            raise ValueError(f"{start:#x}-{end:#x} is free already")
        if after == end:
            size += self._pop(leaf, index)
        if index and before_end == start:
            sizes[index - 1] += size
        else:
            starts.insert(index, start)
            sizes.insert(index, size)
        self._changed(leaf)

    def discard(self, start: int, size: int) -> int:
        """Remove whatever of `[start, start + size)` is free; returns the bytes removed."""
        removed = 0
        at, end = start, start + size
        while at < end:
            leaf, index = self._at_or_after(at)
            low = self._start_after(leaf, index)
            if low >= end:
                break
            free = self.covering(max(low, at))
            assert free is not None
            low, high = max(free[0], at), min(free[1], end)
            self.take(low, high - low)
            removed += high - low
            at = high
        return removed

    def _start_after(self, leaf: int, index: int) -> int:
        if index < len(self._starts[leaf]):
            return self._starts[leaf][index]
        following = leaf + 1
        return self._starts[following][0] if following < len(self._starts) else 1 << 65

    def _pop(self, leaf: int, index: int) -> int:
        """Remove the range at (leaf, index), or the next leaf's first if `index` is one past the end."""
        if index < len(self._starts[leaf]):
            del self._starts[leaf][index]
            return self._sizes[leaf].pop(index)
        del self._starts[leaf + 1][0]
        size = self._sizes[leaf + 1].pop(0)
        self._changed(leaf + 1)
        return size

    # ------------------------------------------------------------------ the summary

    def _changed(self, leaf: int) -> None:
        """Bring the summary up to date after a change in one leaf."""
        starts, sizes = self._starts[leaf], self._sizes[leaf]
        if len(starts) > LEAF or (not starts and len(self._starts) > 1):
            self._resize(leaf)
            return
        if starts:
            self._firsts[leaf] = starts[0]
        levels, at, longest = self._levels, leaf, max(sizes, default=0)
        below = levels[0]
        for level in levels[1:]:
            if below[at] == longest:
                return
            below[at] = longest
            at //= FAN
            longest = max(below[at * FAN : at * FAN + FAN])
            below = level
        below[at] = longest

    def _resize(self, leaf: int) -> None:
        """Split a full leaf in two, or drop an empty one; the summaries to its right shift."""
        starts, sizes = self._starts[leaf], self._sizes[leaf]
        half = len(starts) // 2
        parts = slice(leaf, leaf + 1)
        halves = (slice(half), slice(half, None)) if starts else ()
        self._starts[parts] = [starts[at] for at in halves]
        self._sizes[parts] = [sizes[at] for at in halves]
        self._firsts[parts] = [starts[0], starts[half]] if starts else []
        self._levels[0][parts] = [max(sizes[:half]), max(sizes[half:])] if starts else []
        self._summarise(leaf)

    def _summarise(self, leaf: int) -> None:
        """Compute the levels above the leaves again, from `leaf` to the right."""
        below, depth = self._levels[0], 1
        while len(below) > FAN:
            if depth == len(self._levels):
                self._levels.append([])
            level = self._levels[depth]
            leaf = min(leaf // FAN, len(level))
            del level[leaf:]
            level += [max(below[at : at + FAN]) for at in range(leaf * FAN, len(below), FAN)]
            below, depth = level, depth + 1
        del self._levels[depth:]
