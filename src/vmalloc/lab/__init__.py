# SPDX-License-Identifier: MIT
"""The lab: recordings of kernels and of our own allocator, and what can be learned from them.

    events.py        what one event is, in every format; problems found while reading
    files.py         bytes of a file: gzip, xz and zstd undone, cut into chunks of whole lines
    dialect.py       the grammar of a text line, shared by the three formats
      ftrace.py, trace_cmd.py, perf_script.py      what each of them does differently
    lines.py         lines to events, one at a time: the specification, no dependencies
    columns.py       events as numpy columns
    chunks.py, line_shape.py           lines to columns: the same answers, many lines at once
    columnar.py      our own file: the same columns as Parquet
    vmallocinfo.py   /proc/vmallocinfo as typed areas
    trace.py         the public face of reading
    tracefs.py, record_kernel.py                   recording a running kernel
    rings.py, record_region.py                     recording our own allocator
    state.py         start and end states; ledger.py  what was cut from the space
    predict.py, orders.py, learn.py, reconcile.py  a kernel's addresses against the model's
    replay.py        a recording and the model: predict, rank, serve
    replay_on_core.py                  the same requests on the real allocator
    perfetto.py                        a recording for ui.perfetto.dev
    report.py                          the numbers of a page: a recording, a replay or a live region

Reading text needs only the standard library; columns need numpy, Parquet needs pyarrow (extra `lab`).
"""
