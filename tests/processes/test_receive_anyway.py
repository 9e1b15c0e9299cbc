# SPDX-License-Identifier: MIT
"""A process that cannot attach the region still receives: a copy."""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import os
import pickletools
import resource
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from tests.api.installed import installed_region
from tests.processes.kinds import KINDS, facts
from tests.processes.workers import WAIT_S, python, wait_until
from tests.processes.workers import needs_root as needs_nobody

import vmalloc
from vmalloc import window

CLONE_NEWNS = 0x20000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or namespace")


@pytest.fixture
def region():
    with installed_region() as region:
        region.helper = False  # these tests tick themselves, and look in between
        yield region


def reference_in(message):
    """What load_reference() is called with."""
    (found,) = (arg for _, arg, _ in pickletools.genops(bytes(message)) if isinstance(arg, bytes))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_value_and_ends_its_message(region, kind):
    a = KINDS[kind](region)
    b = window.copy_of(reference_in(ForkingPickler.dumps(a)))
    assert facts(b)[:-1] == facts(a)[:-1] or facts(b) == facts(a)
    assert not vmalloc.is_shared(b)
    assert b.tobytes() == a.tobytes()
    assert region.stats().nr_leases == 1
    region.tick()
    assert region.stats().nr_leases == 0


def test_of_a_small_view_only_its_bytes_are_copied(region):
    a = region.zeros((1000, 1000), "u1")
    a[500, 500:510] = 7
    b = window.copy_of(reference_in(ForkingPickler.dumps(a[500, 500:510])))
    assert (b.base.nbytes < 100, b.tolist()) == (True, [7] * 10)
    region.tick()


def test_what_is_gone_is_stale_and_a_block_is_no_value(region):
    gone = reference_in(ForkingPickler.dumps(region.full(1000, 3)))
    region.expire_leases()
    with pytest.raises(vmalloc.StaleReference):
        window.copy_of(gone)
    block = region.alloc(100)
    with pytest.raises(TypeError, match="block is no value"):
        window.copy_of(reference_in(ForkingPickler.dumps(block)))
    region.expire_leases()


# ---- pools ----


def total(a):
    return float(a.sum())


def doubled(a):
    return a * 2


def answers(pool, nr=6):
    """Of tasks with arrays as arguments, and of tasks with arrays as results."""
    a = np.ones(10_000)
    totals = pool.map_async(total, [a] * nr, chunksize=1).get(WAIT_S)
    arrays = pool.map_async(doubled, [a] * nr, chunksize=1).get(WAIT_S)
    return set(totals) | {float(b.sum()) for b in arrays}


class EndsLeases:
    """Ends the leases of what went before it in its message."""

    def __reduce__(self):
        vmalloc.message.get_settings().region.expire_leases()
        return int, ()


class Fails(Exception):
    """Looks at its array where it is made and where it is loaded."""

    def __init__(self, array, *_):
        super().__init__("with an array")
        self.first = float(array[0])

    def __reduce__(self):
        return Fails, (np.full(10_000, self.first), EndsLeases()), {"__notes__": ["a state"]}


def fail(number):
    raise Fails([number])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["executor", "pool"])
def test_a_task_whose_exception_cannot_be_loaded_fails_with_our_error(region, kind, method):
    context = multiprocessing.get_context(method)
    if kind == "pool":
        with context.Pool(1) as pool:
            results = [pool.apply_async(fail, (i,)) for i in range(3)] + [pool.apply_async(abs, (-1,))]
            check_answers([result.get for result in results])
        return
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        futures = [executor.submit(fail, i) for i in range(3)] + [executor.submit(abs, -1)]
        check_answers([future.result for future in futures])


def check_answers(answers):
    for answer in answers[:-1]:
        with pytest.raises(vmalloc.StaleReference) as caught:
            answer(WAIT_S)
        assert "in fail" in str(caught.value.__cause__)  # the task's own traceback
    assert answers[-1](WAIT_S) == 1


def test_more_workers_than_process_slots_all_answer():
    slots = 63
    region = vmalloc.Region("256M", max_processes=slots)
    vmalloc.install(region, 1000)
    with multiprocessing.get_context("fork").Pool(slots + 10) as pool:
        assert answers(pool, 4 * slots) == {10_000.0, 20_000.0}
    vmalloc.uninstall()
    wait_until(lambda: region.tick() or region.stats().nr_leases == 0)


def limit_addresses():
    """Room for copies, but not for the region: a forked worker already uses what its parent does."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30),) * 2)


def become_nobody():
    os.setuid(65534)


def lose_proc():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, 0x44000, None) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"none", b"/proc", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    assert not os.path.exists("/proc/self")


def have_no_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


HINDRANCES = {
    "address space": limit_addresses,
    "descriptors": have_no_descriptors,
    "user": pytest.param(become_nobody, marks=needs_nobody),
    "no /proc": pytest.param(lose_proc, marks=needs_root),
}


@pytest.mark.parametrize("hindrance", HINDRANCES.values(), ids=HINDRANCES)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_that_cannot_attach_answers_every_task(method, hindrance):
    region = vmalloc.Region("4G")
    vmalloc.install(region, 1000)
    try:
        with multiprocessing.get_context(method).Pool(2, hindrance) as pool:
            assert answers(pool) == {10_000.0, 20_000.0}
    finally:
        vmalloc.uninstall()


PID_NAMESPACE = """
import ctypes, multiprocessing, sys
import numpy as np
import vmalloc
def answer(pipe):
    while (a := pipe.recv()) is not None:
        pipe.send(a * 2)
if __name__ == "__main__":
    vmalloc.install(vmalloc.Region("64M"), 1000)
    if ctypes.CDLL(None).unshare(0x20000000) != 0:
        print("cannot")
        sys.exit()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(there,))
    process.start()
    for i in range(6):
        here.send(np.full(10_000, i))
        print(int(here.recv()[-1]))
    here.send(None)
    process.join()
"""


@needs_root
def test_a_worker_in_another_pid_namespace_answers_every_task(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PID_NAMESPACE)
    done = python(
        f"import runpy, sys; sys.argv = [{str(file)!r}]; runpy.run_path({str(file)!r}, run_name='__main__')"
    )
    if done.stdout.strip() == "cannot":
        pytest.skip("no pid namespaces here")
    assert done.stdout.split() == ["0", "2", "4", "6", "8", "10"], done.stderr


def test_a_started_process_takes_no_slot_before_it_needs_one(region):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(abs, (-1,)).get(WAIT_S) == 1
        assert region.stats().nr_processes == 1
        assert pool.apply_async(total, (np.ones(10_000),)).get(WAIT_S) == 10_000
        assert region.stats().nr_processes == 2
        pool.close()
        pool.join()
    region.recover()


# ---- the default region ----

LIMITED = """
import resource
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)
import vmalloc
vmalloc.install()
region = vmalloc.default_region()
assert region.nr_pages * 4096 < 1 << 30
np.ones(1 << 26)  # half a GiB is left for the program
try:
    region.alloc(1 << 30)
except vmalloc.OutOfPages as e:
    print(e)
"""


def test_the_default_region_fits_into_a_limited_address_space_and_says_so():
    done = python(LIMITED)
    assert done.returncode == 0, done.stderr
    assert "no larger because of RLIMIT_AS, which lets this process have 3072 MiB" in done.stdout
