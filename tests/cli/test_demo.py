# SPDX-License-Identifier: MIT
"""`python -m vmalloc.demo`: both halves, small, and what it says about what is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vmalloc import demo
from vmalloc.suite import Parameters

np = pytest.importorskip("numpy")

TINY = Parameters(nr_threads=2, run_test_mask=1, test_loop_count=50)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)


def pictures() -> list[object]:
    return [np.full((64, 64, 3), value, "u1") for value in (10, 200)]


def test_photographs_arrive_through_a_region_and_through_stock_multiprocessing() -> None:
    lines = demo.hand_overs(pictures(), rounds=3)  # type: ignore[arg-type]
    assert [line.what for line in lines] == [
        "Queue: a photograph", "Queue: 32 in one array", "Pool.map: 32 photographs",
    ]  # fmt: skip
    assert [line.nbytes for line in lines] == [64 * 64 * 3, 32 * 64 * 64 * 3, 32 * 64 * 64 * 3]
    assert all(line.stock_us > 0 and line.region_us > 0 for line in lines)


def test_it_prints_both_tables_and_draws_one_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "photographs", pictures)
    assert demo.main(["--quick", "--out", str(tmp_path / "demo.png")]) == 0
    text = capsys.readouterr().out
    assert "magazine" in text
    assert "photographs to another process" in text
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_without_scikit_learn_and_matplotlib_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("sklearn", "sklearn.datasets", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert demo.main(["--quick", "--out", str(tmp_path / "demo.png")]) == 0
    text = capsys.readouterr().out
    assert "scikit-learn is not installed" in text
    assert "matplotlib is not installed" in text
    assert not (tmp_path / "demo.png").exists()
