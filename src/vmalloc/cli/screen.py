# SPDX-License-Identifier: MIT
"""What `vmalloc top` draws: a Look as lines of text that fit a terminal. Reads no key and no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.text import Text

from vmalloc.cli.manners import human_bytes, safe
from vmalloc.facts import LEVELS
from vmalloc.monitor import Held, Holder, Look

__all__ = ["HELP", "SORTS", "View", "draw", "edges"]

HEAT = " ·░▒▓█"
HEAT_STYLES = ("", "blue", "cyan", "green", "yellow", "red")
STATE_STYLES = {"busy": "red", "ready": "green", "lazy": "yellow", "free": "dim"}
STATE_LETTERS = {"busy": "#", "ready": "+", "lazy": "~", "free": "."}
LEVEL_STYLES = dict(zip(LEVELS, ("green", "green", "cyan", "blue", "yellow", "red"), strict=True))
BESIDE_FROM = 140
"""So wide, holders and ranges stand side by side."""
POOL_ROWS_SHARE = 4
"""The heat map takes at most one such part of the height."""
LABEL = 11
SEEN_ALL = 0.995
"""From here on the share of recorded events that was seen is not told."""

SORTS: dict[str, Callable[[Holder], Any]] = {
    "bytes": lambda h: -h.nbytes,
    "pid": lambda h: h.pid,
    "command": lambda h: h.command,
    "state": lambda h: (h.state == "running", h.state),
}

HELP = """\
 s        sort processes by bytes, pid, command or state
 /        show only what has this text; Enter ends it, Esc clears it
 p, Space pause, and go on
 n        the next region
 ?, h     this help
 q        quit

 used       what programs hold
 ready      kept for the next requests, in magazines and pools
 lazy       freed and still warm
 hits       who served requests: the thread's magazine, its CPU's slab, its
            node's pool, another node's, warm ranges, free space
 ready, by  pages in magazines and pools by size of the range; darker is
            more, in steps of 8
 lock wait  time that threads waited for each other, of each second
 recorded   while vmalloc record runs: events a second, by their kind

 Counters are read at every look. Processes and ranges need a look at all
 words, as seldom as its cost asks for; "words" is the age of the last.
 Nothing is locked."""


@dataclass
class View:
    """What the user chose."""

    sort: str = "bytes"
    filter: str = ""
    is_typing: bool = False  #: the filter
    paused: bool = False
    help: bool = False
    note: str = ""


def draw(look: Look, view: View, width: int, height: int) -> list[Text]:
    """At most `height` lines, each of at most `width` cells; the last one tells the keys."""
    if view.help:
        body = [Text(line) for line in HELP.splitlines()]
    else:
        body = [*_head(look, width), *_heat_map(look, width, max(height // POOL_ROWS_SHARE, 2))]
        body += _tables(look, view, width, height - len(body) - 1)
    body = body[: height - 1]
    body += [Text()] * (height - 1 - len(body))
    lines = [*body, _keys(view)][-height:]
    for line in lines:
        line.truncate(width)
    return lines


# ---- the head: sizes, rates, shares ----


def _head(look: Look, width: int) -> Iterator[Text]:
    pages = look.pages
    used = pages["busy"] * look.granule
    most = look.limit or look.nbytes
    yield Text.assemble(
        (safe(look.name, 32) or "-", "bold"),
        f"  used {human_bytes(used)} of {human_bytes(most)} ({used / most:.0%})",
        f"  resident {human_bytes(look.resident_bytes)}",
        f"  {look.nr_processes} process{'' if look.nr_processes == 1 else 'es'}" if look.nr_processes else "",
        "" if look.nr_processes else ("  nobody has it open", "bold red"),
        f"  words {look.words_age_s:.0f} s",
        "" if look.is_whole else ("  damaged: vmalloc check", "bold red"),
    )
    yield _bar(look, width)
    rates = look.rates
    yield Text(
        f"{'a second':<{LABEL}}{_count(look.allocs)} requests  {_count(rates.get('failed', 0))} failed  "
        f"{_count(rates.get('purges', 0))} purges  {_count(rates.get('discards', 0))} discards  "
        f"{human_bytes(int(rates.get('decayed_pages', 0) * look.granule))} decayed"
    )
    yield _shares(look)
    yield Text(
        f"{'lock wait':<{LABEL}}{look.lock_wait * 1e3:.1f} ms/s  leases {look.nr_leases}  "
        f"helper {look.helper_pid or '-'}  pressure {look.pressure}  "
        f"largest free {human_bytes(pages['largest_free'] * look.granule)}"
    )
    if look.is_recorded:
        yield _events(look)


def _bar(look: Look, width: int) -> Text:
    """The region's pages by state, to scale."""
    pages = look.pages
    parts = {
        "busy": pages["busy"] + pages["moving"],
        "ready": pages["cached"] + pages["pooled"],
        "lazy": pages["lazy"],
        "free": pages["free"],
    }
    total = sum(parts.values()) or 1
    legend = "  ".join(f"{STATE_LETTERS[s]} {s} {human_bytes(n * look.granule)}" for s, n in parts.items())
    room = max(width - len(legend) - 4, 8)
    bar, at, before = Text("["), 0, 0
    for state, nr in parts.items():
        at += nr
        end = round(at * room / total)
        bar.append(STATE_LETTERS[state] * (end - before), STATE_STYLES[state])
        before = end
    return bar.append(f"] {legend}")


