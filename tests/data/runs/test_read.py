"""What is read of a folder of runs: results of any version, metrics, states, and files that were edited."""

import json
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.runs.read import SweepRecord, naturally, read_runs, read_sweep_record, require_runs
from dhkd.data.runs.result import FIGURES, RunCache, RunResult, read_result

FIGURES_ONLY: dict[str, Any] = {
    "last_top1": 70.5,
    "best_top1": 71.0,
    "last_top5": 90.0,
    "best_top5": 91.0,
    "epochs": 2,
    "seconds": 12.5,
    "samples_per_second": 400.0,
    "parameters": 1234,
}
CACHE = {"digest": "d1" * 32, "views": 3, "samples": 150, "teacher": "resnet56", "teacher_sha256": "3f" * 32}
WHOLE: dict[str, Any] = {
    "role": "student",
    "architecture": "resnet20",
    **FIGURES_ONLY,
    "cache": {"path": "c.zarr", **CACHE, "classes": 10, "signals": {"logits": "float16"}, "row_bytes": 20},
    "live": ["embedding"],
    "sha256": "9e" * 32,
    "hardware": "a CPU, 2 threads",
    "versions": {"torch": "2.11"},
}
LINES = [{"epoch": 1, "loss": 2.5, "top1": 71.0}, {"epoch": 2, "loss": 2.25, "kd": 1.5, "top1": 70.5}]


def write_run(path: Path, result: object = None, lines: list[dict[str, Any]] | None = None, **settings: Any) -> Path:
    """A run of train-student with seed 0, unless `settings` (of its config.yaml) say otherwise."""
    path.mkdir(parents=True)
    config = {"run": {"command": "train-student"}, "experiment": {"seed": 0, "objective": "kd"}, **settings}
    (path / "config.yaml").write_text(json.dumps(config))  # which is YAML, too
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_result_is_read_into_its_fields(tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "r", WHOLE), [])
    assert result == RunResult(
        **FIGURES_ONLY,
        architecture="resnet20",
        cache=RunCache(**CACHE, row_bytes=20),
        live=("embedding",),
        sha256="9e" * 32,
        hardware="a CPU, 2 threads",
        versions={"torch": "2.11"},
    )
    assert result.cache is not None
    assert result.cache.forwards == 450
    assert result.figures == FIGURES_ONLY
    assert tuple(result.figures) == FIGURES


@pytest.mark.parametrize("cache", [None, {"digest": "d1", "views": 3, "samples": 150}])
def test_an_older_result_may_lack_what_came_later(cache: Any, tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "r", {**FIGURES_ONLY, "cache": cache}), [])
    assert result is not None
    assert (result.architecture, result.live, result.sha256, result.hardware, result.versions) == (
        None, (), None, None, {}
    )  # fmt: skip
    assert result.cache == (RunCache("d1", 3, 150, None, None, 0) if cache else None)


def test_a_run_without_a_result_is_not_finished(tmp_path: Path) -> None:
    assert read_result(write_run(tmp_path / "r"), []) is None


@pytest.mark.parametrize("name", FIGURES)
def test_a_result_without_one_of_its_figures_is_refused(name: str, tmp_path: Path) -> None:
    lacking = {key: value for key, value in WHOLE.items() if key != name}
    path = write_run(tmp_path / "r", lacking)
    with pytest.raises(
        RunMismatch, match=rf"result.json: expected a finished run's figures in JSON, found no '{name}'$"
    ):
        read_result(path, [])


