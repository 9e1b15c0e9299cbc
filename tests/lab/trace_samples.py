# SPDX-License-Identifier: MIT
"""Where recordings are: short samples and whole ones, told in tests/data/README.md."""

from __future__ import annotations

import lzma
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
SAMPLES = DATA / "traces"

ALLOC = (
    b"            bash-2993    [000] .....  2579.210435: alloc_vmap_area: va_start: 18446683600630235136 "
    b"size=20480 align=16384 vstart=0xffffc90000000000 vend=0xffffe8ffffffffff failed=0\n"
)
FREE = (
    b"     kworker/0:1-11      [001] .....  2579.248385: free_vmap_area_noflush: va_start=0xffffc9000392c000 "
    b"nr_lazy=118 nr_lazy_max=16384\n"
)
PURGE = (
    b"     kworker/0:1-11      [000] .....  2611.901152: purge_vmap_area_lazy: start=0xffffc9000004c000 "
    b"end=0xffffc90010605000 num_purged=3411\n"
)


def sample(name: str) -> bytes:
    return lzma.decompress((SAMPLES / f"{name}.xz").read_bytes())
