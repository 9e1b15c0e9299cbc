# SPDX-License-Identifier: MIT
"""What looking costs: ps, info, stats, top of many live ranges under load, a kernel's dump, --help.

`time` is by the clock, and in brackets the CPU's, beside one worker on each CPU that allocates and frees in
the region. For `off the load` the workers are kept from the last CPU, and who looks is kept to it; in turn
with the look a process that takes as long, copies memory and looks at nothing runs there. What is lost beside
the look, and not beside that one, is due to locks and to the region's own lines. `top` is watched in a
terminal, by the CPU time that its process took.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _common as common
from _common import median, result

import vmalloc
from vmalloc.cli import COMMANDS

PAGE = 4096
LIVE, ROUNDS, TOP_S, LINES = 1_000_000, 5, 10.0, 1_000_000
QUICK_LIVE, QUICK_ROUNDS, QUICK_TOP_S, QUICK_LINES = 10_000, 1, 1.0, 10_000
CPUS = sorted(os.sched_getaffinity(0))
COMMAND = [sys.executable, "-m", "vmalloc.cli"]

WORK = """
import os, sys, vmalloc
region = vmalloc.Region.attach(sys.argv[1], helper=False)
count = region["counts"].cast("Q")
at, cpu = int(sys.argv[2]), int(sys.argv[3])
if cpu >= 0:
    os.sched_setaffinity(0, {cpu})
alloc = region.alloc
while True:
    for block in [alloc(4096 * (1 + n % 9)) for n in range(40)]:
        block.release()
    count[at] += 1
"""
BURN = """
import sys, time
end, memory = time.perf_counter() + float(sys.argv[1]), bytearray(16 << 20)
while time.perf_counter() < end:
    bytes(memory)
"""


@contextmanager
def load(region: vmalloc.Region, cpus: list[int]) -> Iterator[None]:
    """A worker for each of these CPUs; -1 stands for one that may run anywhere."""
    counts = region["counts"].cast("Q")
    before = counts.tolist()
    workers = [
        subprocess.Popen([sys.executable, "-c", WORK, region.name, str(at), str(cpu)])
        for at, cpu in enumerate(cpus)
    ]
    try:
        while any(counts[at] == before[at] for at in range(len(cpus))):
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


def lost(region: vmalloc.Region, words: list[str], rounds: int) -> float:
    """What part of the work beside a process that only burns time is not done beside the look."""
    counts = region["counts"].cast("Q")

    def rate(words: list[str]) -> float:
        before, begin = sum(counts), time.perf_counter()
        timed(words)
        return (sum(counts) - before) / (time.perf_counter() - begin)

    words = ["taskset", "-c", str(CPUS[-1]), *words]
    burn = [*words[:3], sys.executable, "-c", BURN, str(timed(words)[0])]
    return median(1 - rate(words) / rate(burn) for _ in range(rounds))


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
    args = common.options(__doc__).parse_args()
    live, rounds, top_s, nr_lines = (
        (QUICK_LIVE, QUICK_ROUNDS, QUICK_TOP_S, QUICK_LINES) if args.quick else (LIVE, ROUNDS, TOP_S, LINES)
    )
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

    with load(region, [-1] * len(CPUS)):
        for what, words in looks.items():
            times, used = zip(*(timed([*COMMAND, *words]) for _ in range(rounds)), strict=True)
            tell(f"{what}, time ({median(used):.2f} s)", "s", median(times), min(times), max(times))
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            region.stats()
            times.append(time.perf_counter() - begin)
        tell("stats, time", "s", median(times), min(times), max(times))
        for width, height in ((80, 24), (200, 60)):
            share = top_share(region.name, width, height, top_s)
            tell(f"top at 1 Hz, {width} x {height}, of a core", "%", 100 * share)
    if len(CPUS) > 1:
        with load(region, CPUS[:-1]):
            for what, words in looks.items():
                share = lost(region, [*COMMAND, *words], rounds)
                tell(f"{what}, off the load", "%", 100 * share)
    with tempfile.TemporaryDirectory() as folder:
        words = [*COMMAND, "info", "--kernel", str(dump(Path(folder) / "vmallocinfo", nr_lines))]
        times = [timed(words)[0] for _ in range(min(rounds, 5))]
        tell(f"a kernel's dump of {nr_lines:,} lines, drawn", "s", median(times), min(times), max(times))
    for name in ("", *COMMANDS):
        words = [*COMMAND, *([name] if name else []), "--help"]
        times = [timed(words)[0] for _ in range(min(rounds, 5))]
        tell(f"vmalloc {name} --help".replace("  ", " "), "ms", *(1e3 * f(times) for f in (median, min, max)))
    del kept
    common.show(
        f"{live:,} live ranges", ["what", "median", "least", "most"], [[*r, "", ""][:4] for r in rows]
    )
    common.finish(args, results)


if __name__ == "__main__":
    main()
