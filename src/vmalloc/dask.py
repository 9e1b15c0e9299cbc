# SPDX-License-Identifier: MIT
# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false
"""Dask: arrays, frames and tables between the workers of one machine by reference.

    import vmalloc.dask

    client = distributed.Client()
    vmalloc.dask.install(client)

Workers of one machine share a region. A worker that asks another one for an array gets a reference; between
machines, through the scheduler and to disk it is Dask as ever. docs/dask.md.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import distributed
from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin
from distributed.sizeof import safe_sizeof

from vmalloc.adapters import dask as adapter
from vmalloc.errors import VmallocError
from vmalloc.facts import COPY_IN_THRESHOLD_BYTES
from vmalloc.reference import pack
from vmalloc.region import Region, default_region, new_default, set_default_region
from vmalloc.rss import held

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["install", "region", "uninstall"]

_PLUGIN, _NANNY_PLUGIN = "vmalloc", "vmalloc-nanny"


class Options:
    """What install() was told; equal for all workers of a cluster."""

    def __init__(self, name: str, size: int | str | None, threshold: int, mmap_mode: str) -> None:
        self.name, self.size, self.threshold, self.mmap_mode = name, size, threshold, mmap_mode

    def region(self) -> Region:
        """This machine's: whoever comes first makes it."""
        if self.size is None:
            return new_default(self.name, is_found=True)
        return Region.open_or_create(self.name, self.size)

    def wire(self, may_copy: Callable[[int], bool] = lambda nbytes: True) -> adapter.Wire:
        return adapter.Wire(self.region(), self.threshold, self.mmap_mode, pack, may_copy)


def install(
    client: distributed.Client,
    *,
    size: int | str | None = None,
    threshold: int = COPY_IN_THRESHOLD_BYTES,
    mmap_mode: str = "r",
) -> None:
    """From now on this cluster's workers, those that join later too, send each other references.

    Arrays of more than `threshold` bytes that lie elsewhere are copied in when they are first sent. `size`
    is each machine's region's; the default is the machine's memory, of which nothing is taken before it is
    used. `mmap_mode`: what is received is read-only ("r"), shared and writable ("r+"), or everybody's own
    where it writes ("c"). ValueError for what it is not.

    vmalloc must be installed where workers run. A second call replaces the options.
    """
    name = f"dask-{client.scheduler_info()['id']}"
    options = Options(name, size, threshold, mmap_mode)
    wire = options.wire()
    client.register_plugin(_OnNanny(options), name=_NANNY_PLUGIN)
    client.register_plugin(_OnWorker(options), name=_PLUGIN)
    adapter.begin(wire)
    set_default_region(wire.region, unless_made=True)
    client.loop.add_callback(client.rpc.collect)


def uninstall(client: distributed.Client) -> None:
    """Workers send as before. What was received stays."""
    client.unregister_worker_plugin(_PLUGIN)
    client.unregister_worker_plugin(_NANNY_PLUGIN, nanny=True)
    adapter.end()


def region() -> Region:
    """Within a task: the region of the workers of this machine. What is made there is not copied in."""
    return default_region()


class _OnWorker(WorkerPlugin):  # type: ignore[misc]
    """Where a worker starts, and in those that run."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def setup(self, worker: Any) -> None:
        wire = self._options.wire(functools.partial(_may_copy, worker))
        adapter.begin(wire)
        set_default_region(wire.region)
        self._wrap_get_data(worker)
        self._correct_memory(worker)
        worker.rpc.collect()  # connections that were made before know nothing of the region

    def teardown(self, worker: Any) -> None:
        adapter.end()
        worker.handlers["get_data"] = worker.get_data
        worker.monitor.__dict__.pop("get_process_memory", None)
        fast = getattr(worker.data, "fast", None)
        if fast is not None and hasattr(fast, "weight"):
            fast.weight = worker.data.weight

    def _wrap_get_data(self, worker: Any) -> None:
        worker.handlers["get_data"] = adapter.holding_what_it_sends(worker.get_data)

    def _correct_memory(self, worker: Any) -> None:
        monitor = worker.monitor
        monitor.get_process_memory = functools.partial(_memory_of, monitor.proc)
        fast = getattr(worker.data, "fast", None)
        if fast is not None and hasattr(fast, "weight"):
            fast.weight = _weight


class _OnNanny(NannyPlugin):  # type: ignore[misc]
    """A nanny looks at what the system calls resident, where each worker counts all that it touched."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def setup(self, nanny: Any) -> None:
        self._region = self._options.region()  # held() looks into it
        periodic = nanny.periodic_callbacks.get("memory_monitor")
        if periodic is not None:
            self._stock = periodic.callback
            periodic.callback = functools.partial(_look_after, periodic.callback, nanny)

    def teardown(self, nanny: Any) -> None:
        periodic = nanny.periodic_callbacks.get("memory_monitor")
        if periodic is not None and hasattr(self, "_stock"):
            periodic.callback = self._stock


def _look_after(look: Any, nanny: Any) -> None:
    """What a nanny does now and then, unless its worker only looks too large."""
    import psutil

    manager = nanny.memory_manager
    try:
        if _memory_of(psutil.Process(nanny.pid)) <= manager.memory_limit * manager.memory_terminate_fraction:
            return
    except (OSError, TypeError, psutil.Error):  # it is gone, or was never there
        pass
    look()


def _memory_of(process: Any) -> int:
    """As Dask asks for it, ten times a second: what is not shared, and what is held in the region.

    resident() would be exact about other shared memory, and takes 0.1 s where a GiB is mapped. Where a region
    cannot tell, damaged or closed meanwhile, all that is resident counts.
    """
    memory = {"VmRSS": 0, "RssShmem": 0}
    with open(f"/proc/{process.pid}/status") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in memory:
                memory[name] = int(rest.split()[0]) << 10
    try:
        return memory["VmRSS"] - memory["RssShmem"] + held(process.pid)
    except VmallocError:
        return memory["VmRSS"]


def _may_copy(worker: Any, nbytes: int) -> bool:
    """Whether so much more leaves a worker below where Dask pauses it; stock sends without a copy."""
    manager = worker.memory_manager
    if not manager.memory_limit:
        return True
    most = manager.memory_limit * (manager.memory_pause_fraction or 1) - nbytes
    process = worker.monitor.proc  # what the system calls resident is too much, and is told at once
    return bool(process.memory_info().rss <= most or _memory_of(process) <= most)


def _weight(key: Any, value: Any) -> int:
    """In a worker's budget what another worker made weighs nothing: that one counts it."""
    return 0 if adapter.is_received(value) else int(safe_sizeof(value))
