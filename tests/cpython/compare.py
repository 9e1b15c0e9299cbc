# SPDX-License-Identifier: MIT
"""CPython's own tests of multiprocessing and concurrent.futures, without us and with us installed.

    python tests/cpython/compare.py [SUITE ...]     # vmalloc and numpy must be importable

Every suite runs twice in interpreters of its own: as it is, and with `import vmalloc.auto` in each process
(site/sitecustomize.py). Then outcomes are compared test by test. Tests that differ run again alone, in both
ways: what agrees then was unsteady and is told; what still differs is an error of ours, and the exit code 1.

Some distributions leave these suites out. Those of multiprocessing are a line each around
`test._test_multiprocessing`, so they are made here if that is there; others are skipped, and told.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections import Counter
from types import TracebackType
from typing import Any

HERE = pathlib.Path(__file__).resolve()
MULTIPROCESSING = [f"test_multiprocessing_{method}" for method in ("fork", "forkserver", "spawn")]
SUITES = [*MULTIPROCESSING, "test_concurrent_futures"]
NR_AGAIN = 3
LIMIT_S = 3600  # of one run of one suite
MADE = """
import unittest
import test._test_multiprocessing
test._test_multiprocessing.install_tests_in_module_dict(globals(), "{method}")
"""

Outcomes = dict[str, str]


# ---- in the interpreter that runs a suite ----


class Record(unittest.TextTestResult):
    """Each test's outcome, by its id; of a test with subtests the worst."""

    outcomes: Outcomes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes = {}

    def _note(self, test: unittest.TestCase, outcome: str) -> None:
        self.outcomes[test.id()] = outcome

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._note(test, "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "error")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "unexpected success")

    def addSubTest(
        self,
        test: unittest.TestCase,
        subtest: unittest.TestCase,
        err: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None,
    ) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed")


def run_here(suite: str, out: str, tests: list[str]) -> None:
    """Run a suite, or only some of its tests, and write outcomes to the file `out`."""
    from test import support

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    support.verbose = 0
    support.LONG_TIMEOUT = 60  # threads that cannot be terminated sleep for so long, and the suite with them
    loader = unittest.defaultTestLoader
    found = loader.loadTestsFromNames(tests) if tests else load_all(suite)
    result = unittest.TextTestRunner(resultclass=Record, verbosity=2).run(found)
    assert isinstance(result, Record)
    pathlib.Path(out).write_text(json.dumps(result.outcomes))


def load_all(suite: str) -> unittest.TestSuite:
    loader = unittest.defaultTestLoader
    module = importlib.import_module(suite)
    if not hasattr(module, "__path__"):
        return loader.loadTestsFromModule(module)
    names = sorted(p.stem for p in pathlib.Path(module.__path__[0]).glob("test_*.py"))
    return unittest.TestSuite(loader.loadTestsFromName(f"{suite}.{name}") for name in names)


# ---- in the one that compares ----


def module_of(suite: str, made: pathlib.Path) -> str | None:
    """The suite's module as this interpreter has it, or as it is made in the folder `made`; else None."""
    if importlib.util.find_spec(f"test.{suite}") is not None:
        return f"test.{suite}"
    if suite not in MULTIPROCESSING or importlib.util.find_spec("test._test_multiprocessing") is None:
        return None
    (made / f"made_{suite}.py").write_text(MADE.format(method=suite.rpartition("_")[2]))
    return f"made_{suite}"


def run(suite: str, made: pathlib.Path, *, installed: bool, tests: list[str] | None = None) -> Outcomes:
    """Outcomes of a suite in interpreters of their own. What it prints goes to a file in `made`."""
    way = "with" if installed else "without"
    out, log = made / "outcomes.json", made / f"{suite}-{way}{'-again' if tests else ''}.log"
    out.unlink(missing_ok=True)
    paths = [str(HERE.parent / "site"), str(made), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1"}
    env.pop("VMALLOC_INSTALLED", None)
    if installed:
        env["VMALLOC_INSTALLED"] = "1"
    command = [sys.executable, str(HERE), "--run", suite, "--out", str(out), *(tests or [])]
    with log.open("w") as file:
        code = subprocess.run(
            command, env=env, cwd=made, stdout=file, stderr=file, stdin=subprocess.DEVNULL, timeout=LIMIT_S
        ).returncode
    if not out.exists():
        text = log.read_text()[-4000:]
        raise SystemExit(f"{suite} {way} us ended with {code} before its outcomes were known:\n{text}")
    return dict(json.loads(out.read_text()))


def differences(one: Outcomes, other: Outcomes) -> list[str]:
    """Tests whose outcomes differ. One that is missing on a side differs too."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def compare(suite: str, made: pathlib.Path) -> bool:
    """Whether the suite's outcomes are the same with us and without. Tells them."""
    started = time.monotonic()
    without, with_us = run(suite, made, installed=False), run(suite, made, installed=True)
    differ = differences(without, with_us)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(Counter(with_us.values()).items()))
    print(f"{suite}: {counts}; {time.monotonic() - started:.0f} s")
    for name in differ:
        print(f"  differs: {name}: {without.get(name)} without us, {with_us.get(name)} with us")
    for _ in range(NR_AGAIN):
        if not differ:
            break
        again = [
            n for n in differ if n.startswith(suite)
        ]  # a class or module that failed to load has no name
        if not again:
            break
        without = run(suite, made, installed=False, tests=again)
        with_us = run(suite, made, installed=True, tests=again)
        differ = [n for n in differ if n not in again or n in differences(without, with_us)]
    for name in differ:
        print(f"  STILL DIFFERS: {name}: {without.get(name)} without us, {with_us.get(name)} with us")
    sys.stdout.flush()
    return not differ


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--logs", type=pathlib.Path, help="keep what the suites print in this folder")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_here(options.run, options.out, options.suites)
        return
    same = True
    with tempfile.TemporaryDirectory() as folder:
        made = options.logs.resolve() if options.logs else pathlib.Path(folder)
        made.mkdir(parents=True, exist_ok=True)
        for suite in options.suites or SUITES:
            name = module_of(suite, made)
            if name is None:
                print(f"{suite}: skipped, this Python {sys.version.split()[0]} comes without it")
            else:
                same = compare(name, made) and same
    sys.exit(not same)


if __name__ == "__main__":
    main()
