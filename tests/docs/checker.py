# SPDX-License-Identifier: MIT
"""Does what is named exist? One finding a line: where, what, and the nearest name there is."""

from __future__ import annotations

import builtins
import difflib
import fnmatch
import importlib
import itertools
import keyword
import re
import sys
from collections.abc import Container, Iterable, Iterator
from functools import cache

import click
from tests.docs import allowed
from tests.docs.defined import Defined, defined, words_of
from tests.docs.mentioned import FILE, Mention
from tests.docs.sources import matching, text, tracked

ALLOWED = allowed.NAMES | allowed.FILES
SOURCES = (".c", ".h", ".pml", ".py", ".pyx", ".pxi", ".pxd", ".pyi")
CHAIN = re.compile(r"(?<![\w.$-])([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(\(?)")
STRING = re.compile(r'"[^"]*"|\'[^\']*\'')
FOLDERS = ("tests/", "docs/", "core/", "src/", "benchmarks/", "examples/")
INSTANCES = {
    "region": "Region",
    "block": "Block",
    "holding": "Holding",
    "offsets": "AddressSpace",
    "shm": "SharedMemory",
}
"""Variables that the documents use for an object of a class."""
SYSTEM = ("errno", "signal", "socket", "fcntl", "mmap", "os", "stat", "resource")
"""Modules of the standard library that know the system's constants and calls."""


def unknown(
    mentions: Iterable[Mention], but: Container[str] = ALLOWED
) -> Iterator[tuple[Mention, str, Iterable[str]]]:
    """Each name that does not exist and is not allowed, with the names it may have been meant to be."""
    for mention in mentions:
        for name, known in _unknown(mention):
            if name not in but and name.removesuffix("()") not in but:
                yield mention, name, known


def findings(mentions: Iterable[Mention]) -> list[str]:
    """A line for each name that does not exist."""
    found = (
        f"{mention.path}:{mention.line}: {name} does not exist; nearest: {_nearest(name, known)}"
        for mention, name, known in unknown(mentions)
    )
    return list(dict.fromkeys(found))


def _nearest(name: str, known: Iterable[str]) -> str:
    plain = name.rstrip("()")
    return (difflib.get_close_matches(plain, sorted(known), n=1, cutoff=0.5) or ["nothing like it"])[0]


def _unknown(mention: Mention) -> Iterator[tuple[str, Iterable[str]]]:
    """Names that do not exist, each with the names it may have been meant to be."""
    match mention.kind:
        case "command":
            yield from _unknown_in_command(mention.text, known_in(mention.path).names)
        case "file":
            if not is_file(mention.text):
                yield mention.text, tracked()
        case "constant":
            if not _is_known(mention.text, mention.path):
                yield mention.text, known_in(mention.path).names
        case "call":
            if not _is_call(mention.text, mention.path):
                yield f"{mention.text}()", known_in(mention.path).functions
        case _:
            yield from _unknown_in_span(mention.text, mention.path)


def known_in(path: str) -> Defined:
    """What a file may name."""
    return defined(for_tests=path.startswith("tests/"))


# ---- files --------------------------------------------------------------------------------------


@cache
def is_file(name: str) -> bool:
    """A tracked file or folder: by its path, by the end of its path, or as a pattern that one matches."""
    name = name.removeprefix("./").removeprefix("/").rstrip("/")
    pattern = re.sub(r"<\w+>|[A-Z]{3,}(?=[./])", "*", name)
    return any(
        fnmatch.fnmatch(path, end) or fnmatch.fnmatch(path, f"*/{end}")
        for path in tracked()
        for end in (pattern, f"{pattern}/*")
    )


# ---- commands -----------------------------------------------------------------------------------


@cache
def commands() -> dict[str, click.Command]:
    """The subcommands of `vmalloc`, by name."""
    from vmalloc.cli import COMMANDS, main

    context = click.Context(main)
    return {name: command for name in COMMANDS if (command := main.get_command(context, name))}


@cache
def options_of(command: str) -> frozenset[str]:
    """Options and names of values of one subcommand, those of every click command too."""
    params = commands()[command].params
    return frozenset(opt for p in params for opt in (*p.opts, *p.secondary_opts)) | {"--help", "-h"}


@cache
def all_options() -> frozenset[str]:
    """Options of every subcommand, and of the programs in tests and benchmarks."""
    paths = matching("tests/*.c", "tests/*.py", "benchmarks/*.py", "src/*.py")
    programs = "\n".join(text(path) for path in paths if not path.startswith("tests/docs/"))
    own = re.findall(r"""["'](--?[a-z][\w-]*)["']""", programs)
    return frozenset(own).union(*(options_of(name) for name in commands()))


@cache
def targets() -> frozenset[str]:
    """Targets of the Makefile that are meant to be called."""
    declared = " ".join(re.findall(r"(?m)^\.PHONY:(.*)$", text("Makefile")))
    return frozenset(declared.split())


