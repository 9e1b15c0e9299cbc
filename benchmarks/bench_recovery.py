# SPDX-License-Identifier: MIT
"""What a death costs those who live: a waiter's pause, the others' hot path, what is left on the machine.

`pause`: a victim of 1 GiB, touched, is killed while it holds a lock that a thread waits for. From the kill
to the end of that thread's request; less the time until the kernel has dropped the lock of an equal victim
that held nothing, less the wake-up of a sleeping thread, both of the same run. All the rest is ours. Its p95
is the 95th percentile of the pauses less the medians of the two.
`hits`: a thread that does only hits while others die, against the same for as long without deaths; what
happened while it was preempted is left out, waiting would show as voluntary context switches.
`pair`: with --against TREE, the hot pair of this tree against that of another one, e.g. an earlier commit's.
`group`: a whole process group is killed with 1 GiB live; what is left.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path
from statistics import quantiles

import _common as common
from _common import median, result

HERE = Path(__file__).parent
TREE = HERE.parent
RELEASE = ["-DNDEBUG", "-ftls-model=initial-exec", "-fno-semantic-interposition", "-fvisibility=hidden"]
PATIENCE_S = 60


def sources(tree: Path) -> list[Path]:
    return sorted((tree / "core").glob("*.c"))


def p95(values: list[float]) -> float:
    """The 95th percentile (the largest of few values)."""
    return quantiles(values, n=20)[18] if len(values) >= 20 else max(values)


def measure(program: Path, *arguments: object) -> list[list[float]]:
    """Its lines, as numbers."""
    command = [str(program), *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [[float(x) for x in line.split()] for line in out.splitlines()]


def bench_pause(program: Path, args: argparse.Namespace, results: list[common.Result]) -> None:
    quick, deaths, victim_mib = args.quick, args.deaths, args.victim_mib
    rows = []
    for gib, range_pages, lock in [
        *((gib, 16, "space") for gib in ([1] if quick else [1, 2, 4])),
        *([] if quick else [(4, 256, "space"), (4, 1, "space"), (4, 16, "names"), (4, 16, "none")]),
    ]:
        lines = measure(program, "pause", gib, range_pages, victim_mib, deaths, lock)
        pauses, teardowns, wakes = (list(column) for column in zip(*lines, strict=True))
        kernel = median(teardowns) + median(wakes)
        ours = {"p50": median(pauses) - kernel, "p95": p95(pauses) - kernel}
        case = f"pause, {lock}, {gib} GiB in ranges of {range_pages * 4} KiB"
        peers = {"teardown p50": median(teardowns), "teardown p95": p95(teardowns), "wake": median(wakes)}
        if lock == "none":  # nobody waits for the victim: nothing to take off
            ours = {"p50": median(pauses), "p95": p95(pauses)}
        results += [result(f"{case}: {q}", "magazine", value / 1e3, "ms",
                           {n: v / 1e3 for n, v in peers.items()}) for q, value in ours.items()]  # fmt: skip
        cells = [
            median(pauses),
            p95(pauses),
            median(teardowns),
            p95(teardowns),
            median(wakes),
            *ours.values(),
        ]
        rows.append([case, *(f"{value / 1e3:.2f}" for value in cells)])
    columns = ["case", "pause p50", "p95", "teardown p50", "p95", "wake p50", "ours p50", "ours p95"]
    common.show(f"ms; victims of {victim_mib} MiB, {deaths} deaths each", columns, rows)


def bench_hits(program: Path, args: argparse.Namespace, results: list[common.Result]) -> None:
    gib, deaths = 1 if args.quick else 4, args.deaths
    dying, resting = measure(program, "hot", gib, 16, min(args.victim_mib, 256), deaths, "space")
    columns = ["p50", "p99", "p99.99", "longest", "pairs", "preempted", "waited", "no hits"]
    rows = [[name, *(f"{x:.0f}" for x in line)] for name, line in [("deaths", dying), ("no deaths", resting)]]
    for name, during, without in zip(columns, dying, resting, strict=True):
        unit = "ns" if name.startswith(("p5", "p9", "longest")) else "times"
        results.append(
            result(f"hits during recoveries: {name}", "magazine", during, unit, {"without": without})
        )
    common.show(f"hits, ns (with the clock); {deaths} deaths, {gib} GiB in use", ["during", *columns], rows)


def bench_pair(args: argparse.Namespace, results: list[common.Result]) -> None:
    """Each tree's hot pair through its own shared library."""
    against = args.against.resolve()
    calls, rounds = (20_000, 3) if args.quick else (20_000, 300)  # of well below a millisecond
    workers = {}
    for name, tree in {"this": TREE, "that": against}.items():
        first, *rest = sources(tree)
        flags = ["-shared", "-fPIC", "-Wl,-Bsymbolic-functions", *RELEASE, *map(str, rest)]
        library = common.build(first, f"libvmalloc-{name}.so", flags)
        flags = ["-DUSE_VM", f"-I{tree / 'core'}", str(library), f"-Wl,-rpath,{library.parent}"]
        program = common.build(HERE / "alloc_loop.c", f"alloc_loop_{name}", flags)
        workers[name] = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows = []
    for kib in (4, 64, 1024):

        def one_round(worker: subprocess.Popen[str], line: str = f"hot {kib << 10} {calls}\n") -> float:
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write(line)
            worker.stdin.flush()
            return float(worker.stdout.readline().split()[0])

        values = common.interleaved(rounds, {n: (lambda w=w: one_round(w)) for n, w in workers.items()})
        more = median(a - b for a, b in zip(values["this"], values["that"], strict=True))
        medians = {n: median(v) for n, v in values.items()}
        results.append(result(f"hot pair {kib} KiB", "magazine", medians["this"], "ns/pair",
                              {str(against): medians["that"], "difference": more}))  # fmt: skip
        rows.append(
            [f"{kib} KiB", *(f"{medians[n]:.2f} ({min(values[n]):.2f})" for n in workers), f"{more:+.2f}"]
        )
    for worker in workers.values():
        worker.kill()
        worker.communicate()
    common.show("hot pair, ns: median (minimum)", ["size", "this tree", str(against), "more"], rows)


