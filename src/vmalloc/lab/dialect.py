# SPDX-License-Identifier: MIT
r"""The grammar of a line in a text trace: a head that differs by tool, a body that is the kernel's own.

       comm-pid     [cpu] flags      time: event: body
    bash-2993      [000] .....  2579.210435: alloc_vmap_area: va_start: 1844... size=20480 align=16384 ...
    \______________ head: the dialect ______________________/ \________ body: the kernel's print format ___/

A `Dialect` says how one tool prints the head and how its files are recognised. The bodies follow
include/trace/events/vmalloc.h; note that alloc_vmap_area prints its address in decimal after a colon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ALLOC_EVENT, FREE_EVENT, PURGE_EVENT = b"alloc_vmap_area", b"free_vmap_area_noflush", b"purge_vmap_area_lazy"
MARK_EVENTS = (b"tracing_mark_write", b"print", b"bprint")

ALLOC_BODY = re.compile(
    rb"(?:va_start: |addr=)(\d{1,20}) size=(\d{1,20}) align=(\d{1,20})"
    rb" vstart=0x([0-9a-f]{1,16}) vend=0x([0-9a-f]{1,16}) failed=(-?\d{1,9})"
)
FREE_BODY = re.compile(rb"va_start=0x([0-9a-f]{1,16}) nr_lazy=(\d{1,20}) nr_lazy_max=(\d{1,20})")
PURGE_BODY = re.compile(rb"start=0x([0-9a-f]{1,16}) end=0x([0-9a-f]{1,16}) num_purged=(\d{1,9})")

# The same as `trace-cmd report -R` and tools without the print format write them: the record's own fields.
_NUMBER = rb"(0x[0-9a-f]{1,16}|\d{1,20})"
RAW_ALLOC_BODY = re.compile(
    rb"addr=%s size=%s align=%s vstart=%s vend=%s failed=(-?\d{1,9})".replace(b"%s", _NUMBER)
)
RAW_FREE_BODY = re.compile(rb"va_start=%s nr_lazy=%s nr_lazy_max=%s".replace(b"%s", _NUMBER))
RAW_PURGE_BODY = re.compile(rb"start=%s end=%s n(?:um_)?purged=%s".replace(b"%s", _NUMBER))

COLOUR = re.compile(rb"\x1b\[[\d;]*m")
STACK_LINE = re.compile(rb" *=> .*|.*: <(?:user )?stack trace>")

LOST_LINE = re.compile(
    rb"CPU:(?P<cpu1>\d{1,4}) \[LOST (?:(?P<n1>\d{1,9}) )?EVENTS\]"  # trace_pipe
    rb"|CPU:(?P<cpu2>\d{1,4}) \[(?:(?P<n2>\d{1,9}) )?EVENTS DROPPED\]"  # trace-cmd report
    rb"|#+ CPU (?P<cpu3>\d{1,4}) buffer started #+"  # trace, of a ring that was overwritten
    rb"|.*PERF_RECORD_LOST(?:_SAMPLES)?:? +lost (?P<n4>\d{1,9})"  # perf script --show-lost-events
)
ENTRIES_LINE = re.compile(rb"# entries-in-buffer/entries-written: (\d{1,9})/(\d{1,9})(?: +#P:(\d{1,4}))?")


# A time with decimals, in seconds (up to year 2255 of the tai clock), or the ticks of a clock without them.
SECONDS = rb"(?P<sec>\d{1,9}|[1-8]\d{9})\.(?P<frac>\d{6}|\d{9})"
TICKS = rb"(?P<ticks>\d{1,18})"


@dataclass(frozen=True)
class Dialect:
    """How one tool prints the head of a line.

    `head` has the groups comm, pid, cpu (may be missing), sec and frac or ticks, event, body; flags where
    there are some. chunks.py learns from it where the fields of usual lines stand.
    """

    name: str
    head: re.Pattern[bytes]
    signs: tuple[bytes, ...]  # a line that starts with any of these tells the format
    pid_is_left_justified: bool
