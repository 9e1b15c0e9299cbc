# SPDX-License-Identifier: MIT
"""What every command does alike: help, JSON, one line for what is wrong, exit status."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import vmalloc
from vmalloc.cli import COMMANDS, main, manners

PROGRAM = [sys.executable, "-m", "vmalloc.cli"]
NOT_THERE = ("numpy", "sortedcontainers", "pyarrow", "zstandard", "matplotlib", "sklearn")
NO_EXTRAS = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {NOT_THERE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
WITHOUT_EXTRAS = NO_EXTRAS + "from vmalloc.cli import main; main(prog_name='vmalloc')"


def run(*words: object, stdin: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def all_commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", inner) for sub, inner in command.commands.items())


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M", name=f"manners-{os.getpid()}", helper=False)
    yield region
    region.close()


# ---- help ----


@pytest.mark.parametrize("module", ["vmalloc", "vmalloc.cli"])
def test_the_package_is_the_command_too(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout
    assert done.stdout.startswith("Usage: vmalloc ")


@pytest.mark.parametrize("name", [name for name, _ in all_commands()])
def test_help_has_an_example_and_needs_no_extra(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *name.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"(?m)^ +(eval \"\$\()?vmalloc {name}", done.stdout)


@pytest.mark.parametrize(("words", "status"), [("--help", 0), ("ps --help", 0), ("ps --no-such", 2)])
def test_the_first_click_that_is_allowed_has_fewer_errors(
    words: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(click.exceptions, "NoArgsIsHelpError"):
        monkeypatch.delattr(click.exceptions, "NoArgsIsHelpError")
    done = CliRunner().invoke(main, words)
    assert isinstance(done.exception, SystemExit | None)
    assert done.exit_code == status


@pytest.mark.parametrize("name", [n for n, c in all_commands() if not isinstance(c, click.Group)])
def test_the_first_click_that_is_allowed_asks_for_no_more_than_the_parameter(name: str) -> None:
    types = [param.type for param in dict(all_commands())[name].params]
    for own in (kind for kind in types if kind.get_metavar.__module__.startswith("vmalloc.")):
        own.get_metavar(click.Argument(["x"]))  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["", *(name for name, _ in all_commands())])
def test_help_fits_a_terminal_of_80_columns(name: str) -> None:
    shown = run(*name.split(), "--help", env=os.environ | {"COLUMNS": "80"}).stdout.splitlines()
    assert [line for line in shown if len(line) > 80] == []


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys\nfrom vmalloc.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'rich', 'numpy', 'vmalloc.region', 'vmalloc.suite'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("name", ["", *(name for name, _ in all_commands())])
def test_help_is_there_soon(name: str) -> None:
    """150 ms on a machine that does nothing else; CPU time here, for others may be at work."""
    best = 10.0
    for _ in range(3):
        before = os.times()
        run(*name.split(), "--help")
        after = os.times()
        best = min(best, sum(after[2:4]) - sum(before[2:4]))
    assert best < 0.3


# ---- JSON ----


@pytest.mark.parametrize("name", [n for n, c in all_commands() if not isinstance(c, click.Group)])
def test_json_means_the_same_in_every_command(name: str) -> None:
    if name == "completion":
        return
    option = next(p for p in dict(all_commands())[name].params if "--json" in p.opts)
    assert isinstance(option, click.Option)
    assert (option.name, option.metavar) == ("json_path", "[FILE|-]")


@pytest.mark.parametrize("words", [["ps"], ["doctor"], ["info", "REGION"], ["check", "REGION"]])
def test_json_is_alone_on_standard_output(words: list[str], region: vmalloc.Region, tmp_path: Path) -> None:
    words = [region.name if word == "REGION" else word for word in words]
    for before in (True, False):
        ordered = [words[0], "--json", *words[1:]] if before else [*words, "--json"]
        json.loads(run(*ordered).stdout)
    path = tmp_path / "out.json"
    table = run(*words, "--json", path)
    assert json.loads(path.read_text())
    assert table.stdout.strip()
    assert run(*words, "--json=-").stdout.startswith(("[", "{"))


def test_json_takes_no_argument_for_a_file(region: vmalloc.Region) -> None:
    assert json.loads(run("check", "--json", region.name).stdout)["region"] == region.id
    assert not Path(region.name).exists()


def test_json_of_a_recorded_program_is_left_to_it() -> None:
    record = dict(all_commands())["record"]
    context = record.make_context("record", ["--kernel", "--", "tool", "--json", "x"])
    assert context.params["command"] == ("tool", "--json", "x")
    context = record.make_context("record", ["--kernel", "-o", "f.gz", "--json", "tool", "--json"])
    assert (context.params["json_path"], context.params["command"]) == ("-", ("tool", "--json"))


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["replay", __file__, "--predict"], "vmalloc[lab]"),
        (["bench", "handover"], "vmalloc[bench]"),
    ],
)
def test_a_missing_extra_is_one_line(words: list[str], extra: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"pip install '{extra}'" in done.stderr


@pytest.mark.parametrize("words", ["ps", "record x", "bench handover"])
def test_without_the_core_one_line_says_where_it_is_built(words: str) -> None:
    code = WITHOUT_EXTRAS.replace(str(NOT_THERE), str((manners.CORE,)))
    with vmalloc.Region("1M"):  # where there is no region, ps has nothing to ask the core
        done = subprocess.run(
            [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr == "Error: this needs the compiled core, which is built on Linux only\n"


def test_arrays_say_what_to_install() -> None:
    code = NO_EXTRAS + "import vmalloc; vmalloc.Region('1M').empty(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'vmalloc[numpy]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["ps"], ["doctor"], ["ps", "--json"], ["suite", "--help"]])
def test_a_full_disk_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "No space left" in line] == done.stderr.splitlines()


def test_a_full_disk_is_named_with_the_file_that_was_to_be_written() -> None:
    done = run("doctor", "--json=/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: /dev/full: No space left on device")


@pytest.mark.parametrize("words", [["ps"], ["doctor"], ["completion", "bash"]])
def test_a_closed_pipe_is_silent(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PROGRAM, *words], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (manners.CLOSED_PIPE, "")


@pytest.mark.parametrize("words", ["ps", "info --kernel /dev/null", "suite test_loop_count=10", "no-such"])
@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_a_closed_stream_leads_nowhere(words: str, closed: str) -> None:
    code = f"exec {sys.executable} -m vmalloc.cli {words} " + " ".join(f"{n}>&-" for n in closed.split())
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == (2 if words in ("info --kernel /dev/null", "no-such") else 0)


@pytest.mark.parametrize(
    "words",
    [
        ["ps", "--json=/nowhere/x.json"],
        ["check", "no-such"],
        ["info", "no-such"],
        ["info"],
        ["check", "/etc/passwd"],
        ["top", "--once", "no-such"],
        ["no-such-command"],
        ["--no-such-option"],
        ["ps", "--no-such-option"],
        ["replay", "no-such-file"],
        ["record"],
        ["hold"],
        ["completion", "no-such-shell"],
    ],
)
def test_what_is_not_there_is_one_line_and_status_2(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Errno" not in done.stderr


def test_a_region_larger_than_ulimit_v_is_one_line() -> None:
    code = f"ulimit -v 3000000; exec {sys.executable} -m vmalloc.cli hold too-large --size 100G"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "raise ulimit -v" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount something over /proc needs root")
@pytest.mark.parametrize("words", ["ps", "info no-such", "top --once no-such", "check no-such", "hold x"])
def test_without_proc_one_line_says_so(words: str) -> None:
    code = f"mount -t tmpfs none /proc; exec {sys.executable} -m vmalloc.cli {words}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert len(done.stderr.splitlines()) == 1
    assert "/proc" in done.stderr
    assert "mount" in done.stderr


@pytest.mark.parametrize("text", ["much", "-1", "0"])
def test_a_size_that_is_none_is_one_line(text: str) -> None:
    done = run("hold", "x", f"--size={text}")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --size: ")
    assert len(done.stderr.splitlines()) == 1


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run("doctor").stdout
    assert "\x1b" not in run("suite", "test_loop_count=10", "nr_threads=2", "test_repeat_count=1").stdout


def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def printed() -> str:
        terminal = Terminal()
        manners.console(terminal).print("[red]x")
        return terminal.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_completion(shell: str) -> None:
    assert "_VMALLOC_COMPLETE" in run("completion", shell).stdout


def test_a_shell_completes_options() -> None:
    env = os.environ | {
        "_VMALLOC_COMPLETE": "bash_complete",
        "COMP_WORDS": "vmalloc info --",
        "COMP_CWORD": "2",
    }
    code = "from vmalloc.cli import main; main(prog_name='vmalloc')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert {"plain,--kernel", "plain,--all", "plain,--json"} <= set(done.stdout.split())


def test_a_shell_completes_commands() -> None:
    assert "_VMALLOC_COMPLETE" in run("completion", "bash").stdout
    env = os.environ | {"_VMALLOC_COMPLETE": "bash_complete", "COMP_WORDS": "vmalloc do", "COMP_CWORD": "1"}
    code = "from vmalloc.cli import main; main(prog_name='vmalloc')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["plain,doctor"]


# ---- names and numbers ----


def test_names_are_made_safe_for_terminals() -> None:
    assert manners.safe("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert manners.safe("Bilder-ü") == "Bilder-ü"
    assert manners.safe("\udcff") == "\\udcff"
    assert manners.safe("abcdef", 4) == "abc…"


def test_sizes_and_ages_are_short() -> None:
    sizes = [0, 512, 4096, 16 << 20, 1000 << 20, 3 << 29, None]
    assert [manners.human_bytes(n) for n in sizes] == ["0", "512", "4.0K", "16M", "1.0G", "1.5G", "-"]
    ages = [0.5, 100, 150, 7300, 3600 * 50, None]
    assert [manners.human_age(s) for s in ages] == ["0s", "100s", "2m", "2h", "2d", "-"]


# ---- a keeper ----


def test_a_keeper_keeps_what_is_named_until_it_is_told_to_end(tmp_path: Path) -> None:
    name, path = f"kept-{os.getpid()}", tmp_path / "region.sock"
    words = ["--size=16M", f"--socket={path}", "--allow-uid=5", "--allow-uid=6"]
    keeper = subprocess.Popen([*PROGRAM, "hold", name, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline().startswith(f"holding {name} (16 MiB)")
        put = "import sys, vmalloc; r = vmalloc.Region.open_or_create(sys.argv[1]); r['x'] = r.alloc(9)"
        subprocess.run([sys.executable, "-c", put, name], check=True, timeout=60)
        region = vmalloc.Region.attach(f"unix:{path}")
        assert (region.names(), region.name, region.size) == (["x"], name, 16 << 20)
        assert path.stat().st_mode & 0o777 == 0o666
        region.close()
        del region
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(10) == 0
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()
    time.sleep(0.1)
    assert not path.exists()
    with pytest.raises(vmalloc.RegionUnavailable):
        vmalloc.Region.attach(name)


@pytest.mark.parametrize(
    "words",
    [
        ("a/b",),
        ("",),
        ("hold-x", "--size", "1M", "--socket", "/tmp/" + "s" * 200),
        ("hold-x", "--allow-uid", "5"),
    ],
)
def test_a_name_or_path_that_cannot_be_is_told_in_one_line(words: tuple[str, ...]) -> None:
    done = run("hold", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_record_writes_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vmalloc.lab import record_kernel as recorder

    asked: list[Path] = []

    def refuse(trace: Path, **_: object) -> None:
        asked.append(trace)
        raise recorder.RecordError("refused")

    monkeypatch.setattr(recorder, "record_kernel", refuse)
    words = ["record", "--kernel", "-o", str(tmp_path / "x.gz"), "--json"]
    assert CliRunner().invoke(main, words).exit_code == 1
    assert asked == [tmp_path / "x.gz"]
