# SPDX-License-Identifier: MIT
"""Page ranges in one shared memory region, for any thread of any process.

    region = vmalloc.Region("8G")
    a = region.empty((1080, 1920, 3), "u1")    # a plain np.ndarray on shared pages
    region["frames"] = a                       # a named reference
    vmalloc.ref(a)                             # by reference through any pickler

`import vmalloc` needs neither numpy nor, for `vmalloc.model` and `vmalloc.lab`, Linux. The names below
are loaded on first use.
"""

from __future__ import annotations

import importlib
import os

TYPE_CHECKING = False  # typing itself would be half of the import
if TYPE_CHECKING:
    from typing import Any

    from vmalloc import adapters as adapters
    from vmalloc._core import Block
    from vmalloc.address_space import AddressSpace
    from vmalloc.errors import (
        MemoryMisused,
        NotAllocated,
        NotLoaded,
        OutOfPages,
        RegionBusy,
        RegionClosed,
        RegionCorrupt,
        RegionUnavailable,
        StaleReference,
        VmallocError,
    )
    from vmalloc.message import install, uninstall
    from vmalloc.reference import Ref, copy_in, is_shared, ref
    from vmalloc.region import Region, default_region, region_of
    from vmalloc.stats import Range, Stats
    from vmalloc.ways import Sent, sent, why

__all__ = [
    "AddressSpace",
    "Block",
    "MemoryMisused",
    "NotAllocated",
    "NotLoaded",
    "OutOfPages",
    "Range",
    "Ref",
    "Region",
    "RegionBusy",
    "RegionClosed",
    "RegionCorrupt",
    "RegionUnavailable",
    "Sent",
    "StaleReference",
    "Stats",
    "VmallocError",
    "copy_in",
    "default_region",
    "get_include",
    "install",
    "is_shared",
    "ref",
    "region_of",
    "sent",
    "uninstall",
    "why",
]

_HOME = {
    "AddressSpace": "address_space",
    "Block": "_core",
    "Range": "stats",
    "Ref": "reference",
    "Region": "region",
    "Sent": "ways",
    "Stats": "stats",
    "copy_in": "reference",
    "default_region": "region",
    "install": "message",
    "is_shared": "reference",
    "ref": "reference",
    "region_of": "region",
    "sent": "ways",
    "uninstall": "message",
    "why": "ways",
}


def __getattr__(name: str) -> Any:
    if name == "adapters":  # register() and what it takes
        return importlib.import_module("vmalloc.adapters")
    if name not in __all__:
        raise AttributeError(f"module 'vmalloc' has no attribute {name!r}")
    home = _HOME.get(name, "errors")
    try:
        value = getattr(importlib.import_module(f"vmalloc.{home}"), name)
    except ModuleNotFoundError as e:
        if e.name != "vmalloc._core":
            raise
        raise ImportError(
            f"vmalloc.{name} needs the compiled core, which is built on Linux (x86-64, aarch64) only; "
            "vmalloc.model and vmalloc.lab work without it"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "adapters"})


def get_include() -> str:
    """The folder with vmalloc.h; libvmalloc.so and its pkg-config file are in `../lib` beside it."""
    return os.path.join(os.path.dirname(__file__), "_capi", "include")
