# SPDX-License-Identifier: MIT
"""The C examples, built through pkg-config as a user does, one of them beside Python on one array."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vmalloc

EXAMPLES = Path(__file__).parents[2] / "examples"
C = ["cc", "-std=c11"]
STRICT = ["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def built(source: Path, to: Path, compiler: list[str], *first: str) -> Path:
    """`first` comes before what pkg-config says: other folders of headers."""
    lib = Path(vmalloc.get_include()).parent / "lib"
    asked = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "vmalloc"],
        env=os.environ | {"PKG_CONFIG_PATH": str(lib / "pkgconfig")},
        capture_output=True,
        text=True,
        check=True,
    )
    subprocess.run([*compiler, *STRICT, *first, source, *asked.stdout.split(), "-o", to], check=True)
    return to


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(EXAMPLES / "13_from_c.c", tmp_path_factory.mktemp("from-c") / "from_c", C)


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60)


def test_c_and_python_share_an_array_both_ways(program: Path) -> None:
    with vmalloc.Region("4M", name=f"from-c-{os.getpid()}", helper=False) as region:
        region["numbers"] = numbers = region.array(np.arange(6.0).reshape(2, 3))
        done = run(program, region.name, "numbers")
        assert (done.returncode, done.stdout, done.stderr) == (0, "6 numbers doubled\n", "")
        np.testing.assert_array_equal(numbers, np.arange(6.0).reshape(2, 3) * 2)
        copy = region["from C"]
        np.testing.assert_array_equal(copy, numbers)
        numbers[:] = 0
        assert copy[1, 2] == 10
        del region["from C"], region["numbers"], copy, numbers
        region.recover()
        region.check(at_rest=True)
        assert region.stats().busy_pages == 0


def test_a_region_is_attached_by_the_socket_where_it_is_served(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "region.sock"
    with vmalloc.Region("4M", helper=False) as region:
        region["numbers"] = numbers = region.array(np.arange(6.0))
        region.serve(path)
        done = run(program, f"unix:{path}", "numbers")
        assert (done.returncode, done.stdout, done.stderr) == (0, "6 numbers doubled\n", "")
        assert numbers.tolist() == [0, 2, 4, 6, 8, 10]
    done = run(program, f"unix:{path}", "numbers")  # nobody serves it any more
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_socket_that_is_not_to_be_had_is_one_line(program: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.bind(os.fspath(tmp_path / "silent.sock"))
        for path, says in [
            (tmp_path / "silent.sock", os.strerror(errno.ECONNREFUSED)),
            (tmp_path / ("x" * 200), os.strerror(errno.EINVAL)),
            (tmp_path / "none.sock", "no live range, name or region of that kind"),
        ]:
            done = run(program, f"unix:{path}", "numbers")
            assert (done.returncode, done.stderr) == (1, f"unix:{path}: {says}\n")


def test_who_hangs_up_does_not_trust_us(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "wary.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.bind(os.fspath(path))
        there.listen()
        asking = subprocess.Popen([program, f"unix:{path}", "x"], stderr=subprocess.PIPE, text=True)
        there.accept()[0].close()
        assert asking.communicate(timeout=60)[1] == f"unix:{path}: {os.strerror(errno.EPERM)}\n"


ONE_REGION = """
import numpy as np, vmalloc
region = vmalloc.Region("4M")
region["numbers"] = numbers = region.array(np.arange(6.0))
input("ready\\n")
print(numbers.tolist())
"""


def test_a_process_with_one_region_is_found_by_its_pid(program: Path) -> None:
    command = [sys.executable, "-c", ONE_REGION]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        done = run(program, str(process.pid), "numbers")
        assert (done.returncode, done.stdout, done.stderr) == (0, "6 numbers doubled\n", "")
        assert process.communicate("\n")[0] == "[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]\n"


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


# ---- vmalloc_inline.h ----

WITHOUT_A_CALL = EXAMPLES / "18_without_a_call.c"

#: calls of the library that a program makes are counted by the linker's --wrap
COUNTING = """
#include <vmalloc.h>
#include <stdio.h>
static unsigned takes, frees;
vm_taken __real_vm_take(vm_region *, uint64_t);
vm_taken __wrap_vm_take(vm_region *r, uint64_t nr_pages) { takes++; return __real_vm_take(r, nr_pages); }
int __real_vm_free(vm_region *, uint64_t, uint64_t, unsigned);
int __wrap_vm_free(vm_region *r, uint64_t page, uint64_t id, unsigned flags)
{
    frees++;
    return __real_vm_free(r, page, id, flags);
}
__attribute__((destructor)) static void tell(void)
{
    printf("called for %u takes, %u frees\\n", takes, frees);
}
"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a compiler with which a program says how often it called the library."""
    source = tmp_path_factory.mktemp("counting") / "counting.c"
    source.write_text(COUNTING)
    to = source.with_suffix(".o")
    subprocess.run([*C, "-c", source, f"-I{vmalloc.get_include()}", "-o", to], check=True)
    return [str(to), "-Wl,--wrap=vm_take", "-Wl,--wrap=vm_free"]


