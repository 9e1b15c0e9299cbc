# SPDX-License-Identifier: MIT
"""vmalloc.adapters: types of others go by reference, through every door that arrays have."""

from __future__ import annotations

import gc
import pickle
import re
import subprocess
import sys
import types
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import assert_at_rest

import vmalloc
from vmalloc import adapters
from vmalloc.adapters import Adapter, ArrayAdapter, holding_of

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"
ARRAYS = ArrayAdapter()


class Picture:
    def __init__(self, pixels, title=""):
        self.pixels, self.title = pixels, title


class Sketch(Picture):
    pass


class PictureAdapter(Adapter):
    kind = "test.Picture"

    def holding(self, x):
        return holding_of(x.pixels)

    def describe(self, x, holding):
        return ARRAYS.describe(x.pixels, holding)._replace(extra=x.title.encode())

    def rebuild(self, owner, description):
        return Picture(ARRAYS.rebuild(owner, description), description.extra.decode())

    def copy_in(self, x, region):
        return type(x)(region.array(x.pixels), x.title)

    def nbytes(self, x):
        return x.pixels.nbytes


@pytest.fixture
def region():
    region = vmalloc.Region("16M")
    yield region
    vmalloc.uninstall()
    gc.collect()
    for name in region:
        del region[name]
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    assert_at_rest(region)


@pytest.fixture
def adapter():
    adapter = PictureAdapter()
    adapters.register(Picture, adapter)
    yield adapter
    for kind in (Picture, Sketch):
        try:
            adapters.unregister(kind)
        except LookupError:
            pass


def sent(x):
    return pickle.loads(ForkingPickler.dumps(x))


# ---- every door ----


def test_a_registered_value_goes_through_every_door(region, adapter):
    a = Picture(region.full((3, 4), 1)[:, 1:], "shared")
    vmalloc.install(region, 100)
    region["picture"] = a
    for b in (sent(a), sent([a])[0], pickle.loads(pickle.dumps(vmalloc.ref(a))), region["picture"]):
        assert (type(b), b.title) == (Picture, "shared")
        assert np.shares_memory(b.pixels, a.pixels)
        assert b.pixels.strides == a.pixels.strides
    assert vmalloc.is_shared(a)
    assert vmalloc.region_of(a) is region
    assert vmalloc.copy_in(a) is a


def test_a_private_value_is_copied_in_as_its_adapter_does(region, adapter):
    a = Picture(np.arange(1000), "private")
    vmalloc.install(region, 100)
    region["picture"] = a
    for b in (sent(a), vmalloc.copy_in(a, region), vmalloc.ref(a, region).get(), region["picture"]):
        assert (type(b), b.title) == (Picture, "private")
        assert vmalloc.region_of(b) is region
        assert (b.pixels == a.pixels).all()
    assert not vmalloc.is_shared(a)


def test_the_threshold_holds_for_every_type(region, adapter):
    vmalloc.install(region, 800)
    assert not vmalloc.is_shared(sent(Picture(np.zeros(100))))
    assert vmalloc.is_shared(sent(Picture(np.zeros(101))))


def test_readonly_and_on_full_hold_for_every_type(region, adapter):
    vmalloc.install(region, 800, readonly=True, on_full="copy")
    assert not sent(Picture(region.zeros(3))).pixels.flags.writeable
    assert sent(Picture(np.zeros(4 << 20))).pixels.flags.writeable  # 32 MiB by value


def test_what_cannot_be_copied_in_says_so_and_is_pickled_as_before(region):
    class Fixed(PictureAdapter):
        kind = "test.Fixed"
        copy_in, nbytes = Adapter.copy_in, Adapter.nbytes

    adapters.register(Picture, Fixed())
    try:
        vmalloc.install(region, 100)
        b = sent(Picture(np.zeros(1000), "fixed"))  # its array is one
        assert (type(b), b.title, vmalloc.is_shared(b.pixels)) == (Picture, "fixed", True)
        with pytest.raises(TypeError, match="a Picture cannot be copied into a region"):
            vmalloc.ref(Picture(np.zeros(3)))
    finally:
        adapters.unregister(Picture)


def test_a_copy_that_lies_nowhere_is_the_adapters_error(region, adapter, monkeypatch):
    monkeypatch.setattr(PictureAdapter, "copy_in", lambda self, x, region: x)
    with pytest.raises(TypeError, match="gave a Picture that does not lie in the region"):
        region["picture"] = Picture(np.zeros(3))


def test_a_value_that_fails_to_be_described_leaves_no_lease(region, adapter, monkeypatch):
    monkeypatch.setattr(PictureAdapter, "describe", lambda self, x, holding: 1 / 0)
    vmalloc.install(region, 100)
    with pytest.raises(ZeroDivisionError):
        sent(Picture(region.zeros(3)))


def test_the_title_of_a_name_has_its_limit_and_that_of_a_message_none(region, adapter):
    a = Picture(region.zeros(3), "x" * 400)
    with pytest.raises(ValueError, match="at most 416"):
        region["picture"] = a
    assert pickle.loads(pickle.dumps(vmalloc.ref(a))).title == a.title


# ---- who is whose ----


def test_a_subclass_goes_by_its_nearest_ancestor_but_not_through_install(region, adapter):
    a = Sketch(region.zeros(1000))
    vmalloc.install(region, 100)
    assert type(pickle.loads(pickle.dumps(vmalloc.ref(a)))) is Picture
    assert vmalloc.is_shared(a)
    assert type(sent(a)) is Sketch
    adapters.register(Sketch, adapter)
    assert type(sent(a)) is Picture


