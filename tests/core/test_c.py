# SPDX-License-Identifier: MIT
"""The C tests: every test_*.c here, built with hooks and assertions, in three flavours.

`test_word.c` gives `test_word[plain]`, `test_word[asan]` (with UBSan) and `test_word[tsan]`. `test_step.c`
alone is linked with the core as shipped, without hooks, and asks `test_crash` beside it what the hooks see.
The builds are kept in build/core-FLAVOUR, so a second run compiles only what changed; by hand:
`meson setup -Dhooks=true -Dtests=true -Dbuildtype=debugoptimized DIR && meson test -C DIR`.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = sorted(source.stem for source in HERE.glob("test_*.c"))

FLAVOURS = {"plain": None, "asan": "address,undefined", "tsan": "thread"}
TIMEOUT_S = 600
ENVIRONMENT = {
    # meson, ninja and the compiler as pip installed them, whether or not the venv is activated
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    "ASAN_OPTIONS": "abort_on_error=0:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
#: The enumerator's victims have threads of their own and die anywhere, which TSan itself does not survive.
#: The stepper walks through what the compiler made of the core; a sanitizer makes something else.
LEFT_OUT = {"test_crash": ("tsan",), "test_step": ("asan", "tsan")}
SKIPPED = 77  # what a program returns that cannot run here; its last line says why
# What TSan says when address randomisation put a mapping where it wanted its shadow.
TSAN_WANTS_FIXED_ADDRESSES = ("unexpected memory mapping", "unable to mmap", "CHECK failed: tsan_platform")


def run(command: list[str | Path], timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
    )


def meson_setup(build: Path, sanitize: str | None) -> None:
    options = ["-Dhooks=true", "-Dtests=true", "-Dbuildtype=debugoptimized", "-Db_lundef=false"]
    if sanitize:
        options += [f"-Db_sanitize={sanitize}"]
    command = [sys.executable, "-m", "mesonbuild.mesonmain", "setup", *options]
    if (build / "build.ninja").exists():
        if run([*command, "--reconfigure", build]).returncode == 0:
            return
        shutil.rmtree(build)  # another meson's or another machine's
    configured = run([*command, build])
    assert configured.returncode == 0, configured.stdout


def programs_known_to(build: Path) -> set[str]:
    try:
        targets = json.loads((build / "meson-info" / "intro-targets.json").read_text())
    except (OSError, ValueError):
        return set()
    return {target["name"] for target in targets if target["name"].startswith("test_")}


@functools.cache
def build_of(flavour: str) -> Path:
    """The build directory of a flavour, with all that compiles compiled. One process at a time."""
    build = ROOT / "build" / f"core-{flavour}"
    sanitize = FLAVOURS[flavour]
    if sanitize and not toolchain_has(sanitize):
        pytest.skip(f"this compiler cannot link -fsanitize={sanitize}")
    build.parent.mkdir(exist_ok=True)
    with open(build.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = programs_known_to(build)
        wanted = {name for name in PROGRAMS if flavour not in LEFT_OUT.get(name, ())}
        if known - set(PROGRAMS) or wanted - known:
            meson_setup(build, sanitize)
        run(["ninja", "-C", build, "-k", "0", "c-tests"], timeout_s=600)  # failures are told per program
    return build


def toolchain_has(sanitize: str) -> bool:
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, f"-fsanitize={sanitize}", "-x", "c", "-", "-o", os.devnull]
    program = "int main(void) { return 0; }"
    return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def build_program(build: Path, name: str) -> Path:
    with open(build.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compiled = run(["ninja", "-C", build, f"tests/core/{name}"], timeout_s=600)
    assert compiled.returncode == 0, compiled.stdout
    return build / "tests" / "core" / name


def run_program(flavour: str, program: Path) -> None:
    finished = run([program])
    if flavour == "tsan" and any(words in finished.stdout for words in TSAN_WANTS_FIXED_ADDRESSES):
        if not shutil.which("setarch"):
            pytest.skip("TSan needs fixed addresses here: install setarch, or set vm.mmap_rnd_bits to 28")
        finished = run(["setarch", os.uname().machine, "-R", program])
        if "personality" in finished.stdout or "unexpected memory mapping" in finished.stdout:
            pytest.skip("TSan needs fixed addresses and this container forbids them: set vm.mmap_rnd_bits=28")
    if finished.returncode == SKIPPED:
        pytest.skip(finished.stdout.strip().splitlines()[-1])
    assert finished.returncode == 0, finished.stdout or f"ended with {finished.returncode} and said nothing"


def case(name: str) -> Callable[[str], None]:
    @pytest.mark.timeout(1200)  # the first case of a flavour compiles everything
    @pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f not in LEFT_OUT.get(name, ())])
    def test(flavour: str) -> None:
        run_program(flavour, build_program(build_of(flavour), name))

    return test


for program_name in PROGRAMS:
    globals()[program_name] = case(program_name)
