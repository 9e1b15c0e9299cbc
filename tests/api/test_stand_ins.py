# SPDX-License-Identifier: MIT
"""What cannot be loaded raises where it is used, and not while a library loads its message."""

from __future__ import annotations

import errno
import multiprocessing
import operator
import pickle
import pickletools
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.api.installed import THRESHOLD, installed_region

import vmalloc
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
    (found,) = (arg for _, arg, _ in pickletools.genops(bytes(message)) if isinstance(arg, bytes))
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
