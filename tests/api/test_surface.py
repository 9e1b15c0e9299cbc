# SPDX-License-Identifier: MIT
"""Names, errors, types, imports, the end of the interpreter."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pathlib
import random
import subprocess
import sys

import pytest

import vmalloc
from vmalloc import _core, errors


def run(code, *flags):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60)


def test_all_public_names_are_listed_and_found():
    for name in vmalloc.__all__:
        value = getattr(vmalloc, name)
        assert value.__doc__
        assert name in dir(vmalloc)
        assert value.__module__.startswith("vmalloc")
    assert sorted(vmalloc.__all__) == vmalloc.__all__
    with pytest.raises(AttributeError, match="no_such"):
        _ = vmalloc.no_such


BUILTIN = {
    "OutOfPages": MemoryError, "NotAllocated": ValueError, "StaleReference": ReferenceError,
    "RegionUnavailable": OSError, "RegionBusy": TimeoutError, "RegionClosed": ValueError,
    "RegionCorrupt": Exception, "NotLoaded": Exception, "MemoryMisused": Exception,
}  # fmt: skip


@pytest.mark.parametrize("name", BUILTIN)
def test_every_error_is_ours_and_the_builtin_people_catch(name):
    error = getattr(vmalloc, name)
    assert issubclass(error, vmalloc.VmallocError)
    assert issubclass(error, BUILTIN[name])
    assert isinstance(error("x"), BUILTIN[name])
    assert f"+ {name}" in errors.__doc__


def test_the_tree_of_errors_in_the_docstring_is_complete():
    assert set(BUILTIN) | {"VmallocError"} == set(errors.__all__)
    assert errors.__doc__.count("  + ") == len(BUILTIN)


def test_an_unavailable_region_has_its_errno():
    with pytest.raises(OSError, match="not open") as caught:
        vmalloc.Region.attach(-1)
    assert caught.value.errno == 9


def test_import_is_light():
    code = """
import sys
before = set(sys.modules)
import vmalloc
new = set(sys.modules) - before
assert not new & {"numpy", "multiprocessing", "click", "rich", "asyncio", "ctypes"}, new
print(len(new))
vmalloc.Region
new = set(sys.modules) - before
assert not new & {"numpy", "multiprocessing", "click", "rich", "asyncio"}, new
"""
    done = run(code)
    assert done.stderr == ""
    assert int(done.stdout) <= 10


def test_blocks_need_no_numpy():
    code = """
import importlib.abc, sys
class NoNumpy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "numpy":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NoNumpy())
import pickle, vmalloc
region = vmalloc.Region("1M")
block = region.alloc(100)
memoryview(block)[:3] = b"abc"
region["b"] = block
ref = vmalloc.ref(block)
assert bytes(region["b"][:3]) == bytes(pickle.loads(pickle.dumps(ref)))[:3] == b"abc"
assert vmalloc.region_of(block) is region
vmalloc.AddressSpace(0, 4096).alloc(1)
try:
    region.empty(3)
except ImportError:
    print("numpy is wanted")
"""
    assert run(code).stdout == "numpy is wanted\n"


ENDINGS = [
    "region = vmalloc.Region('1M'); a = region.zeros(5); block = region.alloc(5)",
    "block = vmalloc.Region('1M').alloc(5); view = memoryview(block)",
    "a = vmalloc.Region('1M').zeros(5)[1:]; sys.keep = a; builtins.keep = a",
    "region = type('R', (vmalloc.Region,), {})('1M'); region.self = region; region.a = region.zeros(5)",
    "ref = vmalloc.ref(vmalloc.Region('1M').zeros(3)); sys.modules['x'] = ref",
    "region = vmalloc.Region('1M'); sys.modules.pop('vmalloc._core'); del vmalloc",
    "region = vmalloc.Region('1M'); a = region.zeros(5); atexit.register(lambda: (region.close(), a.sum()))",
    "vmalloc.default_region().empty(3); space = vmalloc.AddressSpace(0, 1 << 40); space.alloc(5)",
    "region = vmalloc.Region('1M'); t = threading.Thread(target=lambda: region.alloc(9)); t.start()",
    "r = vmalloc.Region('1M'); work = lambda: any(r.alloc(9) is None for _ in iter(int, 1));"
    "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05)",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_in_silence(ending):
    done = run(f"import atexit, builtins, sys, threading, time, vmalloc; {ending}", "-X", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_globals_may_go_in_any_order():
    names = ["region", "a", "block", "view", "ref", "vmalloc", "np"]
    for seed in range(4):
        random.Random(seed).shuffle(names)
        code = f"""
