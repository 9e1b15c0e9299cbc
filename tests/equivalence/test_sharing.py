# SPDX-License-Identifier: MIT
"""Many processes that send, receive, drop, fork and die, against an oracle that knows who references what.

Every array is full of its own number, so whatever a process reads tells whose bytes they are. Workers obey
one command at a time, so the oracle knows exactly what is in use after each.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import select
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.conftest import DESIGNS, PAGE

import vmalloc

NR_PAGES = 4096
WORKERS_MOST = 8
NAMES = ("one", "two")
SIZES = st.sampled_from([1, 1, 2, 3, 7, 40, 257])
DATA = st.data()


# ---- a worker ----


class Worker:
    """Runs in a process of its own; each method is a command."""

    def __init__(self, region: vmalloc.Region, address: str) -> None:
        self.region, self.address = region, address
        self.held: dict[int, Any] = {}

    def serve(self) -> None:
        """Obey until told to end. A forked child goes on from here with a connection of its own."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        vmalloc.install(self.region, 1000)
        connection = Client(self.address, "AF_UNIX")
        connection.send(os.getpid())
        while True:
            command, *arguments = connection.recv()
            if command == "exit":
                return
            if command == "fork":
                if os.fork() == 0:
                    connection.close()
                    connection = Client(self.address, "AF_UNIX")
                    connection.send(os.getpid())
                continue
            try:
                answer = getattr(self, command)(*arguments)
            except vmalloc.StaleReference:
                answer = "stale"
            except BaseException:
                answer = traceback.format_exc()
            connection.send(answer)

    def create(self, key: int, nr_pages: int, number: int) -> int:
        self.held[key] = a = self.region.full(nr_pages * PAGE // 8, number, "u8")
        return int(a.base._range[1])

    def slice(self, key: int, new: int, step: int) -> None:
        self.held[new] = self.held[key][step::step] if len(self.held[key]) > step else self.held[key][:]

    def drop(self, keys: list[int]) -> None:
        for key in keys:
            del self.held[key]

    def message(self, key: int) -> bytes:
        return bytes(ForkingPickler.dumps(self.held[key]))

    def ref(self, key: int, new: int) -> bytes:
        self.held[new] = vmalloc.ref(self.held[key])
        return pickle.dumps(self.held[new])

    def half_a_message(self, key: int) -> None:
        try:
            ForkingPickler.dumps([self.held[key], lambda: None])
        except (AttributeError, pickle.PicklingError):
            return
        raise AssertionError("a lambda was pickled")

    def load(self, message: bytes, key: int) -> None:
        self.held[key] = pickle.loads(message)

    def name(self, key: int, name: str) -> None:
        self.region[name] = self.held[key]

    def get(self, name: str, key: int) -> None:
        self.held[key] = self.region[name]

    def unname(self, name: str) -> None:
        del self.region[name]

    def drop_inherited(self, keys: list[int]) -> None:
        self.region.drop_inherited()
        self.drop(keys)

    def look(self) -> dict[int, list[int]]:
        """The numbers that each array is full of."""
        arrays = {k: a.get() if isinstance(a, vmalloc.Ref) else a for k, a in self.held.items()}
        return {k: np.unique(a).tolist() for k, a in arrays.items()}

    def upkeep(self, what: str) -> None:
        getattr(self.region, what)()

    def churn(self) -> None:
        """Until killed: what the oracle need not know, since nobody else gets it."""
        kept: list[Any] = []
        for i in itertools.count():
            a = self.region.full((i % 5 + 1) * PAGE // 8, 1, "u8")
            kept.append(pickle.loads(ForkingPickler.dumps(a)))
            if i % 7 == 0:
                kept.append(vmalloc.ref(a))
                for key in list(self.held)[:1]:
                    self.message(key)
            if len(kept) > 6:
                kept.clear()


# ---- the oracle ----


@dataclass(eq=False)
class Content:
    """One array's pages."""

    number: int
    nr_pages: int = 0


@dataclass(eq=False)
class Holding:
    """One reference of a process to a content: an array and its slices share it."""

    content: Content
    is_inherited: bool = False


@dataclass(eq=False)
class Lease:
    content: Content
    is_live: bool = True


@dataclass(eq=False)
class Process:
    """A worker as the oracle knows it."""

    connection: Connection
    pid: int
    pidfd: int
    held: dict[int, Holding] = field(default_factory=dict)
    leases_of_refs: dict[int, Lease] = field(default_factory=dict)  # by the keys of its own Refs

    def ask(self, *command: Any) -> Any:
        self.connection.send(command)
        answer = self.connection.recv()
        assert not (isinstance(answer, str) and answer.startswith("Traceback")), answer
        return answer

    def wait_until_dead(self) -> None:
        """Its files are closed then."""
        assert select.select([self.pidfd], [], [], 60)[0]
        os.close(self.pidfd)
        self.connection.close()


class Sharing(RuleBasedStateMachine):
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.region = vmalloc.Region(NR_PAGES * PAGE, lease_ttl_s=1e6, helper=False, **self.options)
        self.folder = tempfile.TemporaryDirectory()
        self.listener = Listener(self.folder.name + "/s", "AF_UNIX", backlog=16)
        self.processes: list[Process] = []
        self.messages: list[tuple[bytes, Lease | None, Content]] = []
        self.leases: list[Lease] = []
        self.named: dict[str, Content] = {}
        self.ref_keys: set[int] = set()
        self.first_pids: list[int] = []
        self.numbers, self.keys = itertools.count(1), itertools.count()

    @initialize(nr=st.integers(2, 3))
    def begin(self, nr: int) -> None:
        for _ in range(nr):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    self.listener._listener._unlink = None  # the socket's file stays the driver's
                    Worker(self.region, str(self.listener.address)).serve()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            self.first_pids.append(pid)
            self.meet()

    def meet(self) -> Process:
        connection = self.listener.accept()
        pid = connection.recv()
        process = Process(connection, pid, os.pidfd_open(pid))
        self.processes.append(process)
        return process

    def alive(self) -> set[Content]:
        return {
            *(h.content for p in self.processes for h in p.held.values()),
            *(lease.content for lease in self.leases if lease.is_live),
            *self.named.values(),
        }

    def some_process(self, data: Any) -> Process:
        return data.draw(st.sampled_from(self.processes), "process")

    def some_held(self, data: Any, *, refs: bool = False) -> tuple[Process, int]:
        pairs = [(p, k) for p in self.processes for k in p.held if refs or k not in self.ref_keys]
        return data.draw(st.sampled_from(pairs), "held")

    def has_arrays(self) -> bool:
        return any(k not in self.ref_keys for p in self.processes for k in p.held)

    def lease_of(self, content: Content) -> Lease:
        lease = Lease(content)
        self.leases.append(lease)
        return lease

    # ---- what one process does ----

    @precondition(lambda self: self.processes)
    @rule(data=DATA, nr_pages=SIZES)
    def create(self, data, nr_pages):
        process, key, content = self.some_process(data), next(self.keys), Content(next(self.numbers))
        if sum(c.nr_pages for c in self.alive()) + 2 * nr_pages > NR_PAGES // 2:
            return
        content.nr_pages = process.ask("create", key, nr_pages, content.number)
        process.held[key] = Holding(content)

    @precondition(lambda self: self.has_arrays())
    @rule(data=DATA, step=st.integers(1, 9))
    def slice(self, data, step):
        process, key = self.some_held(data)
        new = next(self.keys)
        process.ask("slice", key, new, step)
        process.held[new] = process.held[key]

    @precondition(lambda self: any(p.held for p in self.processes))
    @rule(data=DATA)
    def drop(self, data):
        process, key = self.some_held(data, refs=True)
        process.ask("drop", [key])
        del process.held[key]
        if key in process.leases_of_refs:
            process.leases_of_refs.pop(key).is_live = False

    @precondition(lambda self: self.has_arrays())
    @rule(data=DATA)
    def send(self, data):
        process, key = self.some_held(data)
        holding = process.held[key]
        text = process.ask("message", key)
        holding.is_inherited = False
        self.messages.append((text, self.lease_of(holding.content), holding.content))

    @precondition(lambda self: self.has_arrays())
    @rule(data=DATA)
    def send_a_ref(self, data):
        process, key = self.some_held(data)
        holding, new = process.held[key], next(self.keys)
        text = process.ask("ref", key, new)
        holding.is_inherited = False
        process.held[new] = holding
        self.ref_keys.add(new)
        process.leases_of_refs[new] = self.lease_of(holding.content)
        self.messages.append((text, None, holding.content))

    @precondition(lambda self: self.has_arrays())
    @rule(data=DATA)
    def fail_to_send(self, data):
        process, key = self.some_held(data)
        process.ask("half_a_message", key)
        process.held[key].is_inherited = False

    @precondition(lambda self: self.messages and self.processes)
    @rule(data=DATA)
    def receive(self, data):
        """Any message, of whomever, late, or again."""
        process, key = self.some_process(data), next(self.keys)
        text, lease, content = data.draw(st.sampled_from(self.messages), "message")
        is_there = content in self.alive()
        answer = process.ask("load", text, key)
        assert answer == (None if is_there else "stale")
        if is_there:
            process.held[key] = Holding(content)
            if lease is not None:
                lease.is_live = False

    @precondition(lambda self: self.has_arrays())
    @rule(data=DATA, name=st.sampled_from(NAMES))
    def name(self, data, name):
        process, key = self.some_held(data)
        process.ask("name", key, name)
        process.held[key].is_inherited = False
        self.named[name] = process.held[key].content

    @precondition(lambda self: self.named and self.processes)
    @rule(data=DATA)
    def get(self, data):
        process, name, key = (
            self.some_process(data),
            data.draw(st.sampled_from(sorted(self.named))),
            next(self.keys),
        )
        process.ask("get", name, key)
        process.held[key] = Holding(self.named[name])

    @precondition(lambda self: self.named and self.processes)
    @rule(data=DATA)
    def unname(self, data):
        name = data.draw(st.sampled_from(sorted(self.named)))
        self.some_process(data).ask("unname", name)
        del self.named[name]

    @precondition(lambda self: self.processes)
    @rule(data=DATA, what=st.sampled_from(["purge", "shrink", "recover", "check"]))
    def upkeep(self, data, what):
        self.some_process(data).ask("upkeep", what)

    @precondition(lambda self: self.processes)
    @rule(data=DATA)
    def expire(self, data):
        self.some_process(data).ask("upkeep", "expire_leases")
        for lease in self.leases:
            lease.is_live = False

    # ---- processes that come and go ----

    @precondition(lambda self: 0 < len(self.processes) < WORKERS_MOST)
    @rule(data=DATA)
    def fork(self, data):
        parent = self.some_process(data)
        parent.connection.send(("fork",))
        child = self.meet()
        copies = {h: Holding(h.content, True) for h in {*parent.held.values()}}
        child.held = {k: copies[h] for k, h in parent.held.items()}

    @precondition(lambda self: self.processes)
    @rule(data=DATA)
    def drop_inherited(self, data):
        process = self.some_process(data)
        gone = [k for k, h in process.held.items() if h.is_inherited]
        process.ask("drop_inherited", gone)
        for key in gone:
            del process.held[key]

    @precondition(lambda self: len(self.processes) > 1)
    @rule(data=DATA, how=st.sampled_from(["exit", "kill", "kill at work"]))
    def end(self, data, how):
        self.end_of(self.some_process(data), how)
        self.region.recover()

    def end_of(self, process, how):
        self.processes.remove(process)
        if how == "exit":
            process.connection.send(("exit",))
            for lease in process.leases_of_refs.values():  # its Refs are dropped in good order
                lease.is_live = False
        elif how == "kill":
            os.kill(process.pid, signal.SIGKILL)
        else:
            process.connection.send(("churn",))
            time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
        process.wait_until_dead()
        if how == "kill at work":
            self.region.recover()
            self.region.expire_leases()
            for lease in self.leases:
                lease.is_live = False

    # ---- what must hold ----

    @invariant()
    def everybody_reads_what_it_should(self):
        for process in self.processes:
            expected = {k: [h.content.number] for k, h in process.held.items()}
            assert process.ask("look") == expected

    @invariant()
    def what_is_referenced_is_in_use_and_nothing_else(self):
        s = self.region.stats()
        assert s.busy_pages == sum(c.nr_pages for c in self.alive())
        assert s.nr_leases == sum(lease.is_live for lease in self.leases)
        assert s.nr_processes == len(self.processes) + 1

    def teardown(self) -> None:
        while self.processes:
            self.end_of(self.processes[-1], "exit")
        self.listener.close()
        self.folder.cleanup()
        for pid in self.first_pids:  # the others' parents ignore SIGCHLD
            os.waitpid(pid, 0)
        for name in self.region:
            del self.region[name]
        gc.collect()
        self.region.recover()
        self.region.expire_leases()
        self.region.check(at_rest=True)
        s = self.region.stats()
        assert (s.busy_pages, s.nr_leases, s.nr_processes) == (0, 0, 1)
        self.region.shrink()
        self.region.check(at_rest=True)
        assert self.region.stats().free_pages == NR_PAGES


FEW = settings(
    max_examples=8,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=(Phase.generate,),  # a failure prints its steps; to shrink them takes minutes: the long form does
)
MANY = settings(FEW, max_examples=400, stateful_step_count=120, derandomize=False, phases=tuple(Phase))


def machine(design: dict[str, str]) -> type[Sharing]:
    return type("Sharing", (Sharing,), {"options": design})


def test_processes_share_as_a_simple_oracle_says(design):
    run_state_machine_as_test(machine(design), settings=FEW)


@pytest.mark.soak
@pytest.mark.parametrize("long_design", DESIGNS)
def test_processes_share_as_a_simple_oracle_says_for_long(long_design):
    run_state_machine_as_test(machine(long_design), settings=MANY)
