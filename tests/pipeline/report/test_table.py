"""results.csv: the axes by which runs differ, and a line for each run."""

import csv
from pathlib import Path

from dhkd.pipeline.report.table import axes_of, write_table

from tests.runs import result_of, run_of


def test_axes_are_the_settings_that_differ() -> None:
    runs = [
        run_of(0, 1.0, student__lr=0.1, student__batch_size=64),
        run_of(1, 1.0, student__lr=0.2, student__batch_size=64),
    ]
    assert axes_of(runs) == {"lr": "experiment.student.lr"}
    assert axes_of(runs[:1]) == axes_of([]) == {}


def test_a_setting_that_only_some_runs_have_is_an_axis() -> None:
    assert axes_of([run_of(0, 1.0), run_of(0, 1.0, objectives__dkd__beta=8.0)]) == {
        "beta": "experiment.objectives.dkd.beta"
    }


def test_an_ambiguous_name_is_the_whole_key() -> None:
    one, other = {"student__lr": 0.1, "teacher__lr": 0.1}, {"student__lr": 0.2, "teacher__lr": 0.2}
    assert axes_of([run_of(0, 1.0, **one), run_of(0, 1.0, **other)]) == {
        "experiment.student.lr": "experiment.student.lr",
        "experiment.teacher.lr": "experiment.teacher.lr",
    }
    assert axes_of([run_of(0, 1.0, student__epochs=1), run_of(0, 1.0, student__epochs=2)]) == {
        "experiment.student.epochs": "experiment.student.epochs"
    }, "a column of the table has that name"


def test_architectures_have_short_names() -> None:
    runs = [
        run_of(0, 1.0, student__architecture="resnet8", teacher__architecture="resnet20"),
        run_of(0, 1.0, student__architecture="resnet14", teacher__architecture="resnet56"),
    ]
    assert axes_of(runs) == {
        "teacher": "experiment.teacher.architecture",
        "student": "experiment.student.architecture",
    }


def test_some_settings_never_make_a_difference() -> None:
    live = {"live.signals": ["embedding"], "command": "train-student"}
    assert axes_of([run_of(0, 1.0, description="a"), run_of(7, 1.0, description="b", run=live)]) == {}


def test_a_run_that_could_not_be_read_adds_no_axis() -> None:
    damaged = run_of(0, damage="config.yaml is damaged")
    object.__setattr__(damaged, "settings", {})
    assert axes_of([run_of(0, 1.0), damaged]) == {}


def test_every_run_has_a_line(tmp_path: Path) -> None:
    runs = [
        run_of(0, name="done", student__milestones=[1, 2], run={"cache": "d1" * 32},
               result=result_of(61.5, epochs=3, sha256="9e")),
        run_of(1, name="begun", student__milestones=[3]),
        run_of(2, name="odd", student__milestones=[1, 2], damage="result.json is damaged"),
        run_of(3, name="old", student__milestones=[1, 2], result=result_of(60.0)),
    ]  # fmt: skip
    path = write_table(runs, tmp_path)
    assert path == tmp_path / "results.csv"
    with path.open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == [
        "run", "run.cache", "milestones", "seed", "state", "last_top1", "best_top1", "last_top5", "best_top5", "epochs",
        "seconds", "samples_per_second", "parameters", "cache", "sha256",
    ]  # fmt: skip
    by_run = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(by_run) == ["done", "begun", "odd", "old"]
    done = by_run["done"]
    assert (done["state"], done["seed"], done["milestones"], done["last_top1"], done["epochs"], done["sha256"]) == (
        "finished", "0", "[1, 2]", "61.5", "3", "9e"
    )  # fmt: skip
    assert done["cache"] == "d1" * 32
    assert (by_run["begun"]["state"], by_run["begun"]["last_top1"], by_run["begun"]["sha256"]) == ("unfinished", "", "")
    assert (by_run["odd"]["state"], by_run["old"]["state"], by_run["old"]["sha256"]) == ("damaged", "finished", "")


def test_averages_of_weights_have_columns_where_a_run_has_one(tmp_path: Path) -> None:
    averaged = result_of(1.0, last_ema_top1=2.0, best_ema_top1=3.0, last_ema_top5=4.0, best_ema_top5=5.0)
    runs = [run_of(0, 1.0, name="plain"), run_of(1, name="averaged", result=averaged)]
    header, plain, other = csv.reader(write_table(runs, tmp_path).read_text().splitlines())
    first = header.index("last_ema_top1")
    assert header[first:] == ["last_ema_top1", "best_ema_top1", "last_ema_top5", "best_ema_top5", "cache", "sha256"]
    assert (plain[first : first + 4], other[first : first + 4]) == ([""] * 4, ["2.0", "3.0", "4.0", "5.0"])
    assert "last_ema_top1" not in write_table(runs[:1], tmp_path).read_text()
