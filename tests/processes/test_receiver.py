# SPDX-License-Identifier: MIT
"""What leaves for a receiver that cannot attach goes by value; what stays among us by reference."""

from __future__ import annotations

import gc
import os
import socket
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.managers import SyncManager
from threading import Thread

import numpy as np
import pytest
from tests.api.installed import installed_region
from tests.equivalence.sent import CLASSES, facts
from tests.processes.workers import NOBODY, needs_root

import vmalloc
from vmalloc.receiver import can_attach


@pytest.fixture
def region():
    with installed_region() as region:
        yield region


def connected(family):
    """Both ends."""
    with Listener(family=family) as listener:
        there = []
        thread = Thread(target=lambda: there.append(Client(listener.address)))
        thread.start()
        here = listener.accept()
        thread.join()
    return here, there[0]


@pytest.fixture(params=["from the listener", "from the client"])
def network(request):
    here, there = connected("AF_INET")
    yield (here, there) if request.param == "from the listener" else (there, here)
    here.close()
    there.close()


def messages(region):
    a = region.full((30, 40), 3.0)
    yield a
    yield a.T[3:]
    yield [a, a[0], {"private": np.ones(5000)}]
    yield CLASSES["masked"](region.full(300, 1.0))


def test_a_network_connection_carries_values(region, network):
    here, there = network
    for message in messages(region):
        here.send(message)
        assert region.stats().nr_leases == 0
        arrived = there.recv()
        assert facts(arrived, of_layout=False) == facts(message, of_layout=False)
        for a in arrived if isinstance(arrived, list) else [arrived]:
            assert not vmalloc.is_shared(a)
        del message, a, arrived


def test_a_ref_goes_by_value_and_a_block_not_at_all(region, network):
    here, there = network
    ref = vmalloc.ref(region.full(100, 3.0))
    here.send([ref])
    (a,) = there.recv()
    assert not vmalloc.is_shared(a)
    assert a.tolist() == [3.0] * 100
    with region.alloc(100) as block, pytest.raises(TypeError, match=r"bytes\(block\) copies"):
        here.send(block)


def test_the_thread_goes_on_by_reference_afterwards_also_after_an_error(region, network):
    here, _ = network
    with pytest.raises((AttributeError, TypeError)):
        here.send([region.zeros(100), lambda: None])
    near, nearer = Pipe()
    near.send(region.zeros(100))
    assert vmalloc.is_shared(nearer.recv())


@pytest.mark.parametrize("make", [Pipe, lambda: Pipe(duplex=False)[::-1], lambda: connected("AF_UNIX")])
def test_what_stays_among_processes_of_this_user_goes_by_reference(region, make):
    here, there = make()
    for _ in range(2):  # it is looked at once
        here.send([region.zeros(100)])
        assert vmalloc.is_shared(there.recv()[0])
    here.close()
    there.close()


def test_a_closed_connection_tells_so_itself(region):
    here, _ = Pipe()
    here.close()
    with pytest.raises(OSError, match="handle is closed"):
        here.send(region.zeros(100))


@needs_root
def test_another_users_process_gets_values():
    def become_another(address):
        os.seteuid(NOBODY)
        with Client(address) as there:
            there.recv()

    with Listener(family="AF_UNIX") as listener:
        os.chmod(os.path.dirname(listener.address), 0o755)
        os.chmod(listener.address, 0o777)
        child = get_context("fork").Process(target=become_another, args=(listener.address,))
        child.start()
        with listener.accept() as here:
            assert not can_attach(here)
            here.send(None)
        child.join()
    assert child.exitcode == 0


def test_a_look_closes_nothing():
    one, other = socket.socketpair()
    here = Connection(one.detach())
    assert can_attach(here)
    here.send_bytes(b"still open")
    assert Connection(other.detach()).recv_bytes() == b"still open"


# ---- managers ----


def test_a_manager_over_tcp_carries_values_in_both_directions(region):
    a = region.full((30, 40), 3.0)
    manager = SyncManager(("127.0.0.1", 0), ctx=get_context("fork"))
    with manager:
        kept = manager.list([a])
        b = kept[0]
        assert facts(b) == facts(a)
        assert not vmalloc.is_shared(b)
        kept.append([a[3], np.ones(1000)])
        assert [vmalloc.is_shared(x) for x in kept[1]] == [False, False]
        del b
    del a
    gc.collect()


def test_a_manager_over_a_unix_socket_keeps_references(region):
    a = region.full((30, 40), 3.0)
    with get_context("fork").Manager() as manager:
        kept = manager.list([a])
        b = kept[0]
        assert np.shares_memory(a, b)
        del b, kept
    del a
    region.recover()
