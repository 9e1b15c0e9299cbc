# SPDX-License-Identifier: MIT
"""ns per alloc+free pair in C through the shared library, against glibc, mimalloc, jemalloc, tcmalloc.

Run-time sizes in bytes, shipped defaults, one byte stored per block on both sides. Every allocator
runs in a process of its own that does one short round at a time; all take turns, so that a noisy
machine hits them alike. The value is the median of the rounds; `ratio` is the median over the rounds
of ours divided by the fastest peer's in the same round. Peers come from Debian's libraries
(libmimalloc2.0 libjemalloc2 libtcmalloc-minimal4), preloaded, as they ship and, where they have such
a setting, told to keep memory ("keep"). `floor` does nothing but keep ready ranges in a stack for each
size: the rest is the caller's own loop, and its byte in pages that are not in the cache.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import _common as common
from _common import median, result

CASES = {  # name: (command, argument, pairs a round)
    "hot 4 KiB": ("hot", 4 << 10, 20_000),
    "hot 64 KiB": ("hot", 64 << 10, 20_000),
    "hot 256 KiB": ("hot", 256 << 10, 20_000),
    "hot 1 MiB": ("hot", 1 << 20, 20_000),
    "random 1..16 pages": ("random", 16, 20_000),
    "random 1..256 pages": ("random", 256, 10_000),
    "remote 4 KiB": ("remote", 4 << 10, 20_000),
    "remote 64 KiB": ("remote", 64 << 10, 20_000),
}

KEEP = {
    "glibc": {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "33554432"},
    "mimalloc": {"MIMALLOC_PAGE_RESET": "0", "MIMALLOC_ALLOW_DECOMMIT": "0"},  # of 2.0
    "jemalloc": {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
    "tcmalloc": {"TCMALLOC_RELEASE_RATE": "0"},
}
LIBRARIES = {"mimalloc": "mimalloc", "jemalloc": "jemalloc", "tcmalloc": "tcmalloc_minimal"}
EXACT = {
    "mimalloc": "libmimalloc.so.2.0",
    "jemalloc": "libjemalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
}


@dataclass
class Worker:
    """One allocator in a process of its own."""

    program: Path
    environment: dict[str, str]
    resident: list[int] = field(default_factory=list)

    def __enter__(self) -> Worker:
        self.process = subprocess.Popen(
            [self.program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def round(self, command: str) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        ns, resident = self.process.stdout.readline().split()
        self.resident.append(int(resident))
        return float(ns)


def find_peers() -> dict[str, dict[str, str]]:
    """Each peer's environment; names what is missing."""
    peers: dict[str, dict[str, str]] = {"glibc": {}}
    for name, library in LIBRARIES.items():
        for soname in filter(None, (EXACT[name], ctypes.util.find_library(library))):
            loaded = subprocess.run(["true"], env=os.environ | {"LD_PRELOAD": soname}, capture_output=True)
            if not loaded.stderr:  # ld.so says what it cannot preload
                peers[name] = {"LD_PRELOAD": soname}
                break
        else:
            print(f"{name}: lib{library} is not installed; skipped")
    return peers | {f"{name} (keep)": env | KEEP[name] for name, env in peers.items()}


def run_case(
    case: str, programs: dict[str, tuple[Path, dict[str, str]]], rounds: int, quick: bool
) -> tuple[dict[str, list[float]], dict[str, int]]:
    command, argument, pairs = CASES[case]
    if quick:
        pairs //= 10
    workers = {name: Worker(*program) for name, program in programs.items()}
    try:
        for worker in workers.values():
            worker.__enter__()
            for _ in range(2 if command == "remote" or quick else 5):  # reach the steady state
                worker.round(f"{command} {argument} {pairs}")
        line = f"{command} {argument} {pairs}"
        values = common.interleaved(
            rounds, {name: (lambda w=worker: w.round(line)) for name, worker in workers.items()}
        )
        return values, {name: max(worker.resident) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.__exit__()


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="a case (default 60, quick 3)")
    parser.add_argument("--case", action="append", choices=CASES, help="only these")
    args = parser.parse_args()
    rounds = args.rounds or (3 if args.quick else 60)
    source = Path(__file__).with_name("alloc_loop.c")
    flags = common.library_flags()
    ours = common.build(source, "alloc_loop_vm", ["-DUSE_VM=1", *flags])
    inline = common.build(source, "alloc_loop_inline", ["-DUSE_VM=2", *flags])
    theirs = common.build(source, "alloc_loop_malloc", [])
    floor = common.build(source, "alloc_loop_floor", ["-DUSE_FLOOR"])
    peers = find_peers()
    programs: dict[str, tuple[Path, dict[str, str]]] = {"vmalloc": (ours, {}), "inline": (inline, {})}
    programs |= {"floor": (floor, {})} | {name: (theirs, env) for name, env in peers.items()}
    results: list[common.Result] = []
    rows: list[list[str]] = []
    for case in args.case or CASES:
        here = {name: of for name, of in programs.items() if name != "floor" or not case.startswith("remote")}
        values, resident = run_case(case, here, rounds, args.quick)
        medians = {name: median(v) for name, v in values.items()}
        fastest = min(peers, key=lambda name: medians[name])
        ratios = {
            name: median(a / b for a, b in zip(values[name], values[fastest], strict=True))
            for name in ("vmalloc", "inline")
        }
        peer_medians = {name: medians[name] for name in peers}
        results.append(result(case, "magazine", medians["vmalloc"], "ns/pair", peer_medians))
        results.append(result(f"{case}: inline", "magazine", medians["inline"], "ns/pair", peer_medians))
        if "floor" in here:
            results.append(result(f"{case}: floor", "none", medians["floor"], "ns/pair", peer_medians))
        results.append(result(f"{case}: minimum", "magazine", min(values["vmalloc"]), "ns/pair",
                              {name: min(values[name]) for name in peers}))  # fmt: skip
        results.append(result(f"{case}: resident", "magazine", resident["vmalloc"] / 2**20, "MiB",
                              {name: resident[name] / 2**20 for name in peers}))  # fmt: skip
        cells = [
            f"{medians[n]:.1f} ({min(values[n]):.1f}) {resident[n] / 2**20:.0f}M" if n in here else "-"
            for n in programs
        ]
        rows.append([case, *cells, *(f"{r:.2f}" for r in ratios.values()), fastest])
    common.show("ns per alloc+free pair: median (minimum), resident memory",
                ["case", *programs, "ratio", "inline", "to"], rows)  # fmt: skip
    common.finish(args, results)


if __name__ == "__main__":
    main()
