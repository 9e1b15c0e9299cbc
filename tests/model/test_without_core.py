# SPDX-License-Identifier: MIT
"""The model and the lab need no compiled core: they work where no region can be made."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import vmalloc.lab
import vmalloc.model

NEEDS_CORE = {"vmalloc.lab.replay_on_core", "vmalloc.lab.record_region"}
"""They ask the real allocator; cli/replay.py and cli/record.py import them when they are to."""
IMPORT = """
import importlib, sys

class NoCore:
    def find_spec(self, name, path=None, target=None):
        if name == "vmalloc._core":
            raise ImportError("there is no core here")

sys.meta_path.insert(0, NoCore())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "vmalloc._core" not in sys.modules
"""


def modules() -> list[str]:
    packages = (vmalloc.model, vmalloc.lab)
    found = [m.name for p in packages for m in pkgutil.iter_modules(p.__path__, p.__name__ + ".")]
    return sorted({"vmalloc.facts", "vmalloc.cli.replay", *found} - NEEDS_CORE)


def test_every_module_imports_without_a_core():
    done = subprocess.run([sys.executable, "-c", IMPORT, *modules()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
