"""From runs and rows to what figures show: means over seeds, which lines there are, and in which panel."""

import math

import pytest
from dhkd.pipeline.report.panels import conflict_panels, curves_of, etf_panels, run_panels, views_panels
from dhkd.pipeline.report.rows import ConflictRow, EpochRow, EtfRow, ViewsRow

from tests.runs import epochs_of, run_of


def half(one: float, other: float) -> float:
    """Half of the range of two values, which is drawn in place of their interval."""
    return abs(one - other) / 2


def test_curves_are_means_over_seeds_by_epoch() -> None:
    first = epochs_of({"top1": 10.0, "loss": 2.0, "ce": 2.0}, {"top1": 20.0, "loss": 1.0, "ce": 1.0})
    second = epochs_of({"top1": 14.0, "loss": 2.5, "ce": 2.5})
    runs = [
        run_of(0, objective="ce", metrics=first),
        run_of(1, objective="ce", metrics=second),
        run_of(0, objective="kd", metrics=epochs_of({"top1": 30.0, "loss": 9.0})),
    ]
    rows, panels = curves_of(runs)
    deviation = pytest.approx(8**0.5)
    assert rows == [
        EpochRow("ce", 1, 2, 12.0, deviation, 2.25, pytest.approx(0.125**0.5), 2.25, pytest.approx(0.125**0.5)),
        EpochRow("ce", 2, 1, 20.0, None, 1.0, None, 1.0, None),
        EpochRow("kd", 1, 1, 30.0, None, 9.0, None, None, None),
    ]
    top1, loss, ce = panels
    assert (top1.ylabel, loss.ylabel, ce.ylabel) == (
        "test top-1 accuracy (%)", "training loss", "cross-entropy in training"
    )  # fmt: skip
    assert (top1.log_y, loss.log_y, ce.log_y) == (False, True, False)
    assert (list(top1.lines), list(ce.lines)) == (["ce", "kd"], ["ce"]), "kd computes no cross-entropy"
    line = top1.lines["ce"]
    assert (line.x, line.y, line.half) == ([1, 2], [12.0, 20.0], [pytest.approx(half(10, 14)), None])


def test_a_curve_that_no_run_has_gets_no_panel() -> None:
    _, panels = curves_of([run_of(0, metrics=epochs_of({"top1": 10.0}))])
    assert [panel.ylabel for panel in panels] == ["test top-1 accuracy (%)"]


def test_a_runs_own_panels() -> None:
    top1, loss = run_panels(run_of(0, metrics=epochs_of({"top1": 10.0, "loss": 2.0}, {"top1": 12.0, "loss": 1.0})))
    assert (top1.lines["test top-1 (%)"].y, loss.lines["training loss"].y) == ([10.0, 12.0], [2.0, 1.0])
    assert (top1.lines["test top-1 (%)"].x, top1.xlabel) == ([1, 2], "epoch")
    (only,) = run_panels(run_of(0, metrics=epochs_of({"top1": 10.0})))
    assert only.ylabel == "test top-1 (%)"


def views_row(runs: str, views: int, top1: float, half_interval: float | None) -> ViewsRow:
    return ViewsRow(runs, views, 2, top1, None, half_interval, None, None, None)


def test_a_line_of_accuracy_against_views_for_each_kind() -> None:
    rows = [views_row("kd", 1, 50.0, 2.0), views_row("kd", 10, 55.0, None), views_row("dhkd", 1, 60.0, None)]
    (panel,) = views_panels(rows)
    kd, dhkd = panel.lines["kd"], panel.lines["dhkd"]
    assert (kd.x, kd.y, kd.half) == ([1, 10], [50.0, 55.0], [2.0, None])
    assert (dhkd.x, dhkd.y) == ([1], [60.0])
    assert panel.log_x
    assert panel.every_x == [1, 10]


def conflict_row(runs: str, seed: int, epochs: int, on: str, cosine: float) -> ConflictRow:
    return ConflictRow(runs, seed, epochs, on, cosine, 0.5, None, None, None, None)


def test_cosines_are_means_over_seeds_in_a_panel_for_classifier_and_features() -> None:
    rows = [
        conflict_row("kd", 0, 0, "classifier", 0.5),
        conflict_row("kd", 0, 5, "classifier", 0.1),
        conflict_row("kd", 1, 0, "classifier", 0.7),
        conflict_row("kd", 1, 5, "classifier", math.nan),
        conflict_row("kd", 0, 0, "features", -0.5),
        conflict_row("dhkd", 0, 0, "features", 0.25),
    ]
    classifier, features = conflict_panels(rows)
    assert (classifier.ylabel, features.ylabel) == ("mean cosine on classifier", "mean cosine on features")
    line = classifier.lines["kd"]
    assert (line.x, line.y, line.half) == (
        [0, 5], [pytest.approx(0.6), 0.1], [pytest.approx(half(0.5, 0.7)), None]
    )  # fmt: skip
    assert {name: line.y for name, line in features.lines.items()} == {"kd": [-0.5], "dhkd": [0.25]}
    assert list(classifier.lines) == ["kd"], "two heads have no classifier in common"


def test_a_loss_that_acts_nowhere_has_no_panel() -> None:
    assert conflict_panels([conflict_row("kd", 0, 0, "classifier", math.nan)]) == []
    assert conflict_panels([]) == []


def test_each_measure_of_collapse_is_a_panel_with_the_teacher_last() -> None:
    rows = [
        EtfRow("teacher", None, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        EtfRow("kd", 0, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5),
        EtfRow("kd", 1, 1.75, 2.75, 3.75, 4.75, 5.75, 6.75),
    ]
    panels = etf_panels(rows)
    assert [panel.label for panel in panels] == [
        "within class", "features etf", "classifier etf", "norms", "angles", "duality"
    ]  # fmt: skip
    assert list(panels[0].of_seeds) == ["kd", "teacher"]
    assert (panels[0].of_seeds, panels[5].of_seeds) == (
        {"kd": [1.5, 1.75], "teacher": [1.0]},
        {"kd": [6.5, 6.75], "teacher": [6.0]},
    )
