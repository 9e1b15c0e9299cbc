# SPDX-License-Identifier: MIT
"""What all commands have in common: --json, tables, sizes, names of strangers, and errors in one line.

A command raises what it likes: `one_line()` makes of a missing package, a full disk, a closed pipe, an
error of ours and Ctrl-C one line and an exit status. Only mistakes in this program still show a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # of older versions, no generic

__all__ = [
    "INTERRUPTED",
    "Command",
    "Output",
    "ParamType",
    "Refusal",
    "Size",
    "console",
    "human_age",
    "human_bytes",
    "json_option",
    "one_line",
    "open_standard_streams",
    "plain_table",
    "safe",
    "told",
    "usage_in_one_line",
    "what_to_install",
]

INTERRUPTED = 130
CLOSED_PIPE = 141
"""As the shell says of a program that SIGPIPE ended."""

EXTRAS = {
    "numpy": "numpy",
    "sortedcontainers": "lab",
    "pyarrow": "lab",
    "zstandard": "lab",
    "matplotlib": "lab",
    "sklearn": "demo",
    "prometheus_client": "metrics",
    "plotly": "report",
}
"""Which extra of this package brings a module."""

CORE = "vmalloc._core"
_TABLE_WIDTH = 10_000  # no terminal: no line is folded, no column cut


class Refusal(click.ClickException):
    """Wrong usage, or nothing there to work on: one line without the usage text."""

    exit_code = 2


# ---- errors ----


def what_to_install(module: str | None, extra: str | None = None) -> str:
    """The line for a package that is not there. `extra` if the command has one of its own."""
    if module == CORE:
        return "this needs the compiled core, which is built on Linux only"
    root = (module or "").partition(".")[0]
    extra = extra or EXTRAS.get(root)
    return f"this needs {root}: pip install " + (f"'vmalloc[{extra}]'" if extra else root)


def _let_go_of_stdout() -> None:
    """Python flushes standard output when it ends, and would complain once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass  # no file at all, as in tests


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    remedy = {
        errno.ENOSPC: "; free some space or write elsewhere",
        errno.EMFILE: "; raise ulimit -n",
        errno.ENOMEM: "; raise ulimit -v or take a smaller size",
    }.get(error.errno or 0, "")
    return f"{where}{text}{remedy}"


