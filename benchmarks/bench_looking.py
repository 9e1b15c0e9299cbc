# SPDX-License-Identifier: MIT
"""What looking costs: ps, info, stats, top of many live ranges under load, a kernel's dump, --help.

`time` is by the clock, and in brackets the CPU's, beside one worker on each CPU that allocates and frees in
the region. Of these workers is also `off the load`: how much less they do in a second of their own CPU time
while somebody looks than while nobody does, in the same turn. So the CPU time that the look takes itself,
which it needs wherever it runs, is not in it; locks, waits, and lines that leave the caches are. What a
process takes off that looks at nothing, and copies memory as long as `info` looks, stands beside it. The
interval holds the median of 95 of 100 such runs, by drawing turns again. `top` is watched in a terminal, by
the CPU time that its process took.
"""

from __future__ import annotations

import fcntl
import os
import pty
import random
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import _common as common
from _common import median, result

import vmalloc
from vmalloc.cli import COMMANDS

PAGE = 4096
LIVE, ROUNDS, TURNS, TOP_S, LINES = 1_000_000, 5, 22, 10.0, 1_000_000
QUICK_LIVE, QUICK_ROUNDS, QUICK_TURNS, QUICK_TOP_S, QUICK_LINES = 10_000, 1, 2, 1.0, 10_000
NOBODY_S = 0.5
DRAWS = 2_000
CPUS = sorted(os.sched_getaffinity(0))
PARTS = ("time", "off", "top", "dump", "help")
COMMAND = [sys.executable, "-m", "vmalloc.cli"]

WORK = """
import sys, time, vmalloc
region = vmalloc.Region.attach(sys.argv[1], helper=False)
count = region["counts"].cast("Q")
at = 2 * int(sys.argv[2])
alloc = region.alloc
while True:
    for block in [alloc(4096 * (1 + n % 9)) for n in range(40)]:
        block.release()
    count[at] += 1
    count[at + 1] = time.thread_time_ns()
"""
BURN = """
import sys, time
end, memory = time.perf_counter() + float(sys.argv[1]), bytearray(16 << 20)
while time.perf_counter() < end:
    bytes(memory)
"""


