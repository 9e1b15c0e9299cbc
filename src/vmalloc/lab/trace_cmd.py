# SPDX-License-Identifier: MIT
"""`trace-cmd report`: ftrace's line without the flags column (older versions) and with padding before the
body.

    cpus=2
            bash-2993  [000]  2579.210443: alloc_vmap_area:      va_start: ...

Lost events stand as `CPU:0 [12 EVENTS DROPPED]`. With `-t` times have nine decimals. trace-cmd's binary
trace.dat is not read here: the report is the stable format.
"""

from __future__ import annotations

from vmalloc.lab import ftrace
from vmalloc.lab.dialect import Dialect

TRACE_CMD = Dialect(
    name="trace-cmd",
    head=ftrace.HEAD,
    signs=(b"cpus=", b"EVENTS DROPPED]", b"version = "),
    pid_is_left_justified=True,
)
