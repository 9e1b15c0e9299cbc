# SPDX-License-Identifier: MIT
"""Compare, questions, validation: numbers to tables, pages and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.docs.sources import text

from vmalloc.simulate import validate
from vmalloc.simulate.calibrate import RANKED, RUN_S, Beside, found_in, ranking, rounds_of, table
from vmalloc.simulate.compare import Group, draw, grid, group, markdown
from vmalloc.simulate.plan import Plan
from vmalloc.simulate.published import V1_CALIBRATES, V1_DEFAULT
from vmalloc.simulate.questions import QUESTIONS, answers, base_plan, page, plans_of
from vmalloc.simulate.sweep import run_sweep
from vmalloc.simulate.validate import Figure, Source


def group_of(label: str, *rates: float) -> Group:
    rows = tuple({"pairs_per_s": rate, "pooled_mean_mib": 1.0, "lazy_mean_mib": 2.0} for rate in rates)
    return Group(Plan(), label, 64, rows)


def test_the_uncertainty_is_students_interval_over_the_seeds() -> None:
    one = group_of("a", 1.0, 2.0, 3.0)
    assert one.mean("pairs_per_s") == 2.0
    assert one.half_width("pairs_per_s") == pytest.approx(4.30 / 3**0.5)
    assert group_of("a", 1.0).half_width("pairs_per_s") == 0.0


def test_a_difference_counts_if_the_intervals_lie_apart() -> None:
    today, same, more = (
        group_of("today", 10, 11, 12),
        group_of("same", 11, 12, 13),
        group_of("more", 20, 21, 22),
    )
    lines = answers([today, same, more])
    assert "no difference seen" in lines[0]
    assert "91% more" in lines[1]


def test_a_table_has_a_row_for_each_design_and_number_of_cpus(tmp_path: Path) -> None:
    base = Plan(run_test_mask=1, test_loop_count=100, shrunk=1)
    plans = grid(base, ["linux-6.8", "linux-6.9"], [2, 4], seeds=2)
    groups = group(plans, run_sweep(plans))
    assert [(one.label, one.cpus, len(one.rows)) for one in groups] == [
        ("linux-6.8", 2, 2), ("linux-6.8", 4, 2), ("linux-6.9", 2, 2), ("linux-6.9", 4, 2),
    ]  # fmt: skip
    assert len(markdown(groups).splitlines()) == 2 + 4
    draw(groups, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_becomes_a_page(tmp_path: Path, name: str) -> None:
    plans, labels = plans_of(QUESTIONS[name], base_plan(test_loop_count=2000, cpus=2), seeds=2)
    written = page(name, plans, run_sweep(plans), labels, tmp_path).read_text()
    for part in (
        "**The question.**",
        "**What was run.**",
        "**The answer**",
        "**How sure.**",
        " purges in a run this is a first look",
        f"({name}.png)",
    ):
        assert part in written
    assert all(label in written for label in QUESTIONS[name].variants)
    assert (tmp_path / f"{name}.png").exists()


def test_the_committed_pages_are_those_of_the_questions() -> None:
    for name, question in QUESTIONS.items():
        assert text(f"docs/simulator/{name}.md").startswith(f"# {question.title}\n")


def test_a_source_has_one_vote_and_what_calibrates_has_none() -> None:
    figures = [Figure("a", 10, 11, "s"), Figure("b", 10, 13, "s"), Figure("c", 10, 50, "s", scored=False)]
    assert Source("x", figures).vote == pytest.approx(0.2)
    assert Source("x", figures[2:]).vote is None


def test_a_missed_bar_is_said() -> None:
    times = [Figure("before", 650, 222, "s"), Figure("after", 50, 22, "s"), Figure("ratio", 13, 10.1, "")]
    written = validate.bars([Source("headline", times)])
    assert "| both its times | within 1.5x | 2.93x | **missed** |" in written
    assert "| the headline's ratio | within 25% | -22% | met |" in written


def test_v1s_calibrating_points_are_not_scored() -> None:
    def run(plans: list[Plan]) -> list[dict[str, Any]]:
        return [{"us_per_pair": 1.0} for _ in plans]

    figures = validate.v1_default(run).figures
    assert len(figures) == len(V1_DEFAULT)
    assert {int(one.name.split()[0]) for one in figures if not one.scored} == set(V1_CALIBRATES)


def test_the_order_of_designs_is_compared_where_they_differ_clearly() -> None:
    found = [Beside("a", 2, 100, 100), Beside("b", 2, 200, 150), Beside("c", 2, 205, 80)]
    clear, others = ranking(found, 2)
    assert clear == 2  # b-c is close as measured
    assert [(fast.pools, slow.pools) for fast, slow in others] == [("a", "c")]


def test_the_table_says_which_designs_are_the_other_way_round() -> None:
    found = [Beside("a", 2, 100, 100), Beside("b", 2, 200, 150), Beside("c", 2, 205, 80)]
    written = table("this machine", found)
    assert "| 2 | b | 200.0 | 150.0 | 0.75 |" in written
    assert "* 2 workers: 1 of 2 pairs are in the same order. Not a before c." in written


def test_the_validation_page_has_what_was_measured_on_one_machine() -> None:
    folder = Path(__file__).parent.parent.parent / "docs/simulator"
    section = validate.here_section(folder)
    assert section in (folder / "validation.md").read_text()
    for workers in RANKED:
        clear, others = ranking(found_in(folder / "here.json")[1], workers)
        assert clear >= 10
        assert not others


def test_without_a_measurement_the_validation_page_has_no_such_section(tmp_path) -> None:
    assert validate.here_section(tmp_path) == ""


def test_a_round_of_the_suite_lasts_long_enough_to_be_measured() -> None:
    for ns, workers in ((17, 1), (17, 64), (1500, 2), (1500, 64)):
        assert rounds_of(ns, workers) * workers * ns == pytest.approx(RUN_S * 1e9, rel=0.01)
    assert rounds_of(1e12, 64) == 1
