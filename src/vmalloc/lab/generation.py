# SPDX-License-Identifier: MIT
"""Generation: which kernel does a recording come from?

All designs replay it side by side, and only events on which two of them disagree say anything about them:
one had forecast the address in the printed order (or the purge's count) and the other had not. That is a sign
test: were the two equally good, each such event would go either way like a coin. A design is beaten when so
few of these events, or fewer, would go its way with a chance below CHANCE_MAX. With an unseen start the
version in the recording's header stays a candidate: `generation_said`.

With an unseen start only what follows the first purge of a full backlog counts: `evidence_since`.

Designs that decide alike on this machine (with one node there are no pools) are replayed once. One that is
beaten beyond doubt is stopped early: nothing that follows could change it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

from vmalloc.lab.events import ALLOC, FREE, PURGE
from vmalloc.lab.predict import Predictor
from vmalloc.lab.replay import Outcome, Recording
from vmalloc.model import KERNEL_PRESETS, Design

CHANCE_MAX = 0.02
"""9 of 10 events decide, 8 of 10 do not."""
HOPELESS = 1e-9
"""Chance below which a design is not replayed any further."""
ROUND = 512
"""Events that each design replays before they are compared."""


def chance(few: int, many: int) -> float:
    """That of few + many coins at most `few` show the one side."""
    total = few + many
    if total > 2000:  # far beyond what a float can hold; Hoeffding's bound is enough there
        return min(1.0, 2.718281828459045 ** (-2 * (total / 2 - few) ** 2 / total)) if few < many else 1.0
    return sum(comb(total, heads) for heads in range(few + 1)) / (1 << total)


@dataclass
class Runner:
    """One design's replay, and the presets that decide as it does."""

    predictor: Predictor
    designs: list[Design]
    seconds: float = 0.0
    against: tuple[int, int] = (0, 0)
    """Events on which it disagrees with the best design: won by this one, won by the best."""
    stopped: bool = False

    @property
    def generations(self) -> list[str]:
        return list(dict.fromkeys(design.generation for design in self.designs))

    def advance(self) -> None:
        began = time.perf_counter()
        self.predictor.advance(ROUND)
        self.seconds += time.perf_counter() - began

    def right(self, since: int, end: int) -> int:
        """A bit set in a number for each event from `since` to before `end` that came as forecast."""
        return int.from_bytes(self.predictor.verdicts[since:end], "little")


@dataclass
class Ranking:
    """Designs, best first. `best` is a generation, or "cannot tell" and `candidates` says between which."""

    best: str
    candidates: list[str]
    runners: list[Runner]
    witnesses: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        return [_outcome(runner, design) for runner in self.runners for design in runner.designs]

    def as_dict(self) -> dict[str, Any]:
        designs = [
            _outcome(runner, design).as_dict()
            | {
                "won": runner.against[0],
                "lost": runner.against[1],
                "chance": chance(*sorted(runner.against)),
                "stopped_after": runner.predictor.at if runner.stopped else None,
            }
            for runner in self.runners
            for design in runner.designs
        ]
        return {
            "best": self.best,
            "candidates": self.candidates,
            "witnesses": self.witnesses,
            "designs": designs,
        }


def _outcome(runner: Runner, design: Design) -> Outcome:
    prediction = replace(runner.predictor.result, design=design.name)
    return Outcome(prediction, runner.predictor.kernel, runner.seconds, generation=design.generation)


def rank(recording: Recording, progress: Callable[[int], object] | None = None) -> Ranking:
    """Replay with every kernel design and name the generation the recording comes from."""
    runners = [
        Runner(Predictor(recording.kernel(designs[0]), recording.line, recording.complete), designs)
        for designs in _alike(recording.cpus)
    ]
    nr_events = len(recording.events)
    since = evidence_since(recording)
    for start in range(0, nr_events, ROUND):
        if progress is not None:
            progress(start)
        for runner in runners:
            if not runner.stopped:
                runner.advance()
        _stop_hopeless(runners, since, min(start + ROUND, nr_events))
    best = _best(runners, since, nr_events)
    for runner in runners:
        runner.against = _disagreements(runner, best, since)
    runners.sort(key=lambda runner: (runner is not best, runner.stopped, runner.against[1]))
    near = [runner for runner in runners if runner is best or not _beaten(runner.against, CHANCE_MAX)]
    candidates = list(dict.fromkeys(name for runner in near for name in runner.generations))
    said = None if recording.complete else generation_said(recording.header)
    if said is not None and said not in candidates:
        candidates.append(said)
    told = candidates[0] if len(candidates) == 1 else "cannot tell"
    return Ranking(told, candidates, runners, [*recording.header, *failed_prints(recording)])


