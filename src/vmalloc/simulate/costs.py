# SPDX-License-Identifier: MIT
"""Costs and machines: costs/NAME.toml, one readable file for each, every value with its source.

A file says which file it is based on (`base`), its topology, and the costs that differ. Costs are in ns, or
plain numbers where costs.h says so. `calibrated` marks a value that was fitted to published figures; nothing
that was fitted may be scored (validate.py).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmalloc.simulate._engine import COSTS

__all__ = ["Cost", "Machine", "Topology", "load_machine", "machines"]

FOLDER = Path(__file__).parent / "costs"
CPUS_MAX = 4096
COST_MAX = 1e9
"""A second, in ns: times are added up in 64-bit numbers of ps."""


@dataclass(frozen=True)
class Topology:
    """Sockets, last-level caches in a socket, cores on each, hardware threads in a core.

    CPU numbers go through all cores first and then through their siblings, as Linux mostly counts.
    """

    sockets: int = 1
    clusters: int = 1
    cores: int = 1
    smt: int = 1

    def __post_init__(self) -> None:
        if min(self.sockets, self.clusters, self.cores, self.smt) < 1:
            raise ValueError(f"topology {self}: every number must be at least 1")
        if self.cpus > CPUS_MAX:
            raise ValueError(f"topology {self}: {self.cpus} CPUs are more than {CPUS_MAX}")

    def __str__(self) -> str:
        return f"{self.sockets}x{self.clusters}x{self.cores}x{self.smt}"

    @property
    def cpus(self) -> int:
        return self.sockets * self.clusters * self.cores * self.smt

    @classmethod
    def parse(cls, text: str) -> Topology:
        """`sockets x clusters x cores x smt`, as 1x8x4x2."""
        parts = text.lower().split("x")
        if len(parts) != 4 or not all(part.isdigit() for part in parts):
            raise ValueError(f"topology {text!r}: wanted SOCKETSxCLUSTERSxCORESxSMT, as 1x8x4x2")
        return cls(*map(int, parts))

    def scaled(self, cpus: int) -> Topology:
        """The same kind of machine with so many CPUs: fewer or more clusters, then sockets."""
        if cpus == self.cpus:
            return self
        if cpus < 1 or cpus > CPUS_MAX:
            raise ValueError(f"{cpus} CPUs: wanted 1 to {CPUS_MAX}")
        per_cluster = self.cores * self.smt
        if cpus % per_cluster:
            if cpus > per_cluster:
                raise ValueError(f"{cpus} CPUs cannot be made of clusters of {per_cluster}; say --topology")
            smt = self.smt if cpus % self.smt == 0 else 1
            return Topology(1, 1, cpus // smt, smt)
        clusters = cpus // per_cluster
        sockets = -(-clusters // self.clusters)
        while clusters % sockets:
            sockets += 1
        return Topology(sockets, clusters // sockets, self.cores, self.smt)


@dataclass(frozen=True)
class Cost:
    """One value, where it is from, and the figures it was fitted to, if it was."""

    value: float
    source: str
    calibrated: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine: its name, what it is, its topology, what things cost there."""

    name: str
    meaning: str
    topology: Topology
    costs: dict[str, Cost]

    @property
    def values(self) -> dict[str, float]:
        return {name: cost.value for name, cost in self.costs.items()}

    def with_costs(self, changes: dict[str, float], source: str) -> Machine:
        """The same with some costs changed. Raises ValueError for a name that is none."""
        if unknown := changes.keys() - COSTS.keys():
            raise ValueError(f"there is no cost {min(unknown)!r}; there are {', '.join(COSTS)}")
        if wrong := [name for name, value in changes.items() if not 0 <= value <= COST_MAX]:
            raise ValueError(f"cost {wrong[0]}={changes[wrong[0]]:g}: wanted 0 to {COST_MAX:g}")
        changed = {name: Cost(value, source) for name, value in changes.items()}
        return replace(self, costs={**self.costs, **changed})


def machines() -> list[str]:
    """The names that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_machine(name: str) -> Machine:
    """A machine by name, or by the path of such a file. Raises ValueError, one line."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_bytes()
    except OSError as error:
        if name.endswith(".toml"):
            raise ValueError(f"{name}: {error.strerror}") from None
        raise ValueError(f"there is no machine {name!r}; there are {', '.join(machines())}") from None
    try:
        document = tomllib.loads(text.decode())
        return _machine(path, document)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error!r} does not make a file of costs") from None


def _machine(path: Path, document: dict[str, Any]) -> Machine:
    base: dict[str, Cost] = {}
    if "base" in document:
        beside = path.parent / f"{document['base']}.toml"
        base = load_machine(str(beside) if beside.exists() else document["base"]).costs
    costs = {**base, **{name: _cost(path, name, entry) for name, entry in document["cost"].items()}}
    if missing := COSTS.keys() - costs.keys():
        raise ValueError(f"{path}: no {', '.join(sorted(missing))}")
    topology = Topology(**document.get("topology", {}))
    return Machine(path.stem, document["meaning"], topology, costs)


def _cost(path: Path, name: str, entry: dict[str, Any]) -> Cost:
    if name not in COSTS:
        raise ValueError(f"{path}: there is no cost {name!r}")
    key = "ns" if COSTS[name] == "ns" else "number"
    value = entry.get(key)
    if not isinstance(value, int | float) or not 0 <= value <= COST_MAX:
        raise ValueError(f"{path}: {name} needs `{key}`, 0 to {COST_MAX:g}")
    if not entry.get("source"):
        raise ValueError(f"{path}: {name} has no source")
    return Cost(float(value), entry["source"], entry.get("calibrated", ""))