def _shares(look: Look) -> Text:
    line = Text(f"{'hits':<{LABEL}}")
    if not look.hits:
        return line.append("no requests", "dim")
    for level in LEVELS:
        if look.hits[level]:
            line.append(f"{level} {look.hits[level]:.1%}  ", LEVEL_STYLES[level])
    return line


def _events(look: Look) -> Text:
    """What the rings say, the most frequent first."""
    line = Text(f"{'recorded':<{LABEL}}")
    by_rate = sorted(look.events.items(), key=lambda item: -item[1])
    line.append("  ".join(f"{kind} {_count(rate)}" for kind, rate in by_rate) or "nothing yet")
    if look.events_seen < SEEN_ALL:
        line.append(f"  ({look.events_seen:.0%} seen)", "dim")
    return line


def _count(number: float) -> str:
    """Three digits and a unit of 1000."""
    for unit in ("", "K", "M"):
        if number < 999.5:
            return f"{number:.0f}{unit}" if number >= 9.95 or number == 0 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}G"


# ---- pools as a heat map ----


def edges(nr_columns: int, nr_sizes: int) -> list[int]:
    """The first size of each column and, last, nr_sizes + 1: columns widen with the sizes, none is empty."""
    nr_columns = min(nr_columns, nr_sizes)
    found = [1]
    for column in range(1, nr_columns):
        left = nr_columns - column  # columns that still need a size each
        wished = round(nr_sizes ** (column / nr_columns))
        found.append(min(max(wished, found[-1] + 1), nr_sizes + 1 - left))
    return [*found, nr_sizes + 1]