def shared_kib() -> int:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("Shmem:"))
    return int(line.split()[1])


def processes_with_the_region() -> int:
    """How many processes have a descriptor of it, or map it."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            maps = (process / "maps").read_text()
        except OSError:
            continue
        count += any("memfd:vmalloc:group" in text for text in [*links, maps])
    return count


def files() -> set[Path]:
    return {path for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("*vmalloc*")}


def bench_group(program: Path, args: argparse.Namespace, results: list[common.Result]) -> None:
    mib = args.victim_mib
    before, files_before = shared_kib(), files()
    leader = subprocess.Popen([program, "group", str(mib)], stdout=subprocess.PIPE, process_group=0)
    assert leader.stdout
    leader.stdout.readline()
    during, members = shared_kib() - before, processes_with_the_region()
    os.killpg(leader.pid, signal.SIGKILL)
    leader.communicate()
    until = time.monotonic() + PATIENCE_S
    while processes_with_the_region() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)  # the kernel frees the pages of the last one
    left = {
        "processes": processes_with_the_region(),
        "files": len(files() - files_before),
        "MiB of shared memory": (shared_kib() - before) / 1024,
    }
    had = {"processes": members, "files": 0, "MiB of shared memory": during / 1024}
    results += [
        result(f"left of a killed group: {n}", "magazine", v, "", {"before": had[n]}) for n, v in left.items()
    ]
    rows = [[n, f"{had[n]:.0f}", f"{v:.0f}"] for n, v in left.items()]
    common.show(f"a group is killed with {mib} MiB live", ["", "before", "after"], rows)


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--against", metavar="TREE", type=Path, help="another tree, for the hot pair")
    parser.add_argument("--deaths", type=int, help="a case (default 40, quick 3)")
    parser.add_argument("--victim-mib", type=int, help="what each has touched (default 1024, quick 64)")
    parser.add_argument("--only", choices=["pause", "hits", "pair", "group"], help="this part")
    args = parser.parse_args()
    args.deaths = args.deaths or (3 if args.quick else 40)
    args.victim_mib = args.victim_mib or (64 if args.quick else 1024)
    flags = [*RELEASE, f"-I{TREE / 'core'}", *map(str, sources(TREE))]
    program = common.build(HERE / "recover_loop.c", "recover_loop", flags)
    results: list[common.Result] = []
    for name, bench in {"group": bench_group, "pause": bench_pause, "hits": bench_hits}.items():
        if args.only in (None, name):
            bench(program, args, results)
    if args.against and args.only in (None, "pair"):
        bench_pair(args, results)
    common.finish(args, results)


if __name__ == "__main__":
    main()