def told(error: BaseException) -> str:
    """What an error says, without its number, and safe for terminals."""
    if isinstance(error, OSError) and error.strerror:
        return safe(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return safe(str(error))


@contextmanager
def usage_in_one_line() -> Iterator[None]:
    """As every other mistake; click prints the usage, an invitation and a blank before it."""
    try:
        yield
    except getattr(click.exceptions, "NoArgsIsHelpError", ()):  # before click 8.2 that was no error
        raise
    except click.UsageError as error:
        more = f"; {error.ctx.command_path} --help says more" if error.ctx else ""
        raise Refusal(safe(error.format_message().rstrip(".")) + more) from None


def open_standard_streams() -> None:
    """One that the caller closed, as `>&-` does, leads nowhere: else the next file would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


@contextmanager
def one_line() -> Iterator[None]:
    """Say what went wrong in one line, and end with the status for it."""
    from vmalloc.errors import VmallocError

    try:
        yield
        sys.stdout.flush()
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vmalloc") and error.name != CORE:
            raise  # a mistake of ours
        raise Refusal(what_to_install(error.name)) from None
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _let_go_of_stdout()
        raise SystemExit(CLOSED_PIPE) from None
    except VmallocError as error:
        raise click.ClickException(told(error)) from None
    except MemoryError as error:
        raise click.ClickException(
            f"out of memory: {str(error) or 'this process may have no more'}; raise ulimit -v"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _let_go_of_stdout()
        raise click.ClickException(_reason(error)) from None


# ---- text from strangers ----


def safe(text: str, most: int = 0) -> str:
    """`text` without what a terminal would obey: others are shown as \\x1b. At most `most` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    shown = shown.encode("utf-8", "backslashreplace").decode()  # what was no UTF-8 in a file's name
    return shown if not most or len(shown) <= most else shown[: most - 1] + "…"


class Size(ParamType):
    """Bytes, as 4096, 64K, 1.5G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from vmalloc.region import parse_size

        try:
            return parse_size(value)
        except (TypeError, ValueError) as error:
            where = f"{param.opts[-1]}: " if param is not None else ""
            raise Refusal(f"{where}{error}") from None


# ---- what goes out ----


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json [FILE|-]`: the same in every command, as `json_path`."""
    return click.option(
        "--json",
        "json_path",
        metavar="[FILE|-]",
        help="Results as JSON: alone to standard output, or to a file as NAME.json or --json=FILE.",
    )(command)


def _is_file_for_json(word: str) -> bool:
    """What stands behind `--json` may as well be the command's argument."""
    return word == "-" or word.endswith(".json")


class Command(click.Command):
    """A command whose `--json` may stand alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._with_json(ctx, args)))

    def _with_json(self, ctx: click.Context, args: list[str]) -> Iterator[str]:
        """The words with `--json` as `--json=-` or `--json=FILE`; what another command gets is left alone."""
        with_value = {
            name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts
        }
        words = iter(args)
        for word in words:
            is_option = word.startswith("-") and word != "-"
            if word == "--" or (not is_option and not ctx.allow_interspersed_args):
                yield from (word, *words)
            elif word == "--json":
                following = next(words, None)
                if following is None:
                    yield "--json=-"
                elif _is_file_for_json(following):
                    yield f"--json={following}"
                else:
                    yield "--json=-"
                    yield from self._with_json(ctx, [following, *words])
            else:
                yield word
                if word in with_value:
                    yield from (value for value in [next(words, None)] if value is not None)


class Output:
    """Where a command's table and its JSON go.

    With `--json` alone nothing else is on standard output: the table is on standard error, and only
    if the command asks for that.
    """

    def __init__(self, json_path: str | None = None) -> None:
        self.json_path = json_path
        self.json_is_alone = json_path == "-"
        if json_path is not None and not self.json_is_alone:
            folder = Path(json_path).absolute().parent
            if not folder.is_dir():  # now, and not after minutes of work
                raise Refusal(f"--json {json_path}: there is no directory {Path(json_path).parent}")

    @property
    def console(self) -> Console:
        """Tables keep their columns in pipes. Colours are for terminals, unless NO_COLOR is set."""
        stream = sys.stderr if self.json_is_alone else sys.stdout
        return console(stream)

    def json(self, what: Any) -> None:
        """Write `what` if it was asked for."""
        if self.json_path is None:
            return
        text = json.dumps(what, indent=1)
        if self.json_is_alone:
            click.echo(text)
        else:
            with _naming(self.json_path):
                Path(self.json_path).write_text(text + "\n")

    def json_list(self, head: Mapping[str, Any], name: str, items: Iterable[str]) -> None:
        """Write `head` and below it, as `name`, a list too long for objects: its text comes in parts."""
        if self.json_path is None:
            return
        text = chain([f'{json.dumps(head)[:-1]},\n "{name}": ['], items, ["]}\n"])
        if self.json_is_alone:
            sys.stdout.writelines(text)
        else:
            with _naming(self.json_path), open(self.json_path, "w") as out:
                out.writelines(text)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """An error of the system names the file also if it came with a write, as on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


def console(stream: Any) -> Console:
    """A rich console that never cuts a table in a pipe, and lets a closed pipe be known."""
    import rich.console

    class Piped(rich.console.Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Piped(file=stream, width=None if stream.isatty() else _TABLE_WIDTH, highlight=False)


def plain_table(
    rows: Sequence[Mapping[str, str]], columns: tuple[str, ...], right: tuple[str, ...]
) -> list[str]:
    """Lines with columns that stay apart by two blanks; `right` are the columns set to the right."""
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) if rows else len(c) for c in columns}

    def line(row: Mapping[str, str]) -> str:
        cells = (row[c].rjust(widths[c]) if c in right else row[c].ljust(widths[c]) for c in columns)
        return "  ".join(cells).rstrip()

    return [line({c: c for c in columns}), *map(line, rows)]


def human_bytes(nbytes: int | None) -> str:
    """Four digits at most, and a unit of 1024: 0, 512, 4.0K, 16M, 1.5G; "-" for None."""
    if nbytes is None:
        return "-"
    value, unit = float(nbytes), ""
    for following in "KMGTP":
        if value < 1000:
            break
        value, unit = value / 1024, following
    return f"{value:.1f}{unit}" if unit and value < 10 else f"{value:.0f}{unit}"


def human_age(seconds: float | None) -> str:
    """45s, 12m, 3h, 9d; "-" for None."""
    if seconds is None:
        return "-"
    for unit, length, most in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds // 86400:.0f}d"
