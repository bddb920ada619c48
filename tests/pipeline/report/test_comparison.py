"""Runs side by side: their order, their names, the paper's figures."""

import pytest
from dhkd.data.runs.read import naturally
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.panels import accuracy_values

from tests.runs import run_of


def test_the_papers_figure_is_that_of_pair_and_method() -> None:
    runs = [run_of(0, 68.0, objective="ce"), run_of(0, 70.0), run_of(0, 50.0, student__architecture="resnet8")]
    rows = {row.name: row.published for row in compare(runs).rows}
    assert rows == {"resnet8, kd": None, "resnet20, ce": 69.06, "resnet20, kd": 70.66}


@pytest.mark.parametrize(("top1", "marks"), [(70.0, {"ce": 69.06, "kd": 70.66}), (30.0, {})])
def test_a_picture_shows_the_papers_figure_where_runs_come_near_it(top1: float, marks: dict[str, float]) -> None:
    runs = [
        run_of(seed, top1 - 0.5 * seed - (name == "ce"), objective=name) for name in ("ce", "kd") for seed in (0, 1)
    ]
    values = accuracy_values(runs, compare(runs))
    assert values.marks == marks
    assert values.of_seeds == {"ce": [top1 - 1, top1 - 1.5], "kd": [top1, top1 - 0.5]}


def test_rows_are_sorted_as_people_do_with_the_baseline_first() -> None:
    runs = [
        run_of(0, 1.0, student__lr=lr, objective=objective, student__batch_size=size)
        for lr in (0.1, 0.05)
        for objective in ("ce", "kd", "dkd")
        for size in (128, 64)
    ]
    compared = compare(runs, "objective=kd")
    assert compared.axes == ["lr", "batch_size", "objective"]
    assert [tuple(row.values.values()) for row in compared.rows] == [
        (lr, size, objective) for lr in (0.05, 0.1) for size in (64, 128) for objective in ("kd", "ce", "dkd")
    ]
    assert compared.rows[0].name == "kd, lr=0.05, batch_size=64"


def test_numbers_in_names_are_numbers() -> None:
    names = ["b", "a10", "a2", "a0.5", "a0.25", "a"]
    assert sorted(names, key=naturally) == ["a", "a0.25", "a0.5", "a2", "a10", "b"]
