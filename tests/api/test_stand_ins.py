# SPDX-License-Identifier: MIT
"""What cannot be loaded raises where it is used, and not while a library loads its message."""

from __future__ import annotations

import errno
import multiprocessing
import operator
import pickle
import pickletools
import threading
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.api.installed import THRESHOLD, installed_region

import vmalloc
from vmalloc import stand_in as stand_in_module
from vmalloc._core import drop_reference
from vmalloc.stand_in import StandIn


@pytest.fixture
def region():
    with installed_region() as region:
        yield region


def received(make, region):
    """From a real pipe, after its message became stale."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.send(make())
    region.expire_leases()
    return reader.recv()


@pytest.fixture
def stand_in(region):
    return received(lambda: region.full(1000, 3), region)


USES = {
    "an attribute": lambda x: x.shape,
    "a method": lambda x: x.sum(),
    "setting one": lambda x: setattr(x, "shape", 1),
    "an item": operator.itemgetter(0),
    "a sum": lambda x: x + 1,
    "a sum from the right": lambda x: 1 + x,
    "a sum of arrays": lambda x: np.ones(1000) + x,
    "a comparison": lambda x: x == 3,
    "a call": lambda x: x(),
    "len": len,
    "iteration": list,
    "bool": bool,
    "text": str,
    "a format": "{}".format,
    "hash": hash,
    "isinstance": lambda x: isinstance(x, np.ndarray),
    "membership": lambda x: 3 in x,
    "with": lambda x: x.__enter__(),
    "a memoryview": memoryview,
    "numpy.asarray": np.asarray,
    "numpy.sum": np.sum,
    "numpy.concatenate": lambda x: np.concatenate([x, x]),
    "numpy.array of a list": lambda x: np.array([x]),
    "numpy.negative": np.negative,
}


@pytest.mark.parametrize("use", USES)
def test_each_use_of_what_could_not_be_loaded_raises_why(stand_in, use):
    if use == "a memoryview" and not hasattr(bytes, "__buffer__"):
        with pytest.raises(TypeError, match="bytes-like"):  # before Python 3.12 a class in Python has no say
            memoryview(stand_in)
        return
    for _ in range(2):
        with pytest.raises(vmalloc.StaleReference, match=r"page \d+"):
            USES[use](stand_in)


def test_only_its_repr_is_calm(stand_in):
    assert type(stand_in) is StandIn
    assert repr(stand_in).startswith("<vmalloc: not loaded: StaleReference: reference to page")


def test_where_the_program_itself_unpickles_errors_are_raised(region):
    text = bytes(ForkingPickler.dumps(region.full(1000, 3)))
    region.expire_leases()
    for load in (pickle.loads, pickle._loads):
        with pytest.raises(vmalloc.StaleReference):
            load(text)


def test_passed_on_it_is_the_reference_itself(region):
    """A broker that cannot load an array passes it on to those who can."""
    reference = reference_in(ForkingPickler.dumps(region.full(1000, 3)))
    stand_in = StandIn(reference, vmalloc.RegionUnavailable(errno.ENOLCK, "no slot"))
    assert (pickle.loads(pickle.dumps([stand_in]))[0] == 3).all()


def reference_in(message):
    """What load_reference() is called with."""
    (found,) = references_in(message)
    return found


class Frame:
    """Like a DataFrame: rebuilt by a function that looks at its array."""

    def __init__(self, array):
        self.array = array
        self.first = array[0]

    def __reduce__(self):
        return Frame, (self.array,)


class Stateful:
    def __init__(self, array):
        self.array = array

    def __setstate__(self, state):
        self.array = state["array"].reshape(-1)


@pytest.mark.parametrize("kind", [Frame, Stateful])
def test_what_is_rebuilt_around_it_is_one_too_and_the_rest_of_the_message_arrives(region, kind):
    answer = received(lambda: ("job", 7, [kind(region.full(1000, 3))], {"a": 1}), region)
    assert (answer[:2], answer[3]) == (("job", 7), {"a": 1})
    with pytest.raises(vmalloc.StaleReference):
        answer[2][0].first()


class Broken:
    def __reduce__(self):
        return int, ("x",)


def test_what_a_message_itself_does_wrong_is_raised_as_before(region):
    reader, writer = multiprocessing.Pipe(duplex=False)
    for x in (Broken(), [region.full(1000, 3), Broken()]):
        writer.send(x)
        with pytest.raises(ValueError, match="invalid literal"):
            reader.recv()
    writer.send([region.full(1000, 3), Broken()])
    region.expire_leases()
    with pytest.raises(ValueError, match="invalid literal"):
        reader.recv()


# ---- loaded again ----


def references_in(message):
    return [arg for _, arg, _ in pickletools.genops(bytes(message)) if isinstance(arg, bytes)]


def received_without_the_last(x):
    """As a pool loads it, after its last array became stale."""
    message = bytes(ForkingPickler.dumps(x))
    drop_reference(references_in(message)[-1])
    return lambda: ForkingPickler.loads(message)


def test_what_arrived_before_a_failure_arrives(region):
    load = received_without_the_last([region.full(1000, 5), Frame(region.full(1000, 3))])
    good, bad = load()
    assert (good == 5).all()
    assert type(bad) is StandIn
    del good, bad
    assert (region.stats().busy_pages, region.stats().nr_leases) == (0, 0)


def test_what_was_copied_before_a_failure_is_not_copied_again(region, monkeypatch):
    """A process that cannot attach ends the message of what it copies."""
    load = received_without_the_last([region.full(1000, 5), Frame(region.full(1000, 3))])
    region.expire_leases()
    copies = iter([np.ones(10)])

    def copy_of(packed):
        for copy in copies:
            return copy
        raise vmalloc.StaleReference("gone")

    monkeypatch.setattr(stand_in_module, "may_copy", lambda error: True)
    monkeypatch.setattr(stand_in_module, "copy_of", copy_of)
    good, bad = load()
    assert (good == 1).all()
    assert type(bad) is StandIn


class Inner:
    """A message within a message, which is loaded with it."""

    def __init__(self, text):
        self.text = text
        self.value = ForkingPickler.loads(text)

    def __reduce__(self):
        return Inner, (self.text,)


def test_what_a_message_within_it_loaded_arrives_too(region):
    inner = Inner.__new__(Inner)
    inner.text = bytes(ForkingPickler.dumps(region.full(1000, 5)))
    good, bad = received_without_the_last([inner, Frame(region.full(1000, 3))])()
    assert (good.value == 5).all()
    assert type(bad) is StandIn


calls = []


def fails_while_another_thread_makes_one(*_):
    calls.append(1)
    thread = threading.Thread(target=received_stand_in)
    thread.start()
    thread.join()
    raise ZeroDivisionError


def received_stand_in():
    assert type(ForkingPickler.loads(stale_text[0])) is StandIn


stale_text = []


class FailsBeside:
    def __reduce__(self):
        return fails_while_another_thread_makes_one, ()


def test_a_stand_in_of_another_thread_does_not_load_a_message_again(region):
    stale_text[:], calls[:] = [bytes(ForkingPickler.dumps(region.full(1000, 3)))], []
    region.expire_leases()
    with pytest.raises(ZeroDivisionError):
        ForkingPickler.loads(ForkingPickler.dumps([FailsBeside()]))
    assert calls == [1]


class Fails(Exception):
    """Looks at its array where it is made and where it is loaded."""

    def __init__(self, array):
        super().__init__(array)
        self.first = float(array[0])


class FailsLater(Exception):
    """Looks at it when it gets its state."""

    def __setstate__(self, state):
        self.__dict__.update(state, first=state["array"][0])


def fails_later(array):
    error = FailsLater("later")
    error.array = array
    return error


@pytest.mark.parametrize("make", [Fails, fails_later])
@pytest.mark.parametrize("has_note", [False, True])
def test_in_the_place_of_an_exception_is_the_error_itself(region, make, has_note):
    """Who gets a task's exception raises it."""
    error = make(region.full(1000, 3))
    if has_note:
        error.add_note("a state, besides its arguments")
    message = ForkingPickler.dumps(("job", error))
    del error
    region.expire_leases()
    answer = ForkingPickler.loads(message)
    assert answer[0] == "job"
    assert type(answer[1]) is vmalloc.StaleReference


