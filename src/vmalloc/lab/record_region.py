# SPDX-License-Identifier: MIT
"""Recording a region: what our own allocator does, as a columnar file.

    with RegionRecorder(region, "run.parquet") as recorder:
        ...                             what any attached process does meanwhile
    recorder.done.nr_events

All attached processes write, each thread into a ring of its own; a thread here reads the rings and writes the
file. A ring holds EVENT_RING events: who writes more between two looks overwrites the oldest, and the file
says how many were lost. See core/face/record.c and docs/recording.md.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmalloc._core import Recorder
from vmalloc.lab.columnar import Writer
from vmalloc.lab.events import LOST
from vmalloc.lab.rings import Decoder

if TYPE_CHECKING:
    from vmalloc.lab.files import StrPath
    from vmalloc.region import RegionBase

__all__ = ["Recorded", "RegionRecorder"]

LOOK_S = 0.01
"""So often the rings are read."""
LAST_LOOKS = 4
"""When nobody writes any more, each look empties every ring; a scribbler is not waited for."""


@dataclass
class Recorded:
    """What a recording has so far."""

    trace: str
    nr_events: int = 0
    nr_lost: int = 0
    nr_damaged: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class RegionRecorder:
    """Records from when it is made until close(); a context manager."""

    def __init__(self, region: RegionBase, path: StrPath, *, exact: bool = False) -> None:
        """`exact`: each event bears its own time. RegionBusy if somebody records the region already."""
        info = region._info()
        self.done = Recorded(os.fspath(path))
        self._pid = os.getpid()
        self._began = Recorder.clock()
        self._recorder = Recorder(region, exact)
        self._decoder = Decoder(
            int(info["nr_pages"]),
            int(info["granule"]),
            self._began[0],
            command_of=_Commands().of,
            pid_of=self._recorder.pid_of,
        )
        self._over = threading.Event()
        try:
            self._writer = Writer(path, _metadata(info, exact))
        except BaseException:
            self._recorder.end()
            raise
        self._error: BaseException | None = None
        self._reader = threading.Thread(target=self._read, name="vmalloc-record", daemon=True)
        self._reader.start()

    def close(self) -> Recorded:
        """Switch it off, read what is left, finish the file. Raises what went wrong while it was written.

        In a forked child nothing happens: the file is its parent's.
        """
        if self._over.is_set() or os.getpid() != self._pid:
            return self.done
        self._over.set()
        try:
            self._reader.join()
            self._recorder.stop()
            for _ in range(LAST_LOOKS):
                if self._error is not None or not self._look():
                    break
        finally:
            self._reader.join()  # a second Ctrl-C may have broken the first one off
            self._recorder.end()
            self._writer.close()
        if self._error is not None:
            raise self._error
        return self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        try:
            while not self._over.wait(LOOK_S):
                self._look()
        except BaseException as error:  # told by close(): this thread has nobody to tell
            self._error = error

    def _look(self) -> bool:
        """Write what is new; whether there was anything."""
        news = self._recorder.read()
        ns, ticks = Recorder.clock()
        if ticks > self._began[1]:
            self._decoder.ns_per_tick = (ns - self._began[0]) / (ticks - self._began[1])
        self.done.seconds = (ns - self._began[0]) / 1e9
        if not news:
            return False
        columns = self._decoder.columns(news, ns)
        self._writer.write(columns)
        nr_losses = int(columns.is_kind(LOST).sum())
        self.done.nr_events += columns.nr_rows - nr_losses
        self.done.nr_lost += sum(lost for _, lost, _ in news)
        self.done.nr_damaged = self._decoder.nr_damaged
        return True


class _Commands:
    """Names of processes, each read once. Apart, since a circle would keep the region until a collection."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, pid: int) -> str:
        if pid not in self._known:
            try:
                text = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
            except OSError:
                text = ""
            self._known[pid] = text
        return self._known[pid]


def _metadata(info: dict[str, Any], exact: bool) -> dict[str, object]:
    """What the model has to know to serve the same requests."""
    page_size = os.sysconf("SC_PAGE_SIZE")
    return {
        "source": "vmalloc",
        "release": os.uname().release,
        "machine": os.uname().machine,
        "clock": "mono",
        "page_size": info["granule"],
        "nr_cpus": os.sysconf("SC_NPROCESSORS_ONLN"),
        "nr_pages": info["nr_pages"],
        "nr_nodes": info["nr_nodes"],
        "pools": info["pools"],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * page_size if info["has_pages"] else 0,
        "exact": exact,
    }
