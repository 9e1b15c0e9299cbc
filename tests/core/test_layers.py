# SPDX-License-Identifier: MIT
"""The layers of core/: who includes whom, who calls whom, who talks to the kernel."""

import re
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "core"
LAYERS = ("base", "store", "cache", "share", "mend", "face")
SOURCES = sorted(CORE.glob("*/*.c"))
HEADERS = sorted(CORE.glob("*/*.h"))
BASE_PARTS = ("fault.h", "layout.h")

#: system header -> the files that may include it; all others are the C language's own
KERNEL_HEADERS = {
    "ctype.h": {"base/pipe.c"},
    "dlfcn.h": {"base/rseq.c"},
    "fcntl.h": {"base/system.c", "base/number.c", "base/descriptor.c", "base/pipe.c", "store/pages.c"},
    "linux/futex.h": {"base/system.c"},
    "linux/magic.h": {"base/system.c"},
    "linux/membarrier.h": {"base/system.c"},
    "linux/netlink.h": {"base/pipe.c"},
    "linux/rtnetlink.h": {"base/pipe.c"},
    "linux/sock_diag.h": {"base/pipe.c"},
    "linux/unix_diag.h": {"base/pipe.c"},
    "poll.h": {"base/pipe.c"},
    "sched.h": {"base/system.c"},
    "signal.h": {"base/system.c", "base/fault.c"},
    "sys/ioctl.h": {"base/pipe.c"},
    "sys/mman.h": {"base/descriptor.c", "store/pages.c"},
    "sys/random.h": {"store/pages.c"},
    "sys/resource.h": {"store/pages.c"},
    "sys/socket.h": {"base/pipe.c", "base/served.c"},
    "sys/stat.h": {"base/number.c", "base/descriptor.c", "base/pipe.c", "store/pages.c"},
    "sys/syscall.h": {"base/system.c", "base/number.c"},
    "sys/time.h": {"base/served.c"},
    "sys/un.h": {"base/served.c"},
    "sys/vfs.h": {"base/system.c"},
    "time.h": {"base/system.c", "base/clock.c"},
    "unistd.h": {
        "base/system.c",
        "base/number.c",
        "base/descriptor.c",
        "base/pipe.c",
        "base/served.c",
        "base/fault.c",
        "store/pages.c",
    },
}
LANGUAGE_HEADERS = {
    "assert.h", "errno.h", "pthread.h", "stdarg.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h",
    "stdlib.h", "string.h",
}  # fmt: skip


def name(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


def includes(text: str, quote: str) -> list[str]:
    closing = {"<": ">", '"': '"'}[quote]
    return re.findall(rf"^\s*#\s*include {re.escape(quote)}([^{closing}]+){closing}", text, re.MULTILINE)


def without_comments(text: str) -> str:
    return re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)


def definitions(text: str) -> set[str]:
    """Functions and objects of a .c file that others can see."""
    code = without_comments(text)
    functions = re.findall(
        r"^(?!static|typedef)[A-Za-z_][\w \t*()]*?\b(vm_\w+)\([^;{]*\)\s*\{", code, re.MULTILINE
    )
    objects = re.findall(
        r"^(?!static|extern|typedef)[A-Za-z_][\w \t*]*?\b(vm_\w+)(?: __attribute__\(\(.*\)\))? = ",
        code,
        re.MULTILINE,
    )
    return set(functions) | set(objects)


def calls_between(texts: dict[str, str]) -> dict[str, set[str]]:
    """For each file the files of which it names a function or an object."""
    home = {word: file for file, text in texts.items() for word in definitions(text)}
    graph: dict[str, set[str]] = {}
    for file, text in texts.items():
        words = set(re.findall(r"\bvm_\w+\b", without_comments(text)))
        graph[file] = {home[word] for word in words if word in home and home[word] != file}
    return graph


def a_circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that call each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str]:
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return []
        found = next((c for c in (visit(n, [*path, file]) for n in sorted(graph[file])) if c), [])
        done.add(file)
        return found

    return next((c for c in (visit(file, []) for file in sorted(graph)) if c), [])


TEXTS = {name(path): path.read_text() for path in SOURCES}


def layer(file: str) -> int:
    return LAYERS.index(file.split("/")[0])


def test_every_file_of_the_core_lies_in_a_layer():
    assert {path.parent.name for path in SOURCES} == set(LAYERS)
    assert not sorted(CORE.glob("*.c"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_includes_the_header_of_its_own_layer_only(path):
    assert includes(path.read_text(), '"') == [f"{path.parent.name}.h"]


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=LAYERS)
def test_a_layers_header_includes_the_layer_below(number):
    here = LAYERS[number]
    included = includes((CORE / here / f"{here}.h").read_text(), '"')
    below = (
        [f"../{LAYERS[number - 1]}/{LAYERS[number - 1]}.h"] if number else [*BASE_PARTS, "vmalloc_types.h"]
    )
    public = ["../vmalloc_inline.h"] if here == "face" else []  # and thereby vmalloc.h
    assert included == below + public


def test_there_is_one_header_a_layer_and_base_has_its_parts():
    assert {name(path) for path in HEADERS} == {f"{here}/{here}.h" for here in LAYERS} | {
        f"base/{p}" for p in BASE_PARTS
    }


def test_no_file_names_a_function_of_a_higher_layer():
    upward = [
        f"{file} -> {other}"
        for file, others in calls_between(TEXTS).items()
        for other in others
        if layer(other) > layer(file)
    ]
    assert upward == []


def test_no_two_files_call_each_other_in_a_circle():
    assert a_circle(calls_between(TEXTS)) == []


def test_a_circle_would_be_found():
    calls = {"a": "b", "b": "c", "c": "a", "d": "a"}
    texts = {f"{x}.c": f"int vm_{x}(void)\n{{ return vm_{y}(); }}\n" for x, y in calls.items()}
    assert a_circle(calls_between(texts)) == ["a.c", "b.c", "c.c", "a.c"]
    texts["c.c"] = "/* vm_a() */ int vm_c(void)\n{ return 0; }\n"
    assert a_circle(calls_between(texts)) == []


@pytest.mark.parametrize("path", [*SOURCES, *HEADERS], ids=name)
def test_the_kernel_is_called_where_the_layers_say(path):
    for header in includes(path.read_text(), "<"):
        assert header in LANGUAGE_HEADERS or name(path) in KERNEL_HEADERS[header], (
            f"{name(path)} includes <{header}>"
        )


def test_the_map_in_core_readme_names_every_file_once():
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", (CORE / "README.md").read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == list(LAYERS)
    for here, files in rows:
        stems = {path.stem for path in CORE.glob(f"{here}/*.[ch]")} - {here}
        assert sorted(files.split()) == sorted(stems)
