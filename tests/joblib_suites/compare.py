# SPDX-License-Identifier: MIT
"""joblib's own tests of Parallel and of its memory maps, with loky and with our backend in its place.

    python tests/joblib_suites/compare.py [SUITE ...]     # with vmalloc, joblib, numpy, pytest

Every suite runs twice: as it is, and with `site/sitecustomize.py` in each process, workers included. Then
outcomes are compared test by test. Tests that differ run again, in both ways: what agrees then was
unsteady. DIFFERENT says which may differ, and why; any other difference makes the exit code 1, and so does a
test of DIFFERENT that passes with us. Some fail in stock, too, now and then, so that they agree for once.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = pathlib.Path(__file__).resolve()
SUITES = ["test_parallel", "test_memmapping"]
NR_AGAIN = 2
TEST_S, SUITE_S = 300, 3600  # limits
NODES_MAX = 60  # more tests than that run again as a whole suite

Outcomes = dict[str, str]

#: tests that assert LokyBackend or a file that is mapped, and what is so with us
_IS_MAPPED = "asserts that an argument is np.memmap, or asks for its file's name; with us it is an array"
_IS_LOKY = "asserts the class LokyBackend; ours derives from it"
DIFFERENT: dict[str, str] = {
    "test_memmapping.test_managed_backend_reuse_temp_folder": _IS_MAPPED,
    "test_memmapping.test_memmap_returned_as_regular_array": _IS_MAPPED,
    "test_memmapping.test_memmapping_temp_folder_thread_safety": _IS_MAPPED,
    "test_memmapping.test_multithreaded_parallel_termination_resource_tracker_silent": _IS_MAPPED,
    "test_memmapping.test_parallel_isolated_temp_folders": _IS_MAPPED,
    "test_parallel.test_auto_memmap_on_arrays_from_generator": _IS_MAPPED,
    "test_parallel.test_backend_context_manager": _IS_LOKY,
    "test_parallel.test_backend_hinting_and_constraints": _IS_LOKY,
    "test_parallel.test_memmapping_leaks": _IS_MAPPED,
    "test_parallel.test_nested_parallelism_limit": _IS_LOKY,
}


def run(suite: str, out: pathlib.Path, tests: list[str], *, swapped: bool) -> Outcomes:
    """Outcomes of a suite, or of some of its tests, in an interpreter of its own."""
    way = "with" if swapped else "without"
    report, log = out / f"{suite}-{way}.xml", out / f"{suite}-{way}.log"
    report.unlink(missing_ok=True)
    paths = [str(HERE.parent / "site"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    env.pop("VMALLOC_SWAPPED", None)
    if swapped:
        env["VMALLOC_SWAPPED"] = "1"
    settings = out / "pytest.ini"  # whatever lies above `out` may know stricter rules than joblib does
    settings.write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-c", str(settings)]
    command += ["-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["--timeout", str(TEST_S), f"--junitxml={report}", "--pyargs", f"joblib.test.{suite}"]
    if tests:
        command += ["-k", " or ".join(sorted({name.partition("[")[0] for name in tests}))]
    with log.open("a") as file:
        subprocess.run(command, env=env, cwd=out, stdout=file, stderr=file, timeout=SUITE_S, check=False)
    if not report.exists():
        raise SystemExit(f"{suite} {way} us ended before its outcomes were known:\n{log.read_text()[-4000:]}")
    return outcomes(report)


def outcomes(report: pathlib.Path) -> Outcomes:
    """By test; what a report of pytest's says."""
    found: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = kinds[0] if kinds else "passed"
    return found


def failures(found: Outcomes) -> set[str]:
    return {name for name, outcome in found.items() if outcome in ("failure", "error")}


def differences(one: Outcomes, other: Outcomes) -> set[str]:
    """Tests whose outcomes differ. One that is missing on a side differs too."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def tests_of(suite: str, names: Iterable[str]) -> set[str]:
    """As DIFFERENT names them: without parameters."""
    return {f"{suite}.{name.partition('[')[0]}" for name in names}


def compare(suite: str, out: pathlib.Path) -> tuple[set[str], set[str]]:
    """The tests that differ each time, and those that failed with us some time. Tells what it sees."""
    started = time.monotonic()
    without, with_us = run(suite, out, [], swapped=False), run(suite, out, [], swapped=True)
    for way, found in (("without us", without), ("with us", with_us)):
        counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(Counter(found.values()).items()))
        print(f"{suite} {way}: {counts}")
        if "passed" not in found.values():  # two runs that both fail to begin would agree
            raise SystemExit(f"{suite} {way}: no test of it ran; --logs keeps why")
    differ, failed = differences(without, with_us), failures(with_us)
    for _ in range(NR_AGAIN):
        if not differ:
            break
        again = sorted(differ)
        without, with_us = run(suite, out, again, swapped=False), run(suite, out, again, swapped=True)
        differ &= differences(without, with_us)
        failed |= failures(with_us)
    for name in sorted(differ):
        told = DIFFERENT.get(f"{suite}.{name.partition('[')[0]}", "UNKNOWN")
        print(f"  differs: {name}: {without.get(name)} without us, {with_us.get(name)} with us: {told}")
    print(f"{suite}: {time.monotonic() - started:.0f} s", flush=True)
    return tests_of(suite, differ), tests_of(suite, failed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--logs", type=pathlib.Path, help="keep what the suites print in this folder")
    options = parser.parse_args()
    suites = options.suites or SUITES
    with tempfile.TemporaryDirectory() as folder:
        out = options.logs.resolve() if options.logs else pathlib.Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        told = [compare(suite, out) for suite in suites]
    differ, failed = (set().union(*found) for found in zip(*told, strict=True))
    known = {name for name in DIFFERENT if name.partition(".")[0] in suites}
    for name in sorted(known - failed):
        print(f"{name} does not differ any more")
    sys.exit(bool(differ - known or known - failed))


if __name__ == "__main__":
    main()
