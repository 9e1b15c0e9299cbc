# SPDX-License-Identifier: MIT
"""The package as a stranger installs it: what it declares, alone and with each extra.

Every command and every example works, or says what to install. A wheel is built and installed into virtual
environments of their own, so this takes minutes and the network:
`make soak TESTS=tests/cli/test_first_five_minutes.py`. What needs neither is in test_manners.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from vmalloc.cli import COMMANDS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
EXTRAS = [
    name
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if name not in ("peers", "test", "docs")  # gigabytes; tools of the Makefile
]
TRIED: list[tuple[str, int]] = [
    ("--help", 0), ("--version", 0), ("doctor", 0), ("ps", 0), ("info --kernel", 0),
    ("suite nr_threads=2 test_loop_count=50 test_repeat_count=1 run_test_mask=1", 0), ("check no-such", 2),
    ("info no-such", 2), ("top no-such --once", 2), ("completion bash", 0),
    ("bench handover --sizes 4K --rounds 1 --peers vmalloc,stock", 0),
    ("replay TRACE --predict", 0), ("replay TRACE --on core --repeat 1 --pools off", 0),
    ("simulate nr_threads=4 test_loop_count=50", 0), ("compare --cpus 2 --seeds 1 test_loop_count=50", 0),
    ("report TRACE --json", 0), ("report TRACE --replay vmalloc --force -o /dev/null", 0),
]  # fmt: skip


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # meson and ninja
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=600, env=env, cwd="/", **options  # type: ignore[call-overload]
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["", *EXTRAS], ids=lambda extra: extra or "nothing")
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed programs."""
    extra = request.param
    folder = tmp_path_factory.mktemp(f"with-{extra or 'nothing'}")
    venv.create(folder, with_pip=True)
    what = f"vmalloc[{extra}] @ file://{wheel}" if extra else wheel
    done = run(folder / "bin/python", "-m", "pip", "install", "-q", what)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_works(installed: Path, name: str) -> None:
    done = run(installed / "vmalloc", name, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("words", "status"), TRIED, ids=[words for words, _ in TRIED])
def test_every_command_works_or_says_what_to_install(installed: Path, words: str, status: int) -> None:
    trace = ROOT / "tests/data/guest/random_size_1t.trace.xz"
    done = run(installed / "vmalloc", *words.replace("TRACE", str(trace)).split())
    assert "Traceback" not in done.stderr
    if done.returncode != status:
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert re.search(r"pip install '?\w+", done.stderr)


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("[0-9]*.py")))
def test_every_example_works_or_names_its_extra(installed: Path, example: str) -> None:
    path = ROOT / "examples" / example
    done = run(installed / "python", path)
    if done.returncode != 0:
        assert done.stderr == "arrays need numpy: pip install 'vmalloc[numpy]'\n"
        assert run(installed / "python", "-c", "import numpy").returncode != 0


def test_the_demo_works_or_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "python", "-m", "vmalloc.demo", "--quick", "--out", tmp_path / "demo.png")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
