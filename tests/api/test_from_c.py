# SPDX-License-Identifier: MIT
"""The C example, built through pkg-config as a user does, beside Python on one array."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vmalloc

SOURCE = Path(__file__).parents[2] / "examples" / "13_from_c.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("from-c") / "from_c"
    lib = Path(vmalloc.get_include()).parent / "lib"
    asked = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "vmalloc"],
        env=os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig")},
        capture_output=True,
        text=True,
        check=True,
    )
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", *asked.stdout.split()]
    subprocess.run(["cc", SOURCE, *flags, "-o", to], check=True)
    return to


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60)


def test_c_and_python_share_an_array_both_ways(program: Path) -> None:
    with vmalloc.Region("4M", name=f"from-c-{os.getpid()}", helper=False) as region:
        region["numbers"] = numbers = region.array(np.arange(6.0).reshape(2, 3))
        for which in (region.name, str(os.getpid())):
            done = run(program, which, "numbers")
            assert (done.returncode, done.stdout, done.stderr) == (0, "6 numbers doubled\n", "")
        np.testing.assert_array_equal(numbers, np.arange(6.0).reshape(2, 3) * 4)
        copy = region["from C"]
        np.testing.assert_array_equal(copy, numbers)
        numbers[:] = 0
        assert copy[1, 2] == 20
        del region["from C"], region["numbers"], copy, numbers
        region.recover()
        region.check(at_rest=True)
        assert region.stats().busy_pages == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ints", "no plain array of float64"),
        ("columns", "no plain array of float64"),
        ("none", "no live range, name"),
    ],
)
def test_what_the_example_cannot_use_is_one_line(program: Path, name: str, says: str) -> None:
    with vmalloc.Region("4M", name=f"from-c-{os.getpid()}", helper=False) as region:
        region["ints"] = region.zeros(3, "i4")
        region["columns"] = region.zeros((4, 4))[:, ::2]
        done = run(program, region.name, name)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{name}: {says}")
        assert len(done.stderr.splitlines()) == 1


def test_no_such_region_is_one_line(program: Path) -> None:
    done = run(program, "no region is called so", "x")
    assert done.stderr == "no region is called so: no live range, name or region of that kind\n"
