# SPDX-License-Identifier: MIT
"""ftrace text: the files `trace` and `trace_pipe` of tracefs.

            bash-2993    [000] .....  2579.210435: alloc_vmap_area: va_start: ...

The flags column is there unless the option irq-info is off, a column `(  tgid)` with record-tgid on. `trace`
starts with a header that counts entries in the buffer and entries written: their difference was overwritten.
`trace_pipe` has no header and says `CPU:1 [LOST 113 EVENTS]` where the reader was too slow.
"""

from __future__ import annotations

import re

from vmalloc.lab.dialect import SECONDS, TICKS, Dialect

HEAD = re.compile(
    rb" *(?P<comm>.*?)-(?P<pid>\d{1,9}) +(?:\([ \d-]+\) +)?\[(?P<cpu>\d{1,4})\] +(?:(?P<flags>[^ ]{4,8}) +)?"
    rb"(?:" + SECONDS + rb"|" + TICKS + rb"): (?:[a-z]\w*:)?(?P<event>\w+): *(?P<body>.*)"
)

FTRACE = Dialect(
    name="ftrace",
    head=HEAD,
    signs=(b"# tracer:", b"# entries-in-buffer", b" EVENTS]"),
    pid_is_left_justified=True,
)