import numpy as np, vmalloc
region = vmalloc.Region("1M")
a = region.zeros(5); block = region.alloc(9); view = a[1:]; ref = vmalloc.ref(a)
for name in {names!r}: del globals()[name]
"""
        done = run(code)
        assert (done.returncode, done.stderr) == (0, "")


# ---- types ----


def stub_classes():
    tree = ast.parse(pathlib.Path(_core.__file__).with_name("_core.pyi").read_text())
    return {
        node.name: {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


@pytest.mark.parametrize("kind", ["CoreRegion", "Holding", "ArrayOwner", "Block"])
def test_the_stub_agrees_with_the_runtime(kind):
    stub, real = stub_classes()[kind], getattr(_core, kind)
    protocol = {"__init__", "__reduce__", "__repr__", "__new__", "__buffer__", "__pyx_vtable__", "__doc__"}
    protocol.add("__release_buffer__")  # from 3.12 on
    there = {
        n for n, v in vars(real).items() if (n not in protocol and callable(v)) or isinstance(v, property)
    }
    there -= {n for n in there if n.startswith(("__reduce", "__setstate", "__pyx"))}
    assert {n for n in there if n not in stub and not hasattr(object, n)} == set()
    for name, node in stub.items():
        if name == "__buffer__":
            continue
        member = inspect.getattr_static(real, name)
        try:
            parameters = inspect.signature(member).parameters.values()
        except (TypeError, ValueError):
            continue
        expected = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        got = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
        assert got == expected, f"{kind}.{name}"


def test_functions_of_the_core_are_documented_with_their_signature():
    assert str(inspect.signature(_core.CoreRegion.alloc)) == "(self, /, nbytes, align=1, *, timeout=None)"
    for name in (
        "alloc",
        "alloc_bulk",
        "free_bulk",
        "empty",
        "zeros",
        "purge",
        "shrink",
        "recover",
        "close",
        "fileno",
    ):
        assert getattr(vmalloc.Region, name).__doc__


def test_the_typed_marker_and_the_header_are_installed():
    package = pathlib.Path(vmalloc.__file__).parent
    assert (package / "py.typed").is_file()
    include = pathlib.Path(vmalloc.get_include())
    if "site" in str(package) and include.exists():
        assert "vm_alloc" in (include / "vmalloc.h").read_text()


def test_every_module_says_what_it_exports():
    for name in (
        "region", "array", "reference", "address_space", "stats", "errors",
        "attach", "find", "serve", "shared_memory",
    ):  # fmt: skip
        module = importlib.import_module(f"vmalloc.{name}")
        assert module.__doc__
        assert all(hasattr(module, n) for n in module.__all__)


def test_hand_made_repr_tells_size_and_place():
    region = vmalloc.Region("16M")
    assert repr(region) == f"<vmalloc.Region {region.id[:8]} 16 MiB magazine>"
    assert repr(region.alloc(1 << 20)) == "<vmalloc.Block of 1 MiB at offset 0x0>"
    assert repr(vmalloc.AddressSpace(0, 8192)) == "<vmalloc.AddressSpace [0x0, 0x2000) granule 4096>"


def test_the_name_shows_in_the_maps_of_the_process():
    region = vmalloc.Region("1M", name="frames")
    assert "vmalloc:frames" in pathlib.Path("/proc/self/maps").read_text()
    assert os.readlink(f"/proc/self/fd/{region.fileno()}").startswith("/memfd:vmalloc:frames")