def test_a_hit_without_a_call_calls_nothing(tmp_path: Path, counting: list[str]) -> None:
    done = run(built(WITHOUT_A_CALL, tmp_path / "program", C, *counting), "1000")
    assert (done.returncode, done.stderr) == (0, "")
    served, called = done.stdout.splitlines()
    assert served == "999 of 1000 from the magazine"
    takes, frees = map(int, re.findall(r"\d+", called))
    assert takes == 1  # the first is no hit
    assert frees < 10  # nor are those from which the magazine grows


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_cplusplus_compiles_it_too(tmp_path: Path, standard: str) -> None:
    if not (compiler := shutil.which("c++")):
        pytest.skip("there is no C++ compiler here")
    done = run(built(WITHOUT_A_CALL, tmp_path / "program", [compiler, f"-std={standard}", "-xc++"]), "10")
    assert (done.returncode, done.stdout, done.stderr) == (0, "9 of 10 from the magazine\n", "")


def other_headers(folder: Path, **changes: tuple[str, str]) -> Path:
    """The headers as a version of another layout has them; `changes` of a file: what becomes what."""
    shutil.copytree(vmalloc.get_include(), folder)
    for stem, (pattern, replacement) in changes.items():
        file = folder / f"{stem}.h"
        text, nr = re.subn(pattern, replacement, file.read_text())
        assert nr == 1
        file.write_text(text)
    return folder


@pytest.mark.parametrize("number", ["VM_INLINE_LAYOUT", "VM_FORMAT"])
def test_a_program_of_another_layout_calls_the_library(
    tmp_path: Path, counting: list[str], number: str
) -> None:
    shuffled = (r"uint64_t busy, cached;", "uint64_t cached, busy;")
    another = (rf"(?m)^    {number} = \d+,", f"    {number} = 77,")
    headers = other_headers(tmp_path / "headers", vmalloc_facts=another, vmalloc_hit=shuffled)
    done = run(built(WITHOUT_A_CALL, tmp_path / "program", C, f"-I{headers}", *counting), "1000")
    assert (done.returncode, done.stderr) == (0, "")
    served, called = done.stdout.splitlines()
    assert served == "999 of 1000 from the magazine"
    assert called == "called for 1000 takes, 1000 frees"


def test_a_library_without_hits_for_programs_is_refused(tmp_path: Path) -> None:
    program = built(WITHOUT_A_CALL, tmp_path / "program", C)
    old = tmp_path / "old.c"
    calls = re.findall(r"\bvm_\w+(?=\()", WITHOUT_A_CALL.read_text())
    old.write_text("".join(f"int {name};\n" for name in {"vm_take", "vm_free", *calls}))
    subprocess.run([*C, "-shared", "-fPIC", old, "-o", tmp_path / "libvmalloc.so"], check=True)
    done = subprocess.run(
        [program, "1"], env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 127
    assert "undefined symbol: vm_inline_thread" in done.stderr
