# SPDX-License-Identifier: MIT
# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false
"""joblib: arguments and results by reference.

    import vmalloc.joblib

    with joblib.parallel_config(backend="vmalloc"):
        results = joblib.Parallel(n_jobs=4)(joblib.delayed(work)(big, i) for i in range(100))

The workers are loky's. An argument is copied into the region once a call, and is held for the whole call:
many tasks name it, and none of them needs a lease. Results have leases, as messages have, and what nobody
will read (of an abandoned generator, of a killed worker) ends by itself. joblib's own
ways are kept: `max_nbytes` is the size from which arguments are copied in, `mmap_mode` says whether
workers may write to them: "r" no, "r+" yes, "c" each to its own, None sends them by value. Nothing is
written to /dev/shm or to a folder. With `numpy_arrays=True` what numpy makes in a task is made in the
region, so that a result is not copied in.
"""

from __future__ import annotations

import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

try:
    import joblib.executor
    from joblib._memmapping_reducer import _get_backing_memmap, _reduce_memmap_backed
    from joblib._parallel_backends import FallbackToBackend, LokyBackend, SequentialBackend
    from joblib.executor import MemmappingExecutor
    from joblib.externals.loky.backend.queues import SimpleQueue
    from joblib.externals.loky.reusable_executor import _ReusablePoolExecutor
    from joblib.parallel import register_parallel_backend
except ImportError as e:
    raise ImportError(f"vmalloc.joblib needs joblib 1.4 or newer (pip install 'joblib>=1.4'): {e}") from e

from vmalloc.adapters import registry
from vmalloc.attach import where_of
from vmalloc.errors import OutOfPages, RegionClosed, VmallocError
from vmalloc.facts import COPY_IN_THRESHOLD_BYTES, FULL_TIMEOUT_S
from vmalloc.full import warn_once
from vmalloc.message import Settings, follow_messages, reduce_as
from vmalloc.reference import Ref, pack
from vmalloc.region import Region, default_region, parse_size, region_at
from vmalloc.rss import resident

if TYPE_CHECKING:
    from collections.abc import ItemsView

    from vmalloc._core import Holding

__all__ = ["VmallocBackend", "region"]

MAX_NBYTES = 1 << 20  #: joblib's own
_EXECUTORS = ("joblib.externals.loky.process_executor", "loky.process_executor")
MODES = ("r", "r+", "w+", "c", None)


def _by_value(x: Any) -> Any:
    """An array as joblib sends it, which keeps its byte order: protocol 4, loky's own, does not."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(x) is numpy.ndarray:
        return pickle.loads, (pickle.dumps(x, pickle.HIGHEST_PROTOCOL),)
    return x.__reduce_ex__(4)


class Call:
    """What the tasks of one Parallel call name, held until it ends; in the process that calls."""

    def __init__(self, region: Region, threshold: int | None, mode: str | None, least: int | None) -> None:
        self.region, self.threshold, self.mode = region, threshold, mode
        self.least = least  # bytes of an array that numpy makes in the region, within a task
        self._lock = threading.RLock()  # the collector may end the call while a copy is made for it
        self._held: dict[int, tuple[Any, Ref]] | None = {}  # id of a value -> it, and what is sent for it

    def end(self) -> None:
        """Nothing is held any more, nor from now on."""
        with self._lock:
            held, self._held = self._held, None
        del held  # not under the lock: what ends with it may be anybody's

    def reduced(self, x: Any) -> Any:
        adapter = registry.adapter_for(type(x))
        holding = adapter.holding(x)
        if holding is not None and holding.region.closed:
            holding = None
        nbytes = adapter.nbytes(x)
        is_small = self.threshold is None or nbytes is None or nbytes <= self.threshold
        if self.mode is None or (holding is None and is_small):
            parts = adapter.take_apart(x, self.threshold or 0) if self.mode is not None else None
            return parts if parts is not None else _by_value(x)
        try:
            value, held_by = self._placed(x, holding)
        except _IsOver:
            return _by_value(x)
        except (OutOfPages, RegionClosed, TypeError) as e:
            warn_once("joblib", f"arguments go by value: {e}")
            return _by_value(x)
        packed = pack(value, held_by, 0, readonly=self.mode == "r", private=self.mode == "c")
        from vmalloc._core import load_reference

        return load_reference, (packed,)

    def _placed(self, x: Any, holding: Holding | None) -> tuple[Any, Holding]:
        """`x`, or its one copy in the region; held from now on. OutOfPages, _IsOver."""
        with self._lock:
            known = self._still_held().get(id(x))
            if known is None:
                value, held_by = (x, holding) if holding is not None else registry.place(x, self.region)
                assert held_by is not None
                known = x, Ref(value, held_by, held_by.region)  # type: ignore[arg-type]
                self._still_held()[id(x)] = known
            value = known[1].get()
        found = registry.holding_of(value)
        assert found is not None
        return value, found

    def _still_held(self) -> dict[int, tuple[Any, Ref]]:
        if self._held is None:
            raise _IsOver
        return self._held


class _IsOver(Exception):
    """A task that is sent after its call has ended; nobody waits for it."""


class _Sending(threading.local):
    """Whose task this thread, a feeder of loky's, is pickling."""

    call: Call | None = None