def _heat(nr_pages: int) -> int:
    """A step for each 8 times as many."""
    return 0 if nr_pages == 0 else min(1 + int(math.log2(nr_pages)) // 3, len(HEAT) - 1)


def _heat_row(label: str, ranges: Sequence[int], at: list[int]) -> Text:
    row = Text(f"{label:<{LABEL}}")
    for start, end in pairwise(at):
        heat = _heat(sum(ranges[n - 1] * n for n in range(start, end)))
        row.append(HEAT[heat], HEAT_STYLES[heat])
    return row


def _heat_map(look: Look, width: int, most: int) -> Iterator[Text]:
    nr_sizes = len(look.pools["magazines"])
    at = edges(width - LABEL - 1, nr_sizes)
    yield _scale(at)
    rows = list(look.pools.items())
    if len(rows) > most:  # many nodes: several in a row
        nodes, per_row = rows[1:], -(-(len(rows) - 1) // max(most - 1, 1))
        rows = rows[:1]
        for first in range(0, len(nodes), per_row):
            group = [ranges for _, ranges in nodes[first : first + per_row]]
            rows.append((f"nodes {first}+", [sum(column) for column in zip(*group, strict=True)]))
    for label, ranges in rows:
        yield _heat_row(label, ranges, at)


def _scale(at: list[int]) -> Text:
    """Above the columns: powers of four, each where its column is."""
    line = f"{'ready, by':<{LABEL}}"
    for column, start in enumerate(at[:-1]):
        mark = str(start)
        is_marked = any(at[column] <= 4**n < at[column + 1] for n in range(5))
        if is_marked and len(line) <= LABEL + column and column + len(mark) < len(at):
            line = (
                line.ljust(LABEL + column)
                + str(next(4**n for n in range(5) if start <= 4**n < at[column + 1]))
                + " "
            )
    return Text(line + " pages", "dim")


# ---- processes and ranges ----


def _tables(look: Look, view: View, width: int, room: int) -> list[Text]:
    wide = width >= BESIDE_FROM
    half = width // 2 - 1 if wide else width
    nr_below = min(len(look.largest) + 1, max(room // 3, 2)) if not wide else room
    processes = _processes(look, view, half, room if wide else room - nr_below)
    ranges = _ranges(look, view, half, nr_below)
    if not wide:
        return [*processes, *ranges]
    lines: list[Text] = []
    for n in range(max(len(processes), len(ranges))):
        left = processes[n] if n < len(processes) else Text()
        left.truncate(half + 2, pad=True)
        lines.append(left.append_text(ranges[n]) if n < len(ranges) else left)
    return lines


def _title(text: str, width: int) -> Text:
    return Text(text.ljust(width)[:width], "reverse")


def _fits(view: View, text: str) -> bool:
    return view.filter.lower() in text.lower()


def _processes(look: Look, view: View, width: int, room: int) -> list[Text]:
    fitting = [h for h in look.holders if _fits(view, f"{h.pid} {h.state} {h.command}")]
    fitting.sort(key=SORTS[view.sort])
    lines = [_title(f"{'PID':>8} {'HOLDS':>7} {'STATE':<8} COMMAND ({len(fitting)}, by {view.sort})", width)]
    for h in fitting[: max(room - 1, 0)]:
        line = Text(f"{h.pid or '-':>8} {human_bytes(h.nbytes):>7} {h.state:<8} ")
        line.append(safe(h.command, max(width - 27, 8)))
        if h.state != "running":
            line.stylize("yellow")
        line.truncate(width)
        lines.append(line)
    return lines


def _ranges(look: Look, view: View, width: int, room: int) -> list[Text]:
    commands = {h.pid: h.command for h in look.holders}
    lines = [_title(f"{'OFFSET':>14} {'BYTES':>7} {'PID':>8} LARGEST RANGES", width)]
    for r in look.largest:
        if len(lines) >= room:
            break
        command = commands.get(r.pid, "") if r.pid is not None else ""
        if _fits(view, f"{r.pid} {command}"):
            lines.append(_range_line(r, command, width))
    return lines


def _range_line(r: Held, command: str, width: int) -> Text:
    line = Text(
        f"{r.offset:#14x} {human_bytes(r.nbytes):>7} {r.pid or '-':>8} {'shared ' if r.shared else ''}"
    )
    line.append(safe(command, max(width - 40, 8)))
    line.truncate(width)
    return line


def _keys(view: View) -> Text:
    if view.is_typing:
        return Text(f"filter: {safe(view.filter)}_", "reverse")
    shown = f" ({safe(view.filter, 16)})" if view.filter else ""
    told = f" s sort  / filter{shown}  p pause  n next  ? help  q quit"
    return Text.assemble(
        (told, "reverse"), ("  PAUSED" if view.paused else "", "bold"), f"  {safe(view.note)}"
    )
