# SPDX-License-Identifier: MIT
"""`vmalloc bench handover`: what it prints, writes, survives and clears away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("numpy")

import numpy as np

from vmalloc.bench import faults, processes
from vmalloc.bench.handover import machine
from vmalloc.bench.peers import PEERS, Entry
from vmalloc.bench.peers.alone import Alone
from vmalloc.bench.peers.peer import Array, Peer, expected, fill, read
from vmalloc.cli import bench as command
from vmalloc.cli import main

PAGE = os.sysconf("SC_PAGESIZE")
RESULT_KEYS = {
    "way", "nbytes", "peer", "title", "rounds", "median_us", "quartiles_us", "times_ours", "minor_faults",
    "major_faults", "fault_share", "cold_us", "cold_faults", "times_us",
}  # fmt: skip
SMALL = ("--peers", "vmalloc,copied,stock,shm,alone", "--sizes", "4K,1M", "--rounds", "2")


def handover(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", "handover", *words])


class Broken(Alone):
    """Starts and goes wrong in one way."""

    def __init__(self, prefix: str, start_method: str | None = None) -> None:
        super().__init__(prefix, start_method)
        print("printed by a peer, which must not disturb the answers", flush=True)


class NeverStarts(Broken):
    def start(self) -> None:
        raise RuntimeError("the store is closed")


class HandsOverSomethingElse(Broken):
    def hand_over(self, nbytes: int, seed: int) -> int:
        return expected(nbytes, seed) ^ 1


class Dies(Broken):
    def hand_over(self, nbytes: int, seed: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


class Raises(Broken):
    def fetch(self, nbytes: int, seed: int) -> Array:
        raise MemoryError("no room for it")


class IsSilent(Broken):
    def hand_over(self, nbytes: int, seed: int) -> int:
        time.sleep(60)
        return 0


class LeavesThings(Peer):
    """A process in a session of its own and a file in shared memory, both there after stop()."""

    def start(self) -> None:
        Path(f"/dev/shm/{self.prefix}left").write_text("left")
        self.child = subprocess.Popen(["sleep", "100"], start_new_session=True)
        Path(os.environ["VMALLOC_TEST_LEFT"]).write_text(str(self.child.pid))

    def hand_over(self, nbytes: int, seed: int) -> int:
        return expected(nbytes, seed)

    def stop(self) -> None:
        self.child.returncode = 0  # Popen would wait for it


@pytest.fixture
def played_by(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let a class of this file play the peer `shm` in both ways."""

    def play(cls: type[Peer]) -> None:
        role = (cls.__name__, f"{__name__}:{cls.__name__}")
        monkeypatch.setitem(PEERS, "shm", Entry("shm", role, role))

    return play


def leftovers() -> list[Path]:
    """Files of this process's runs."""
    return [
        path
        for place in ("/dev/shm", tempfile.gettempdir())
        for path in Path(place).glob(f"vmb{os.getpid()}-*")
    ]


def test_help_names_an_example_and_every_peer() -> None:
    text = handover("--help").output
    assert "vmalloc bench handover --sizes 1M,64M" in text
    assert all(name in text for name in PEERS)


def test_it_shows_every_peer_and_size_in_80_columns_and_leaves_nothing() -> None:
    done = handover(*SMALL)
    assert done.exit_code == 0, done.output
    tables, _, _ = done.output.partition(machine())
    assert max(len(line) for line in tables.splitlines()) <= 80
    for title in (
        "vmalloc, copied in",
        "multiprocessing.Queue",
        "ProcessPoolExecutor",
        "(one process alone)",
    ):
        assert title in done.output
    assert done.output.count("4 KiB, 2 rounds") == 2
    assert "Warm: " in done.output
    assert "failed" not in done.output
    assert leftovers() == []


