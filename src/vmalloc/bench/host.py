# SPDX-License-Identifier: MIT
"""The program one peer lives in: `python -m vmalloc.bench.host PLACE PREFIX [START_METHOD]`.

Requests come on standard input, answers go to standard output, one JSON object per line. Whatever the
peer prints goes to standard error. The end of the input is the order to stop.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from vmalloc.bench import faults, processes
from vmalloc.bench.peers import load
from vmalloc.bench.peers.peer import Resident, seed_after

__all__ = ["main"]


def measure(peer: Resident, what: str, nbytes: int, seed: int, burst: int) -> dict[str, Any]:
    """A burst of hand-overs: the time and the answer of each, and the faults of all together."""
    pids = list(processes.tree(os.getpid()))
    before = faults.count(pids)
    times_ns, checksums = [], []
    for _ in range(burst):
        ns, checksum = getattr(peer, what)(nbytes, seed)
        times_ns.append(ns)
        checksums.append(checksum)
        seed = seed_after(seed)
    minor, major = faults.count(pids).since(before)
    return {"ns": times_ns, "checksums": checksums, "minor": minor, "major": major}


def answer(peer: Resident, request: dict[str, Any]) -> dict[str, Any]:
    """One request: "measure" with the arguments of measure(), or "call", any method of a peer."""
    if request["do"] == "measure":
        return measure(peer, *request["args"])
    name, *args = request["args"]
    return {"value": getattr(peer, name)(*args)}


def main(place: str, prefix: str, start_method: str | None = None) -> None:
    """Start the peer, answer requests, stop the peer."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        peer = load(place)(prefix, start_method)
        peer.start()
    except Exception as error:
        say({"error": _reason(error)})
        return
    try:
        say({"ready": True})
        for line in requests:
            try:
                say(answer(peer, json.loads(line)))
            except Exception as error:
                say({"error": _reason(error)})
    finally:
        peer.stop()


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    main(*sys.argv[1:])