class _Task:
    """Tells its thread whose it is when it is pickled, which is before its arguments are: calls of several
    threads share one executor. Loads as the task itself."""

    def __init__(self, task: Any, call: Call) -> None:
        self._task, self._call = task, call

    def __reduce__(self) -> tuple[Any, ...]:
        _sending.call = self._call
        if self._call.least is None:
            return _as_it_is, (self._task,)
        return _InRegion, (self._task, self._call.least)


class _InRegion:
    """In a worker, a task whose arrays numpy makes in the region of the call."""

    def __init__(self, task: Any, least: int) -> None:
        self._task, self._least = task, least

    def __call__(self) -> Any:
        if _results is None:
            return self._task()
        with _results.region.numpy_arrays(self._least):
            return self._task()


_sending = _Sending()
_results: Settings | None = None  # in a worker


class _Reducers(dict[type, Any]):
    """What a pickler of loky's is told when it is made: all types that have an adapter by then."""

    def __init__(self, reduce: Any) -> None:
        super().__init__()
        self._reduce = reduce

    def items(self) -> ItemsView[type, Any]:  # type: ignore[override]
        types = set(registry.exact_types())
        if "numpy" in sys.modules:
            types.add(sys.modules["numpy"].memmap)
        return dict.fromkeys(types, self._reduce).items()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Reducers, (self._reduce,)


def _reduce_file(x: Any) -> Any:
    """What lies in a file that the program mapped itself goes as joblib sends it: by the file's name."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    file = _get_backing_memmap(x)  # of what is no array there is none
    return _reduce_memmap_backed(x, file) if isinstance(file, numpy.memmap) else None


def reduce_argument(x: Any) -> Any:
    by_file = _reduce_file(x)
    if by_file is not None:
        return by_file
    call = _sending.call
    return _by_value(x) if call is None else call.reduced(x)


def reduce_result(x: Any) -> Any:
    by_file = _reduce_file(x)
    return reduce_as(x, _results, _by_value) if by_file is None else by_file


def region() -> Region:
    """Within a task: the region of the call. A result that is made there is not copied in."""
    return default_region() if _results is None else _results.region


_JOBS, _RESULTS = _Reducers(reduce_argument), _Reducers(reduce_result)


def start_worker(where: Any, initializer: Any, arguments: tuple[Any, ...]) -> None:
    """In a worker, before its first task. Importing this module has registered the backend there."""
    global _results
    try:
        region = region_at(where)
    except VmallocError as e:
        warn_once("joblib", f"results go by value: {e}")
    else:
        _results = Settings(lambda: region, False, COPY_IN_THRESHOLD_BYTES, False, "wait", FULL_TIMEOUT_S)
        follow_messages(SimpleQueue)
    for name in _EXECUTORS:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "_get_memory_usage"):
            module._get_memory_usage = memory_usage  # type: ignore[attr-defined]
    if initializer is not None:
        initializer(*arguments)


def memory_usage(pid: int, force_gc: bool = False) -> int:
    """For loky, which ends workers that grew: a region's pages count once, and freed ones not."""
    if force_gc:
        import gc

        gc.collect()
    return resident(pid)


