# SPDX-License-Identifier: MIT
"""`perf script` with its default fields: comm, tid, cpu, time, event, trace output.

              sh  2982 [001]  2579.114422:        vmalloc:alloc_vmap_area: va_start: ...

With `-F +pid` the column reads pid/tid; the tid is taken, as ftrace does. With `--ns` times have nine
decimals. Lost events are only there with `--show-lost-events`. Comm and tid
may be missing (`-F`).
"""

from __future__ import annotations

import re

from vmalloc.lab.dialect import SECONDS, Dialect

PERF_SCRIPT = Dialect(
    name="perf",
    head=re.compile(
        rb" *(?:(?:(?P<comm>.*?) +)??(?:\d{1,10}/ *)?(?P<pid>\d{1,9}) +)??(?:\[(?P<cpu>\d{1,4})\] +)?"
        + SECONDS
        + rb": +(?:[a-z]\w*:)?(?P<event>\w+): *(?P<body>.*)"
    ),
    signs=(b": vmalloc:", b" vmalloc:", b"PERF_RECORD_"),
    pid_is_left_justified=False,
)