def test_json_has_a_line_for_every_way_size_and_peer(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert handover(*SMALL, "--json", str(path)).exit_code == 0
    found = json.loads(path.read_text())
    assert [set(line) for line in found["results"]] == [RESULT_KEYS] * 20
    assert {line["times_ours"] for line in found["results"] if line["peer"] == "vmalloc"} == {1.0}
    assert all(len(line["times_us"]) == line["rounds"] == 2 for line in found["results"])
    assert set(found["us_per_fault"]) == {"shared", "private", "attached"}
    blocks = [line for line in found["results"] if (line["peer"], line["nbytes"]) == ("shm", 1 << 20)]
    assert all(line["minor_faults"] >= (1 << 20) / PAGE for line in blocks)  # every page of a block is new


def test_json_on_standard_output_is_alone_there() -> None:
    done = handover(
        "--peers", "vmalloc,alone", "--sizes", "4K", "--ways", "task", "--rounds", "1", "--json", "-"
    )
    assert len(json.loads(done.stdout)["results"]) == 2
    assert "times ours" in done.stderr


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    assert (
        handover(
            "--peers", "vmalloc,alone", "--sizes", "4K,8K", "--rounds", "2", "--plot", str(path)
        ).exit_code
        == 0
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "ray", replace(PEERS["ray"], package="a_package_that_nobody_has"))
    done = handover("--peers", "alone,ray", "--sizes", "4K", "--rounds", "1")
    assert done.exit_code == 0
    assert "ray: not installed: pip install ray" in done.output


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (NeverStarts, "(queue, start): RuntimeError: the store is closed"),
        (HandsOverSomethingElse, "(queue 4 KiB): what arrived is not what was sent"),
        (Dies, "(queue 4 KiB): killed by signal 9: printed by a peer"),
        (Raises, "(queue 4 KiB): MemoryError: no room for it"),
        (IsSilent, "(queue 4 KiB): no answer within 1 s"),
    ],
)
def test_a_peer_that_fails_is_reported_and_the_others_go_on(played_by, cls: type[Peer], reason: str) -> None:  # type: ignore[no-untyped-def]
    played_by(cls)
    words = ("--peers", "shm,alone", "--ways", "queue", "--sizes", "4K,8K", "--rounds", "3", "--timeout", "1")
    done = handover(*words)
    assert done.exit_code == 0, done.output
    assert f"{cls.__name__} failed {reason}" in done.output
    assert done.output.count("3 rounds") == 2
    assert leftovers() == []


def test_what_a_peer_leaves_behind_is_cleared_away(
    played_by,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played_by(LeavesThings)
    monkeypatch.setenv("VMALLOC_TEST_LEFT", str(tmp_path / "pid"))
    done = handover("--peers", "shm", "--ways", "queue", "--sizes", "4K", "--rounds", "1")
    assert done.exit_code == 0, done.output
    assert leftovers() == []
    assert processes.start_of(int((tmp_path / "pid").read_text())) is None


def test_ctrl_c_shows_what_was_measured_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupting() -> Iterator[object]:
        def show(what: str, share: float) -> None:
            if share > 0:  # the first round is over
                os.kill(os.getpid(), signal.SIGINT)

        yield show

    monkeypatch.setattr(command, "_progress_bar", interrupting)
    done = handover("--peers", "alone,stock", "--sizes", "4K,1M", "--rounds", "1000")
    assert done.exit_code == 130
    assert "4 KiB, 1 rounds" in done.output
    assert "1 MiB" not in done.output
    assert "Interrupted" in done.output
    assert leftovers() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--peers", "vmalloc,pigeon"], "'pigeon' is no peer; the peers are vmalloc, copied, stock,"),
        (["--peers", "stock,stock"], "name each peer once"),
        (["--ways", "post"], "'post' is no way; the ways are queue, task"),
        (["--sizes", "much"], "'much' is no size"),
        (["--sizes", "60"], "a size is a multiple of 8 from 64 bytes on, not 60"),
        (["--sizes", ","], "name at least one size"),
        (["--json", "/nowhere/out.json"], "there is no directory /nowhere"),
    ],
)
def test_an_error_is_one_line_and_names_what_is_allowed(words: list[str], says: str) -> None:
    done = handover(*words)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.splitlines()) == 1


def test_without_numpy_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['numpy'] = None\nfrom vmalloc.cli import main; main()"
    command = [sys.executable, "-c", script, "bench", "handover"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "this needs numpy: pip install 'vmalloc[bench]'" in done.stderr


def test_reading_tells_every_change_of_a_word_and_an_older_array() -> None:
    array = np.empty(512, np.uint64)
    fill(array, 7)
    assert read(array) == expected(4096, 7)
    assert read(array) != expected(4096, 8)
    assert read(array[:-1]) != expected(4096, 7)
    for place in (0, 255, 511):
        fill(array, 7)
        array[place] ^= np.uint64(1)
        assert read(array) != expected(4096, 7)


def test_faults_count_what_a_process_touches_first() -> None:
    pid = os.getpid()
    before = faults.count([pid])
    fd = os.memfd_create("touched")
    os.ftruncate(fd, 100 * PAGE)
    memory = np.memmap(f"/proc/self/fd/{fd}", np.uint8, "r+")
    memory[::PAGE] = 1
    os.close(fd)
    assert faults.count([pid]).since(before).minor >= 100
    assert pid in processes.tree(os.getppid())
