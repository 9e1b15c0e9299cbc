# SPDX-License-Identifier: MIT
"""A process and what it started: who they are, when each began, how much CPU time they took."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Neighbours", "start_of", "stat_of", "tree"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; empty for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def tree(root: int) -> dict[int, int]:
    """A process, its descendants and its session: pid and start time, which together come only once."""
    stats = {int(name): stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found: dict[int, int] = {}
    # in the session are those whose parent died
    open_ends = [root, *(pid for pid, fields in stats.items() if fields and int(fields[3]) == root)]
    while open_ends:
        pid = open_ends.pop()
        if stats.get(pid) and pid not in found:
            found[pid] = int(stats[pid][19])
            open_ends += children.get(pid, [])
    return found


def start_of(pid: int) -> int | None:
    """When the process began, in clock ticks; None if it is gone or a zombie."""
    fields = stat_of(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of the children they have waited for."""
    return sum(sum(map(int, stat[11:15])) for pid in pids if (stat := stat_of(pid))) * _TICK_S


def _busy_s() -> float:
    """CPU seconds that were not idle, of all CPUs since the machine started."""
    user, nice, system, _idle, _iowait, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(others)) * _TICK_S


class Neighbours:
    """How much of the CPUs others took than this process and what it started."""

    def __init__(self) -> None:
        self._mark = self._now()

    def share(self) -> float:
        """The others' part of all CPUs' time since the last call; clock ticks make it rough below 1 s."""
        before, self._mark = self._mark, self._now()
        wall_s, busy_s, ours_s = (new - old for new, old in zip(self._mark, before, strict=True))
        return min(max((busy_s - ours_s) / max(wall_s * (os.cpu_count() or 1), 1e-9), 0.0), 1.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.monotonic(), _busy_s(), _cpu_s(tree(os.getpid()))