def _unknown_in_command(line: str, names: set[str]) -> Iterator[tuple[str, Iterable[str]]]:
    words = re.sub(r"'[^']*'|\"[^\"]*\"", "''", line).split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        variable = words.pop(0).split("=")[0]
        if variable not in names:
            yield variable, names
    program, arguments = words[0], words[1:]
    if program == "make":
        yield from _unknown_in_make(arguments, names)
    elif program == "vmalloc" and arguments and not re.fullmatch("[A-Z]+", arguments[0]):
        if arguments[0] not in commands():
            yield f"vmalloc {arguments[0]}", commands()
            return
        known = options_of(arguments[0])
        yield from (
            (w, known) for w in (a.split("=")[0] for a in arguments) if w[:2] == "--" and w not in known
        )
    elif program.startswith("build/") and not is_file(f"{program.split('/', 2)[-1]}.c"):
        yield program, tracked()  # a C program of the tests, where it is built
    for word in arguments:
        path = f"src/{word.replace('.', '/')}*" if word.startswith("vmalloc.") else word
        if path.startswith(FOLDERS) and not is_file(path):
            yield word, tracked()


def _unknown_in_make(arguments: list[str], names: set[str]) -> Iterator[tuple[str, Iterable[str]]]:
    for word in arguments:
        name, assigned, _ = word.partition("=")
        if assigned and name not in names:
            yield name, names
        elif not assigned and word[0].isalpha() and word.islower() and word not in targets():
            yield f"make {word}", targets()


# ---- names in code ------------------------------------------------------------------------------


def _unknown_in_span(span: str, path: str) -> Iterator[tuple[str, Iterable[str]]]:
    if span in known_in(path).words or span in targets() or is_file(span):
        return
    if re.fullmatch(r"--?[a-z][\w-]*", span):
        if span not in all_options():
            yield span, all_options()
        return
    if span.startswith(allowed.SYSTEM_PATHS) or re.fullmatch(r"\.[\w.]+|build/.*", span):
        return
    if FILE.fullmatch(span) or re.fullmatch(r"/?[\w.*<>-]+(/[\w.*<>-]*)+", span):
        if not is_file(span):
            yield span, tracked()
        return
    rest = STRING.sub('""', span)
    for option in re.findall(r"(?<!\S)--[a-z][\w-]*", rest):
        if option not in all_options():
            yield option, all_options()
    rest = re.sub(r"(?<!\S)--?[a-z][\w-]*|0x[0-9a-f]+|\b\d[\w.]*", " ", rest)
    for at in CHAIN.finditer(rest):
        if at[2] and not _is_call(at[1], path):
            yield f"{at[1]}()", known_in(path).functions
        elif not at[2] and not _is_known(at[1], path):
            yield at[1], known_in(path).names


@cache
def _external(name: str) -> bool:
    """A builtin, or something of the standard library or numpy, looked up there."""
    first, *rest = name.split(".")
    if first == "np":
        first = "numpy"
    if hasattr(builtins, first) or keyword.iskeyword(first):
        return True
    if not rest:
        return name in sys.stdlib_module_names or any(
            hasattr(importlib.import_module(module), name) for module in SYSTEM
        )
    if first != "numpy" and first not in sys.stdlib_module_names:
        return False
    for depth in range(len(rest), -1, -1):
        try:
            found = importlib.import_module(".".join([first, *rest[:depth]]))
        except ImportError:
            continue
        for part in rest[depth:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def _is_call(name: str, path: str) -> bool:
    *owners, last = name.split(".")
    if last in allowed.KERNEL or _external(name):
        return True
    if not owners:
        return last in known_in(path).functions or (path.endswith(SOURCES) and last in words_of(path))
    return _is_known(name, path) and (last in known_in(path).functions or last in words_of_comment(path))


def words_of_comment(path: str) -> frozenset[str]:
    return words_of(path) if path.endswith(SOURCES) else frozenset()


def _is_known(name: str, path: str) -> bool:
    if name in allowed.KERNEL or _external(name):
        return True
    own = words_of_comment(path)
    parts = name.split(".")
    names, words = known_in(path).names, known_in(path).words
    if name.endswith("_"):
        return any(known.startswith(name) for known in names)
    if re.fullmatch("[A-Z]+", name):
        return True  # an abbreviation, or what an argument stands for
    if len(parts) == 1:
        return len(name) == 1 or name in names or name in words or name in own or is_file(name)
    if all(part in allowed.KERNEL for part in parts):
        return True
    for owner, member in itertools.pairwise(parts):
        known = known_in(path).members_of(INSTANCES.get(owner, owner))
        if known and member not in known and member not in own:
            return False
    return all(part in names or part in own or part in INSTANCES for part in parts)