def generation_said(header: Sequence[str]) -> str | None:
    """The generation of the kernel that a recording says it is of.

    With an unseen start that weighs as much as the events do: pools were filled before it, so that after a
    purge or two a design without pools may still have more events right, and not by chance. A kernel may be
    patched.
    """
    found = next(filter(None, (re.match(r"kernel (\d+)\.(\d+)\b", line) for line in header)), None)
    if found is None:
        return None
    version = int(found[1]), int(found[2])
    for design in KERNEL_PRESETS.values():
        named = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\.(\d+)", design.generation)]
        if not named:
            continue
        is_early = not design.generation.startswith("to ") and version < named[0]
        is_late = not design.generation.endswith("later") and version > named[-1]
        if not is_early and not is_late:
            return design.generation
    return None


def evidence_since(recording: Recording) -> int:
    """The first event that counts: with an unseen start the one after the first purge of a full backlog.

    Until then hardly anything that was seen is in a pool, and a design without pools is right by having none.
    If the backlog is never full, any purge that took something will do.
    """
    if recording.complete:
        return 0
    first, is_full = len(recording.events), False
    for at, event in enumerate(recording.events):
        if event.kind == FREE:
            is_full = is_full or event.nr_lazy > event.nr_lazy_max
        elif event.kind == PURGE and event.npurged:
            if is_full:
                return at + 1
            first = min(first, at + 1)
    return first


def _alike(cpus: int) -> list[list[Design]]:
    """The kernel's designs, those together that decide alike on a machine with so many CPUs."""
    groups: dict[Design, list[Design]] = {}
    for design in KERNEL_PRESETS.values():
        same = replace(design, name="", generation="", nodes_max=design.nodes(cpus), lookup_descending=False)
        if same.nodes_max == 1:  # no pools: nothing of them matters
            same = replace(same, pool_pages_max=0, pool_discipline="list", decay_rounding="down")
        groups.setdefault(same, []).append(design)
    return list(groups.values())


def _disagreements(one: Runner, other: Runner, since: int) -> tuple[int, int]:
    """Over the events that both replayed: how many only the one had right, and only the other."""
    end = min(one.predictor.at, other.predictor.at)
    ours, theirs = one.right(since, end), other.right(since, end)
    return (ours & ~theirs).bit_count(), (theirs & ~ours).bit_count()


def _beaten(against: tuple[int, int], chance_max: float) -> bool:
    won, lost = against
    return won < lost and chance(won, lost) < chance_max


def _best(runners: Sequence[Runner], since: int, end: int) -> Runner:
    """Of those that got so far, the one that had most events right."""
    whole = [runner for runner in runners if runner.predictor.at >= end]
    return max(whole, key=lambda runner: runner.right(since, end).bit_count())


def _stop_hopeless(runners: Sequence[Runner], since: int, end: int) -> None:
    best = _best(runners, since, end)
    for runner in runners:
        if runner is not best and not runner.stopped:
            runner.stopped = _beaten(_disagreements(runner, best, since), HOPELESS)


def failed_prints(recording: Recording) -> list[str]:
    """What failed allocations print in place of an address, which is another thing since 6.16."""
    for event in recording.events:
        if event.kind == ALLOC and event.failed:
            since = "up to 6.15" if event.addr == event.vend else "6.16 and later"
            return [f"line {event.line}: a failed allocation prints {event.addr:#x}, as kernels do {since}"]
    return []