@contextmanager
def load(region: vmalloc.Region) -> Iterator[None]:
    """A worker for each CPU, anywhere."""
    counts = region["counts"].cast("Q")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORK, region.name, str(at)]) for at in range(len(CPUS))
    ]
    try:
        while any(counts[2 * at] == 0 for at in range(len(CPUS))):
            time.sleep(0.05)
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        region.recover()


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of the CPU."""
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime


def off_the_load(
    region: vmalloc.Region, acts: dict[str, Callable[[], object]], turns: int
) -> dict[str, list[float]]:
    """Of each act, by turn: what part of their work the workers did not do beside it, by their CPU time."""
    counts = region["counts"].cast("Q")

    def rate(act: Callable[[], object]) -> float:
        before = counts.tolist()
        act()
        done = [now - was for now, was in zip(counts.tolist(), before, strict=True)]
        return sum(done[::2]) / sum(done[1::2])

    lost: dict[str, list[float]] = {name: [] for name in acts}
    order = ["", *acts]
    for turn in range(turns):
        random.Random(turn).shuffle(order)
        rates = {name: rate(acts[name] if name else nobody) for name in order}
        for name in acts:
            lost[name].append(1 - rates[name] / rates[""])
    return lost


def nobody() -> None:
    time.sleep(NOBODY_S)


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and where it lies in 95 of 100 draws."""
    chance = random.Random(0)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(DRAWS))
    return median(values), medians[DRAWS // 40], medians[-DRAWS // 40]


def clock(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def stats_for(region: vmalloc.Region, seconds: float) -> None:
    """Again and again."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        region.stats()
        time.sleep(0.05)


def cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def top_share(name: str, width: int, height: int, seconds: float) -> float:
    """Of a core, once it has drawn its first screens."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(COMMAND[0], [*COMMAND, "top", name], os.environ | {"TERM": "xterm-256color"})
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    threading.Thread(target=drain, args=(fd,), daemon=True).start()
    time.sleep(min(3.0, seconds))
    before, begin = cpu_s(pid), time.perf_counter()
    time.sleep(seconds)
    share = (cpu_s(pid) - before) / (time.perf_counter() - begin)
    os.write(fd, b"q")
    os.waitpid(pid, 0)
    return share


def drain(fd: int) -> None:
    try:
        while os.read(fd, 1 << 16):
            pass
    except OSError:
        pass


def dump(path: Path, nr: int) -> Path:
    """As /proc/vmallocinfo has it."""
    start, line = (
        0xFFFFC90000000000,
        "0x{:016x}-0x{:016x}   20480 caller_{}+0xca/0x100 pages=4 vmalloc N0=4\n",
    )
    with path.open("w") as out:
        out.writelines(line.format(start + n * 24576, start + n * 24576 + 20480, n % 40) for n in range(nr))
    return path


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; can be given again")
    args = parser.parse_args()
    live, rounds, turns, top_s, nr_lines = (
        (QUICK_LIVE, QUICK_ROUNDS, QUICK_TURNS, QUICK_TOP_S, QUICK_LINES)
        if args.quick
        else (LIVE, ROUNDS, TURNS, TOP_S, LINES)
    )
    parts = args.only or PARTS
    region = vmalloc.Region("12G", name=f"looked-{os.getpid()}", helper=False)
    region["counts"] = region.alloc(PAGE)
    kept = [region.alloc(PAGE) for _ in range(live)]
    looks = {
        "ps": ["ps"], "info": ["info", region.name], "info --json": ["info", region.name, "--json"],
    }  # fmt: skip
    rows, results = [], []

    def tell(what: str, unit: str, *values: float) -> None:
        rows.append([what, *(f"{value:.3g} {unit}" for value in values)])
        results.append(result(what, "magazine", values[0], unit))

    with load(region):
        used_s = {}
        for what, words in looks.items() if "time" in parts else ():
            times, used = zip(*(timed([*COMMAND, *words]) for _ in range(rounds)), strict=True)
            used_s[what] = median(used)
            tell(f"{what}, time ({used_s[what]:.2f} s)", "s", median(times), min(times), max(times))
        if "time" in parts:
            times = [clock(region.stats) for _ in range(rounds)]
            tell("stats, time", "s", median(times), min(times), max(times))
        if "off" in parts:
            acts: dict[str, Callable[[], object]] = {
                what: partial(timed, [*COMMAND, *words]) for what, words in looks.items()
            }
            burn_s = used_s.get("info") or timed([*COMMAND, *looks["info"]])[1]
            acts["who looks at nothing"] = partial(timed, [sys.executable, "-c", BURN, str(burn_s)])
            acts["stats"] = partial(stats_for, region, NOBODY_S)
            for what, lost in off_the_load(region, acts, turns).items():
                tell(f"{what}, off the load", "%", *(100 * value for value in interval(lost)))
        for width, height in ((80, 24), (200, 60)) if "top" in parts else ():
            share = top_share(region.name, width, height, top_s)
            tell(f"top at 1 Hz, {width} x {height}, of a core", "%", 100 * share)
    if "dump" in parts:
        with tempfile.TemporaryDirectory() as folder:
            words = [*COMMAND, "info", "--kernel", str(dump(Path(folder) / "vmallocinfo", nr_lines))]
            times = [timed(words)[0] for _ in range(min(rounds, 5))]
            tell(f"a kernel's dump of {nr_lines:,} lines, drawn", "s", median(times), min(times), max(times))
    for name in ("", *COMMANDS) if "help" in parts else ():
        words = [*COMMAND, *([name] if name else []), "--help"]
        times = [timed(words)[0] for _ in range(min(rounds, 5))]
        tell(f"vmalloc {name} --help".replace("  ", " "), "ms", *(1e3 * f(times) for f in (median, min, max)))
    del kept
    columns = ["what", "median", "least, or from", "most, or to"]
    common.show(f"{live:,} live ranges", columns, [[*r, "", ""][:4] for r in rows])
    common.finish(args, results)


if __name__ == "__main__":
    main()