def test_registering_takes_effect_whether_installed_before_or_after(region):
    vmalloc.install(region, 100)
    a = Picture(np.zeros(1000))
    assert vmalloc.region_of(sent(a)) is None
    adapters.register(Picture, PictureAdapter())
    assert vmalloc.region_of(sent(a)) is region
    text = ForkingPickler.dumps(a)
    adapters.unregister(Picture)
    assert vmalloc.region_of(sent(a)) is None
    with pytest.raises(vmalloc.StaleReference, match="no adapter here has that kind: import the module"):
        pickle.loads(text)
    adapters.register(Picture, PictureAdapter())
    assert pickle.loads(text).pixels.sum() == 0  # its lease was not used up
    adapters.unregister(Picture)


def test_twice_the_same_does_nothing_and_another_is_refused(adapter):
    adapters.register(Picture, adapter)
    with pytest.raises(
        ValueError, match=r"test_adapters.Picture has an adapter already.*unregister it first"
    ):
        adapters.register(Picture, PictureAdapter())
    with pytest.raises(ValueError, match=r"kind 'test.Picture' is taken by"):
        adapters.register(Sketch, PictureAdapter())
    adapters.unregister(Picture)
    with pytest.raises(LookupError, match="has no adapter of its own"):
        adapters.unregister(Picture)


@pytest.mark.parametrize("kind", [np.ndarray, "numpy.ndarray", vmalloc.Block])
def test_arrays_and_blocks_stay(kind):
    with pytest.raises(ValueError, match="stays"):
        adapters.unregister(kind)
    with pytest.raises(ValueError, match="has an adapter already"):
        adapters.register(kind, PictureAdapter())


@pytest.mark.parametrize(
    ("what", "adapter", "error", "text"),
    [
        (Picture, PictureAdapter, TypeError, "an object of a class derived from Adapter"),
        (Picture, Adapter(), ValueError, "kind must be 1 to 255 bytes: ''"),
        (3, PictureAdapter(), TypeError, "a type or its name like 'torch.Tensor', not 3"),
        ("Picture", PictureAdapter(), ValueError, "has its module in front"),
        ("a b.c", PictureAdapter(), ValueError, "has its module in front"),
        ("numpy.no_such", PictureAdapter(), AttributeError, "module numpy has no no_such"),
        ("numpy.zeros", PictureAdapter(), TypeError, "numpy.zeros is no class"),
    ],
)
def test_wrong_arguments_are_told(what, adapter, error, text):
    with pytest.raises(error, match=text):
        adapters.register(what, adapter)


# ---- by name ----


@pytest.fixture
def late(monkeypatch):
    """A function that "imports" a module with that name and a class Picture."""
    name = "a_library_of_pictures"

    def imported():
        module = types.ModuleType(name)
        module.Picture = type("Picture", (Picture,), {"__module__": "where.it.was.made"})
        monkeypatch.setitem(sys.modules, name, module)
        return module.Picture

    yield imported
    try:
        adapters.unregister(f"{name}.Picture")
    except (AttributeError, LookupError):
        pass


def test_a_type_registered_by_its_name_is_known_once_its_module_is_imported(region, late):
    vmalloc.install(region, 100)
    adapters.register("a_library_of_pictures.Picture", adapter := PictureAdapter())
    adapters.register("a_library_of_pictures.Picture", adapter)
    assert not vmalloc.is_shared(Picture(region.zeros(3)))
    cls = late()
    assert vmalloc.is_shared(cls(region.zeros(3)))
    assert vmalloc.region_of(sent(cls(np.zeros(1000))).pixels) is region
    with pytest.raises(ValueError, match="has an adapter already"):
        adapters.register(cls, PictureAdapter())
    adapters.unregister(cls)
    assert not vmalloc.is_shared(cls(region.zeros(3)))


def test_a_name_may_be_unregistered_before_its_module_comes(region, late):
    adapters.register("a_library_of_pictures.Picture", PictureAdapter())
    adapters.unregister("a_library_of_pictures.Picture")
    assert not vmalloc.is_shared(late()(region.zeros(3)))


def test_a_name_that_its_module_does_not_have_is_told_once_and_forgotten(region, late):
    adapters.register("a_library_of_pictures.Pictures", PictureAdapter())
    late()
    with pytest.warns(
        RuntimeWarning, match=r"Pictures is registered, but module a_library_of_pictures has no"
    ):
        adapters.register("a_library_of_pictures.Picture", PictureAdapter())
    assert not vmalloc.is_shared(3)


def test_registering_by_name_imports_nothing():
    code = """
import sys, vmalloc
class A(vmalloc.adapters.Adapter):
    kind = "a"
vmalloc.adapters.register("numpy.matrix", A())
vmalloc.adapters.register("http.server.HTTPServer", A.__new__(type("B", (A,), {"kind": "b"})))
import vmalloc.message
vmalloc.install(vmalloc.Region("1M"))
assert not {"numpy", "http"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- the documents ----


def test_the_example_of_the_documents_runs(region):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    try:
        region["cover"] = names["Picture"](np.arange(6).reshape(2, 3))
        cover = region["cover"]
        assert type(cover) is names["Picture"]
        loaded = pickle.loads(pickle.dumps(vmalloc.ref(cover)))
        assert np.shares_memory(loaded.pixels, cover.pixels)
        assert loaded.pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
    finally:
        adapters.unregister(names["Picture"])