class _NoFolder:
    """joblib asks its workers for the manager of their folder of temporary files. There is none."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _Executor(MemmappingExecutor):  # type: ignore[misc]
    """joblib's, without its folder of temporary files."""

    _temp_folder_manager = _NoFolder()

    def terminate(self, kill_workers: bool = False) -> None:
        self.shutdown(kill_workers=kill_workers)


class VmallocBackend(LokyBackend):  # type: ignore[misc]
    """loky's workers; arguments and results go by reference."""

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        """Options as configure()'s. joblib 1.4 keeps none itself."""
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = options

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        idle_worker_timeout: float | None = None,
        **options: Any,
    ) -> int:
        """As LokyBackend's; `region` (the default one), `max_nbytes`, `mmap_mode`, `numpy_arrays`: True, or
        from how many bytes on. ValueError, TypeError, RegionClosed for options that cannot be."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self.backend_kwargs, **options}
        if "timeout" in options:
            raise ValueError("'timeout' is not supported by this backend; use 'idle_worker_timeout'")
        call = _call_of(options)
        timeout = idle_worker_timeout or options.get("idle_worker_timeout") or 300
        joblib.executor._executor_args = "vmalloc"  # its own backend makes workers of its own then
        initializer, arguments = options.get("initializer"), options.get("initargs", ())
        self._workers, _ = _ReusablePoolExecutor.get_reusable_executor.__func__(
            _Executor,
            n_jobs,
            job_reducers=_JOBS,
            result_reducers=_RESULTS,
            timeout=timeout,
            env=self._prepare_worker_env(n_jobs=n_jobs),
            initializer=start_worker,
            initargs=(_Where(call.region), initializer, arguments),
        )
        follow_messages(SimpleQueue)  # a result that nobody will read ends by itself
        self._let_go()
        self._call, self.parallel = call, parallel
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> Any:
        """As LokyBackend's; `func` knows its call."""
        future = self._workers.submit(_Task(func, self._call))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def apply_async(self, func: Any, callback: Any = None) -> Any:
        """What submit() was called before joblib 1.5."""
        return self.submit(func, callback)

    def terminate(self) -> None:
        """The call is over: nothing is held for it any more. The workers stay for the next one."""
        self._let_go()
        self._workers = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        if self._workers is not None:
            self._workers.terminate(kill_workers=True)
        self._let_go()
        self._workers = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def _let_go(self) -> None:
        attributes = cast(Any, self).__dict__  # what type it has depends on whether joblib's are known
        call = attributes.pop("_call", None)
        if call is not None:
            call.end()


def _call_of(options: dict[str, Any]) -> Call:
    region = options.get("region")
    if region is None:
        region = default_region()
    if not isinstance(region, Region):
        raise TypeError(f"region must be a vmalloc.Region, not {region!r:.100}")
    if region.closed:
        raise RegionClosed("the region of the call is closed")
    mode = options.get("mmap_mode", "r")
    if mode not in MODES:
        raise ValueError(f"mmap_mode must be one of {', '.join(map(repr, MODES))}, not {mode!r:.100}")
    threshold = options.get("max_nbytes", MAX_NBYTES)
    if isinstance(threshold, str):
        threshold = parse_size(threshold)
    asked = options.get("numpy_arrays", False)
    least = None if asked is False else COPY_IN_THRESHOLD_BYTES if asked is True else parse_size(asked)
    return Call(region, threshold, mode, least)


class _Where:
    """Equal for the same region, so that workers are used again; pickles as where that is."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Where) and other._region is self._region

    def __hash__(self) -> int:
        return hash(id(self._region))

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_is, (where_of(self._region),)


def _as_it_is(x: Any) -> Any:
    return x


register_parallel_backend("vmalloc", VmallocBackend)