class Counting(list):
    """Counts what is read of it other than one by one."""

    nr_read = 0

    def __iter__(self):
        Counting.nr_read += len(self)
        return super().__iter__()

    def __getitem__(self, at):
        found = super().__getitem__(at)
        if isinstance(at, slice):
            Counting.nr_read += len(found)
        return found


def test_a_long_message_is_loaded_again_in_steps_that_do_not_grow_with_it(region, monkeypatch):
    class Counted(stand_in_module._Tolerant):
        stack = property(
            lambda self: self._stack, lambda self, stack: setattr(self, "_stack", Counting(stack))
        )

    monkeypatch.setattr(stand_in_module, "_Tolerant", Counted)
    rows, nr = [Frame([i]) for i in range(1000)], 1000
    load = received_without_the_last((*rows, Frame(region.full(1000, 3))))
    Counting.nr_read = 0
    assert [row.first for row in load()[:nr]] == list(range(nr))
    assert nr < Counting.nr_read < 20 * nr


@pytest.mark.parametrize(
    "error",
    [
        vmalloc.RegionUnavailable(errno.ENOLCK, "no slot"),
        vmalloc.RegionBusy("stopped"),
        OSError(5, "io"),
        EOFError(),
    ],
)
def test_in_a_message_no_error_is_an_oserror_or_the_end_of_a_file(error):
    stand_in = StandIn(None, error)
    with pytest.raises(vmalloc.NotLoaded) as caught:
        stand_in.sum()
    assert not isinstance(caught.value, OSError | EOFError)
    assert caught.value.__cause__ is error
    assert str(error) in str(caught.value)


def test_installing_and_uninstalling_leave_loads_as_it_was(region):
    vmalloc.uninstall()
    assert ForkingPickler.loads is pickle.loads
    vmalloc.install(region, THRESHOLD)
    assert ForkingPickler.loads is not pickle.loads
