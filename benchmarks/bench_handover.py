# SPDX-License-Identifier: MIT
"""Arrays between processes: does handing over by reference reach its bars?

One interleaved run: in every round each candidate has its turn, in an order that moves by one. A ratio
is the median over the rounds of one candidate's time over another's in the same round; rounds in which
other processes took much of the CPUs are left out. What arrives is checked every time, outside of the
time; giving it back is inside.

`result`: a task in a worker makes an array and fills it, and the time ends when the caller has it. Its floor
is a task that fills one fixed piece of shared memory, which nobody allocates, sends or frees. What an empty
task and a fill take for themselves is less than that, whoever hands over: benchmarks/README.md says why.

`Connection.send`: the sender fills in place, the receiver reads in place and answers, on both sides of the
ratio; nobody copies. `vmalloc bench handover` shows all sizes and peers, reading included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import _common as common

from vmalloc.bench.crew import Host, PeerFailed
from vmalloc.bench.peers import PEERS
from vmalloc.bench.processes import Neighbours

M = 1 << 20
BURST = 3  # hand-overs of a turn; their median counts. Of stock, which is slow, one
TIMEOUT_S = 60.0
FOREIGN, FOREIGN_MAX = "foreign", 0.08
ONE_ARRAY_BYTES = 4096
REFERENCE_BYTES = 4096

#: Results of tasks: by which peer, and how large. Each is a process of its own, so that sizes do not mix.
RESULTS = {
    "vmalloc 16 MiB": ("vmalloc", 16 * M),
    "copied in 16 MiB": ("copied", 16 * M),
    "stock 16 MiB": ("stock", 16 * M),
    "py-sharedmemory 16 MiB": ("pysm", 16 * M),
    "fill 16 MiB": ("alone", 16 * M),
    "vmalloc 64 MiB": ("vmalloc", 64 * M),
    "stock 64 MiB": ("stock", 64 * M),
    "Ray 64 MiB": ("ray", 64 * M),
}
#: What is sent through a pipe, read and answered: by which class, and how large. Also processes of their own.
SENT_BYTES = {"1 MiB": M, "16 MiB": 16 * M, "256 MiB": 256 * M}
SENT = {
    f"{title} {size}": (peer, nbytes)
    for size, nbytes in SENT_BYTES.items()
    for title, peer in (("Connection.send", "sent"), ("iceoryx2", "iceoryx2"))
}
OWN = {"sent": "SentArray"}  # a class of handover_cases.py that is no peer of the command
FLOOR = "task that fills 16 MiB"
#: The others, by their class in handover_cases.py.
CASES = {
    "empty task": "EmptyTask",
    FLOOR: "FillTask",
    "fill 16 MiB, shared": "SharedFill",
    "task that waits 2 ms": "WaitingTask",
    "stock messages": "StockMessages",
    "installed messages": "InstalledMessages",
    "latency": "ReferenceLatency",
    "live": "LiveArrays",
}

Round = dict[str, float]  # by candidate: microseconds of wall time


@dataclass(frozen=True)
class Bar:
    """One line of the table: what is computed of a round, and what it may be at most."""

    case: str
    needs: tuple[str, ...]
    value: Callable[[Round], float]
    bar: float
    unit: str = "x"


BARS = (
    Bar(
        "16 MiB result / (empty task + warm fill)",
        ("vmalloc 16 MiB", "empty task", "fill 16 MiB"),
        lambda r: r["vmalloc 16 MiB"] / (r["empty task"] + r["fill 16 MiB"]),
        1.05,
    ),
    Bar(
        "the floor / (empty task + warm fill)",
        (FLOOR, "empty task", "fill 16 MiB"),
        lambda r: r[FLOOR] / (r["empty task"] + r["fill 16 MiB"]),
        1.05,
    ),
    Bar(
        "16 MiB result / the floor: a task that fills",
        ("vmalloc 16 MiB", FLOOR),
        lambda r: r["vmalloc 16 MiB"] / r[FLOOR],
        1.05,
    ),
    *(
        Bar(
            f"Connection.send of {size} / iceoryx2",
            (f"Connection.send {size}", f"iceoryx2 {size}"),
            lambda r, size=size: r[f"Connection.send {size}"] / r[f"iceoryx2 {size}"],
            1.05,
        )
        for size in SENT_BYTES
    ),
    Bar(
        "16 MiB result / py-sharedmemory",
        ("vmalloc 16 MiB", "py-sharedmemory 16 MiB"),
        lambda r: r["vmalloc 16 MiB"] / r["py-sharedmemory 16 MiB"],
        1 / 6,
    ),
    Bar(
        "16 MiB result, copied in / stock",
        ("copied in 16 MiB", "stock 16 MiB"),
        lambda r: r["copied in 16 MiB"] / r["stock 16 MiB"],
        1 / 3,
    ),
    Bar(
        "64 MiB result / Ray",
        ("vmalloc 64 MiB", "Ray 64 MiB"),
        lambda r: r["vmalloc 64 MiB"] / r["Ray 64 MiB"],
        1 / 5,
    ),
    Bar(
        "message of one 4 KiB array / stock",
        ("installed, one array", "stock, one array"),
        lambda r: r["installed, one array"] / r["stock, one array"],
        1.05,
    ),
    Bar(
        "message of 1,000 tiny arrays / stock",
        ("installed, 1,000 arrays", "stock, 1,000 arrays"),
        lambda r: r["installed, 1,000 arrays"] / r["stock, 1,000 arrays"],
        1.5,
    ),
    Bar(
        "the same, CPU time of both sides: one array",
        ("installed, one array: CPU", "stock, one array: CPU"),
        lambda r: r["installed, one array: CPU"] / r["stock, one array: CPU"],
        1.05,
    ),
    Bar(
        "the same, CPU time of both sides: 1,000",
        ("installed, 1,000 arrays: CPU", "stock, 1,000 arrays: CPU"),
        lambda r: r["installed, 1,000 arrays: CPU"] / r["stock, 1,000 arrays: CPU"],
        1.5,
    ),
    Bar(
        "a reference more in an empty message",
        ("None", "reference"),
        lambda r: r["reference"] - r["None"],
        15.0,
        "us",
    ),
    Bar(
        "the same, array made for the message",
        ("None", "reference to a new array"),
        lambda r: r["reference to a new array"] - r["None"],
        15.0,
        "us",
    ),
)


class Candidates:
    """The processes, and what each does in its turn."""

    def __init__(self, stack: ExitStack, *, quick: bool) -> None:
        self._stack = stack
        self._seed = 1
        self._nr_messages, self._nr_lists, self._nr_trips = (20, 5, 10) if quick else (300, 10, 60)
        self.turns: dict[str, Callable[[Round], None]] = {}
        self._hosts: dict[str, Host] = {}
        self._start()

    def _start(self) -> None:
        for name, place in self._places():
            self._begin(name, place)
        for name in list(self._hosts):
            try:
                self._hosts[name].wait_ready()
            except PeerFailed as error:
                print(f"{name} failed: {error}", file=sys.stderr)
                self._hosts.pop(name).stop()
        self._turn(FLOOR, self._fetch(FLOOR, 16 * M))  # beside what it is compared with
        for title, (_, nbytes) in RESULTS.items():
            self._turn(title, self._fetch(title, nbytes))
        self._turn("empty task", self._timed("empty task", 64))
        self._turn("fill 16 MiB, shared", self._fetch("fill 16 MiB, shared", 16 * M))
        self._turn("task that waits 2 ms", self._timed("task that waits 2 ms", 64))
        for title, (_, nbytes) in SENT.items():
            self._turn(title, self._timed(title, nbytes))
        for kind in ("stock", "installed"):
            self._turn(f"{kind} messages", self._messages(kind))
        self._turn("latency", self._latency)

    @staticmethod
    def _places() -> Iterable[tuple[str, str]]:
        for way, cases in (("task", RESULTS), ("queue", SENT)):
            for title, (peer, _) in cases.items():
                entry = PEERS.get(peer)
                played = ("", f"handover_cases:{OWN[peer]}") if entry is None else entry.way(way)
                if played is not None and (entry is None or entry.is_installed):
                    yield title, played[1]
                elif entry is not None:
                    print(f"{title}: not installed: pip install {entry.install}", file=sys.stderr)
        for title, cls in CASES.items():
            yield title, f"handover_cases:{cls}"

    def _begin(self, name: str, place: str) -> None:
        self._hosts[name] = self._stack.enter_context(Host(name, place))

    def _turn(self, host: str, turn: Callable[[Round], None]) -> None:
        if host in self._hosts:
            self.turns[host] = turn

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed

    def _fetch(self, title: str, nbytes: int) -> Callable[[Round], None]:
        burst = 1 if title.startswith("stock") else BURST

        def turn(found: Round) -> None:
            sample = self._hosts[title].measure(nbytes, self._next_seed(), TIMEOUT_S, burst, "timed_fetch")
            found[title] = sample.ns / 1e3
            found[f"{title}: faults"] = sample.minor + sample.major

        return turn

    def _timed(self, title: str, nbytes: int) -> Callable[[Round], None]:
        burst = BURST if nbytes <= 16 * M else 1

        def turn(found: Round) -> None:
            sample = self._hosts[title].measure(nbytes, self._next_seed(), TIMEOUT_S, burst)
            found[title] = sample.ns / 1e3
            found[f"{title}: faults"] = sample.minor + sample.major

        return turn

    def _messages(self, kind: str) -> Callable[[Round], None]:
        def turn(found: Round) -> None:
            host = self._hosts[f"{kind} messages"]
            for what, words in (
                ("one array", ("arrays", ONE_ARRAY_BYTES, self._nr_messages)),
                ("1,000 arrays", ("lists", self._nr_lists)),
            ):
                name = f"{kind}, {what}"
                found[name], found[f"{name}: CPU"] = host.call(*words, self._next_seed())

        return turn

    def _latency(self, found: Round) -> None:
        found["None"], found["reference"], found["reference to a new array"] = self._hosts["latency"].call(
            "latencies", REFERENCE_BYTES, self._nr_trips, self._next_seed()
        )

    def with_live(self, count: int) -> list[int]:
        """Descriptors and mappings of sender and receiver with so many live arrays."""
        found: list[int] = self._hosts["live"].call("with_live", count, timeout_s=300.0)
        return found


def rounds_of(candidates: Candidates, nr_rounds: int) -> list[Round]:
    """All rounds but the first two, which warm up; under FOREIGN what other processes took of the CPUs."""
    turns = list(candidates.turns.items())
    found: list[Round] = []
    neighbours = Neighbours()
    for number in range(nr_rounds + 2):
        one: Round = {}
        first = number % len(turns)
        for name, turn in turns[first:] + turns[:first]:
            try:
                turn(one)
            except PeerFailed as error:
                sys.exit(f"{name} failed: {error}")
        one[FOREIGN] = neighbours.share()
        found.append(one)
    return found[2:]


def quiet(rounds: list[Round]) -> list[Round]:
    """The rounds others disturbed little; at least the quietest quarter."""
    by_noise = sorted(rounds, key=lambda one: one[FOREIGN])
    nr_quiet = sum(one[FOREIGN] <= FOREIGN_MAX for one in rounds)
    return by_noise[: max(nr_quiet, -(-len(rounds) // 4), 2)]


def time_text(us: float) -> str:
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.1f} us"


def show_times(rounds: list[Round], nr_all: int) -> None:
    noise = max(one[FOREIGN] for one in rounds)
    names = [name for name in rounds[0] if name != FOREIGN and not name.endswith(": faults")]
    rows = []
    for name in sorted(names):
        values = [one[name] for one in rounds]
        low, middle, high = quantiles(values, n=4, method="inclusive")
        faults = [one.get(f"{name}: faults") for one in rounds]
        rows.append(
            [name, time_text(middle), f"{time_text(low)} .. {time_text(high)}",
             "" if faults[0] is None else f"{median(f for f in faults if f is not None):.0f}"]
        )  # fmt: skip
    common.show(
        f"warm, medians of the {len(rounds)} quietest of {nr_all} rounds: others took up to {noise:.0%}",
        ["candidate", "median", "quartiles", "faults"],
        rows,
    )


def reached(value: float, bar: float) -> str:
    return "yes" if value <= bar else "NO"


def ratio_rows(rounds: list[Round], rows: list[list[str]]) -> Iterable[dict[str, Any]]:
    for bar in BARS:
        if not all(name in rounds[0] for name in bar.needs):
            rows.append([bar.case, "not measured", f"{bar.bar:.3g} {bar.unit}", ""])
            continue
        value = median(bar.value(one) for one in rounds)
        rows.append(
            [bar.case, f"{value:.3g} {bar.unit}", f"{bar.bar:.3g} {bar.unit}", reached(value, bar.bar)]
        )
        peers = {name: median(one[name] for one in rounds) for name in bar.needs}
        yield {**common.result(bar.case, "magazine", value, bar.unit, peers), "bar": bar.bar}


def live_rows(candidates: Candidates, many: int, rows: list[list[str]]) -> Iterable[dict[str, Any]]:
    candidates.with_live(1)  # attaching and importing are over
    one, all_of_them = candidates.with_live(1), candidates.with_live(many)
    for place, what in enumerate(
        ("descriptors, sender", "mappings, sender", "descriptors, receiver", "mappings, receiver")
    ):
        case = f"{what}: {many:,} live arrays"
        rows.append([case, str(all_of_them[place]), str(one[place]), reached(all_of_them[place], one[place])])
        yield {
            **common.result(case, "magazine", all_of_them[place], "", {"one array": one[place]}),
            "bar": one[place],
        }


def main() -> None:
    args = common.options(__doc__).parse_args()
    nr_rounds, many = (3, 200) if args.quick else (41, 10_000)
    rows: list[list[str]] = []
    with ExitStack() as stack:
        candidates = Candidates(stack, quick=args.quick)
        every = rounds_of(candidates, nr_rounds)
        rounds = quiet(every)
        results = [*ratio_rows(rounds, rows), *live_rows(candidates, many, rows)]
    show_times(rounds, len(every))
    common.show("must reach", ["what", "measured", "at most", "reached"], rows)
    common.finish(args, results)


if __name__ == "__main__":
    main()