@pytest.mark.parametrize(
    "result",
    [
        [],
        3,
        "text",
        {**WHOLE, "last_top1": "high"},
        {**WHOLE, "last_top5": None},
        {**WHOLE, "epochs": []},
        {**WHOLE, "epochs": float("inf")},
        {**WHOLE, "cache": "c.zarr"},
        {**WHOLE, "cache": {"views": 3, "samples": 150}},
    ],
    ids=str,
)
def test_a_result_of_another_kind_is_refused(result: object, tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", result)
    with pytest.raises(RunMismatch, match="expected a finished run's figures in JSON"):
        read_result(path, [])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"last_top1": 99.0}, "last_top1 is 99, but by metrics.jsonl it is 70.5; one of them was edited"),
        ({"best_top1": 70.5}, "best_top1 is 70.5, but by metrics.jsonl it is 71; one of them was edited"),
        ({"epochs": 3}, "epochs is 3, but by metrics.jsonl it is 2; one of them was edited"),
    ],
)
def test_a_result_that_contradicts_the_metrics_is_refused(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", {**WHOLE, **edit}, LINES)
    with pytest.raises(RunMismatch, match=message):
        read_result(path, read_metrics(path))
    assert read_result(path, []) is not None, "without metrics there is nothing to contradict"


def test_a_result_with_an_average_of_weights_agrees_with_the_metrics(tmp_path: Path) -> None:
    lines = [{**line, "ema_top1": top1} for line, top1 in zip(LINES, (60.0, 59.0), strict=True)]
    whole = {**WHOLE, "last_ema_top1": 59.0, "best_ema_top1": 60.0, "planned_epochs": 9}
    path = write_run(tmp_path / "r", whole, lines)
    result = read_result(path, read_metrics(path))
    assert result is not None
    assert result.figures_of_average == {"last_ema_top1": 59.0, "best_ema_top1": 60.0}
    assert result.planned_epochs == 9
    edited = write_run(tmp_path / "edited", {**whole, "last_ema_top1": 60.0}, lines)
    with pytest.raises(RunMismatch, match=r"last_ema_top1 is 60, but by metrics\.jsonl it is 59"):
        read_result(edited, read_metrics(edited))


def test_metrics_keep_all_their_values(tmp_path: Path) -> None:
    epochs = read_metrics(write_run(tmp_path / "r", lines=LINES))
    assert [epoch.top1 for epoch in epochs] == [71.0, 70.5]
    assert [epoch.values for epoch in epochs] == LINES
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("last", ['{"epo', '{"epoch": 3}', '{"top1": "high"}', '{"top1": 1, "loss": null}', "3", "[]"])
def test_a_last_line_that_was_cut_off_is_ignored(last: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lines=LINES)
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write(last)
    assert [epoch.values for epoch in read_metrics(path)] == LINES
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"top1": 1.0}\n')
    with pytest.raises(RunMismatch, match=r"metrics\.jsonl, line 3: expected an epoch's metrics in JSON"):
        read_metrics(path)


def test_a_run_says_how_far_it_got(tmp_path: Path) -> None:
    write_run(tmp_path / "1-finished", WHOLE, LINES)
    write_run(tmp_path / "2-unfinished", lines=LINES[:1])
    (write_run(tmp_path / "3-failed") / "failed.txt").write_text("loss term kd is nan\n\nTraceback …\n")
    write_run(tmp_path / "4-damaged", WHOLE, LINES[:1])
    write_run(tmp_path / "5-no-seed", WHOLE, experiment={"objective": "kd"})
    finished, unfinished, failed, damaged, no_seed = read_runs(tmp_path)
    assert [run.state for run in (finished, unfinished, failed, damaged, no_seed)] == [
        "finished", "unfinished", "failed", "damaged", "damaged"
    ]  # fmt: skip
    assert finished.settings == {"run.command": "train-student", "experiment.seed": 0, "experiment.objective": "kd"}
    assert (finished.seed, finished.finished_result.last_top1, len(finished.metrics)) == (0, 70.5, 2)
    assert len(unfinished.metrics) == 1
    assert failed.failure == "loss term kd is nan"
    assert damaged.damage is not None
    assert "one of them was edited" in damaged.damage
    assert damaged.result is None
    assert no_seed.damage is not None
    assert "expected a run's configuration, found none with a seed" in no_seed.damage


def test_runs_are_named_by_their_folders_and_sorted_as_people_do(tmp_path: Path) -> None:
    for name in ("lr=16", "lr=4", "deep/er/lr=0.1", "deep/er/lr=0.05"):
        write_run(tmp_path / name)
    write_run(tmp_path / "teacher", run={"command": "train-teacher"})
    assert [run.name for run in read_runs(tmp_path)] == ["deep/er/lr=0.05", "deep/er/lr=0.1", "lr=4", "lr=16"]
    assert [run.name for run in read_runs(tmp_path / "lr=4")] == ["lr=4"], "a run's own folder is a folder of one run"


def test_what_is_no_folder_of_runs_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunMismatch, match="file: expected a folder of runs, found a file"):
        read_runs(tmp_path / "file")
    with pytest.raises(RunMismatch, match="none: expected a folder of runs, found nothing"):
        read_runs(tmp_path / "none")
    with pytest.raises(RunMismatch, match=r"expected finished runs of train-student or sweep, found none$"):
        require_runs(tmp_path)
    write_run(tmp_path / "begun")
    with pytest.raises(RunMismatch, match=r"found none: begun is unfinished$"):
        require_runs(tmp_path)
    write_run(tmp_path / "finished", WHOLE)
    assert len(require_runs(tmp_path)) == 2


def test_a_sweep_remembers_what_it_was_asked_for(tmp_path: Path) -> None:
    record = {"commands": ["dhkd sweep …"], "runs": ["seed=0", "seed=1"]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert read_sweep_record(tmp_path) == SweepRecord(["dhkd sweep …"], ["seed=0", "seed=1"])


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"commands": 3, "runs": []}'])
def test_without_a_record_nothing_was_asked_for(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    assert read_sweep_record(tmp_path) == SweepRecord((), ())


def test_numbers_in_names_are_numbers() -> None:
    names = ["b", "a10", "a2", "a0.5", "a0.25", "a"]
    assert sorted(names, key=naturally) == ["a", "a0.25", "a0.5", "a2", "a10", "b"]
