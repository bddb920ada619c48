"""Analyses that need no network: what they compute from runs, and what they refuse."""

import csv
import os
from pathlib import Path

import pytest
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.read import Run
from dhkd.data.runs.result import RunCache
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.analyses import report_collapse, report_comparison, report_conflict, report_etf, report_views
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.rows import EpochRow, ViewsRow, read_rows

from tests.runs import epochs_of, result_of, run_of


def of_views(views: int, seed: int, top1: float, objective: str = "kd") -> Run:
    cache = RunCache("d1" * 32, views=10, samples=150, row_bytes=20)
    return run_of(seed, result=result_of(top1, cache=cache), run={"views": views, "cache": "d1" * 32},
                  objective=objective, name=f"{objective}, {views}, {seed}")  # fmt: skip


def test_views_cost_what_students_saw_of_the_cache(tmp_path: Path) -> None:
    """A cache of ten views of which three are used costs three."""
    runs = [of_views(3, 0, 60.0), of_views(3, 1, 62.0), of_views(1, 0, 50.0), of_views(1, 0, 40.0, "ce")]
    analysis = report_views(runs, tmp_path, teacher_rate=50.0)
    ce, kd_1, kd_3 = analysis.rows
    assert kd_3 == ViewsRow(
        "kd", 3, 2, 61.0, pytest.approx(2**0.5), pytest.approx(12.7062047), 450, 450 / 50 / 3600, 9000
    )
    assert kd_1 == ViewsRow("kd", 1, 1, 50.0, None, None, 150, 150 / 50 / 3600, 3000)
    assert ce == ViewsRow("ce", 1, 1, 40.0, None, None, 150, 150 / 50 / 3600, 3000)
    assert read_rows(tmp_path / "views.csv", ViewsRow) == list(analysis.rows)
    assert analysis.files == [str(tmp_path / f"views.{kind}") for kind in ("csv", "png", "svg")]
    assert sorted(os.listdir(tmp_path)) == ["views.csv", "views.png", "views.svg"]


def test_without_a_rate_there_are_no_hours_and_without_a_cache_no_cost(tmp_path: Path) -> None:
    bare = [run_of(0, 50.0, run={"views": 1}, name="a"), of_views(3, 0, 60.0)]
    one, three = report_views(bare, tmp_path).rows
    assert one == ViewsRow("all", 1, 1, 50.0, None, None, None, None, None)
    assert three == ViewsRow("all", 3, 1, 60.0, None, None, 450, None, 9000)


def test_a_live_teacher_shows_a_new_view_in_every_epoch(tmp_path: Path) -> None:
    live = [
        run_of(seed, 70.0 + seed, student__epochs=5, run={"live.sha256": "d" * 64}, name=f"{seed}") for seed in (0, 1)
    ]
    runs = [run_of(0, 60.0, student__epochs=5, run={"views": 2}, name="cached"), *live]
    cached, fresh = report_views(runs, tmp_path).rows
    assert (cached.runs, cached.views) == ("all", 2)
    assert (fresh.runs, fresh.seeds, fresh.top1, fresh.teacher_forwards) == ("live teacher", 2, 70.5, None)
    assert fresh.views == 5


@pytest.mark.parametrize("other", [of_views(3, 1, 61.0), run_of(1, run={"views": 1}), run_of(1, 60.0)])
def test_views_need_runs_that_differ_in_them(other: Run, tmp_path: Path) -> None:
    with pytest.raises(RunMismatch, match="expected finished runs that differ in how many views they saw"):
        report_views([of_views(3, 0, 60.0), other], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_collapse_writes_every_epoch_and_gives_back_the_last(tmp_path: Path) -> None:
    runs = [
        run_of(0, objective="ce", metrics=epochs_of({"top1": 10.0}, {"top1": 20.0})),
        run_of(0, objective="kd", metrics=epochs_of({"top1": 30.0})),
        run_of(1, objective="kd", metrics=epochs_of({"top1": 99.0}), damage="it was edited"),
        run_of(2, objective="kd"),
    ]
    analysis = report_collapse(runs, tmp_path)
    assert [(row.runs, row.epoch, row.top1) for row in analysis.rows] == [("ce", 2, 20.0), ("kd", 1, 30.0)]
    rows = read_rows(tmp_path / "collapse.csv", EpochRow)
    assert [(row.runs, row.epoch, row.seeds, row.top1) for row in rows] == [
        ("ce", 1, 1, 10.0), ("ce", 2, 1, 20.0), ("kd", 1, 1, 30.0)
    ]  # fmt: skip


def test_the_comparison_is_written_as_a_table(tmp_path: Path) -> None:
    tops = {("ce", 0): 50.0, ("ce", 1): 52.0, ("kd", 0): 53.0, ("kd", 1): 56.0, ("dkd", 2): 60.0}
    runs = [run_of(seed, top1, objective=name, name=f"{name}{seed}") for (name, seed), top1 in tops.items()]
    files = report_comparison(runs, compare(runs), tmp_path)
    assert files == [str(tmp_path / f"comparison.{kind}") for kind in ("csv", "png", "svg")]
    with (tmp_path / "comparison.csv").open(newline="") as stream:
        ce, dkd, kd = csv.DictReader(stream)
    assert [row["objective"] for row in (ce, dkd, kd)] == ["ce", "dkd", "kd"]
    assert [row["seeds"] for row in (ce, dkd, kd)] == ["2", "1", "2"]
    assert (kd["last_top1_mean"], kd["best_top1_mean"], kd["baseline"]) == ("54.5", "54.5", "objective=ce")
    assert (kd["difference"], kd["verdict"], kd["published"]) == ("3.5", "within noise", "70.66")
    assert float(kd["difference_half"]) == pytest.approx(12.7062047 * 0.5)
    assert (ce["difference"], ce["verdict"], ce["published"]) == ("", "", "69.06")
    assert (dkd["difference"], dkd["last_top1_half"]) == ("", ""), "it shares no seed with the baseline"


def test_what_an_analysis_lacks_is_told(tmp_path: Path) -> None:
    data = DataOptions()
    unfinished = [run_of(0)]
    with pytest.raises(
        RunMismatch, match="report collapse: expected runs with at least one finished epoch, found none"
    ):
        report_collapse(unfinished, tmp_path)
    with pytest.raises(RunMismatch, match="expected finished runs, found none"):
        report_etf(unfinished, None, tmp_path, data=data, cpu=True)
    with pytest.raises(RunMismatch, match="expected finished runs that kept weights over training"):
        report_conflict([run_of(0, 50.0)], "c.zarr", tmp_path, samples=10, temperature=2.0, data=data, cpu=True)
    assert list(tmp_path.iterdir()) == []
