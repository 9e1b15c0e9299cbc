"""The protocol's models: spin visits every interleaving with death before any write.

Each model is exhausted at a small size, and each deliberate mistake (`-D BUG_x`) must be found, so
that a model which can no longer fail is noticed. To look at one by hand:

    spin -a -DBUG_SCAN_OPEN lazy_purge.pml && gcc -DSAFETY -o pan pan.c && ./pan -m100000
    spin -DBUG_SCAN_OPEN -t -p -g lazy_purge.pml
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent

needs_spin = [
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin not installed"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc not installed"),
]

# What a model is exhausted with here, and what its bugs are looked for with. Larger sizes that were
# exhausted once are in docs/decisions/0001.
SIZE = {
    "split_merge": ["-DDEATHS=1"],
    "lazy_purge": ["-DDEATHS=1"],
    "llist": ["-DDEATHS=1", "-DROUNDS=2"],
    "magazine_drain": ["-DDEATHS=1", "-DOPS=1"],
    "share": ["-DDEATHS=1"],
    "join_recover": ["-DDEATHS=2"],
}
BUG_SIZE = {model: ["-DDEATHS=2"] for model in SIZE} | {"share": ["-DDEATHS=1"], "magazine_drain": ["-DDEATHS=1"]}


def bugs(model: str) -> list[str]:
    return sorted(set(re.findall(r"\bBUG_\w+", (HERE / f"{model}.pml").read_text())))


def verify(model: str, defines: list[str], tmp_path: Path) -> str:
    """Build the verifier of one model and return its report; the search must have been complete."""
    source = shutil.copy(HERE / f"{model}.pml", tmp_path)
    for command in (
        ["spin", "-a", *defines, source],
        # -O0: the verifier is one huge function, optimising it takes longer than running it.
        ["gcc", "-O0", "-w", "-DSAFETY", "-DVECTORSZ=1024", "-DMEMLIM=4096", "-o", "pan", "pan.c"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    report = subprocess.run(["./pan", "-m100000", "-w22"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert "errors:" in report, report
    assert "max search depth too small" not in report and "out of memory" not in report, report
    return report


def test_every_model_has_a_size_and_a_deliberate_bug():
    assert {path.stem for path in HERE.glob("*.pml")} == set(SIZE)
    assert all(bugs(model) for model in SIZE)


@pytest.mark.parametrize("model", SIZE)
class TestSpin:
    pytestmark = needs_spin

    def test_no_interleaving_with_deaths_breaks_the_protocol(self, model, tmp_path):
        report = verify(model, SIZE[model], tmp_path)
        states = int(re.search(r"(\d+) states, stored", report)[1])
        assert "errors: 0" in report, report
        assert "Search not completed" not in report, report
        assert states > 50_000, report  # a model that stops early proves nothing


@pytest.mark.parametrize(("model", "bug"), [(model, bug) for model in SIZE for bug in bugs(model)])
class TestSpinFindsBugs:
    pytestmark = needs_spin

    def test_a_deliberate_bug_is_found(self, model, bug, tmp_path):
        report = verify(model, [*BUG_SIZE[model], f"-D{bug}"], tmp_path)
        assert "errors: 1" in report, report
