"""Attacks on runs: folders that are shared, damaged, edited or mixed up, and numbers that make no sense.

Each is refused in one line, and nothing in the folder changes.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dhkd.configs.load import load_experiment
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheMismatch, ConfigError, DhkdError, RunMismatch
from dhkd.data.runs.lock import held
from dhkd.data.runs.read import read_runs, require_runs
from dhkd.pipeline.api import DistillationSet
from dhkd.pipeline.build.training import objective_of
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.analyses import report_conflict, report_correlation, report_etf
from dhkd.pipeline.results import TrainedRun
from dhkd.pipeline.training import train_grid, train_student, train_students

from tests.e2e.command_line import SMALL, assert_one_line, dhkd
from tests.moments import at_the_moment
from tests.pipeline.conftest import experiment_of, reader, untrained_weights, weights  # noqa: F401  # fixtures

DATA = DataOptions()

HOLDER = "import sys, pathlib; from dhkd.data.runs.lock import held\n"
HOLDER += "with held(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def trained(out: Path, *overrides: str, cache: str | None = None, resume: bool = False) -> TrainedRun:
    experiment = experiment_of(*overrides)
    return train_student(experiment, cache, out, data=DATA, track=["none"], cpu=True, resume=resume)


# one folder, one run at a time


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """A folder in which another process trains."""
    folder = tmp_path / "busy" / "objective=ce"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield folder
    process.communicate("")


@pytest.mark.parametrize(
    "words",
    [
        ["train-teacher", "digits", *SMALL, "--out", "{busy}"],
        ["train-student", "digits", *SMALL, "--set", "objective=ce", "--out", "{busy}"],
        ["train-student", "digits", *SMALL, "--set", "objective=ce", "--out", "{busy}", "--resume"],
        ["train-student", "digits", *SMALL, "--grid", "objective=ce", "--out", "{sweep}"],
    ],
    ids=["teacher", "student", "resumed", "grid"],
)
def test_a_folder_in_which_another_process_trains_is_refused(words: list[str], busy: Path) -> None:
    outcome = dhkd(*(word.format(busy=busy, sweep=busy.parent) for word in words))
    assert_one_line(outcome, 1, [f"run at {busy}: expected nobody to train there, got process"])
    assert [path.name for path in busy.iterdir()] == ["lock.1"]


def test_a_sweep_leaves_a_folder_to_the_process_that_trains_there(busy: Path) -> None:
    outcome = dhkd("sweep", "digits", *SMALL, "--grid", "objective=ce", "--out", busy.parent, "--json")
    assert (outcome.code, outcome.result["finished"]) == (0, [])
    assert "another worker trains it" in outcome.err
    assert [path.name for path in busy.iterdir()] == ["lock.1"]


# a checkpoint is of the run beside whose settings it lies

CE = ("objective=ce", "student.epochs=3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it another one of another seed, and one of another network: never to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "run", *CE)
    trained(folder / "other", *CE, "seed=1")
    trained(folder / "larger", *CE, "student.architecture=resnet14")
    return folder


def edited_cursor(**values: object) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "checkpoint" / "state.pt"
        state = torch.load(path, weights_only=True)
        torch.save({**state, "cursor": {**state["cursor"], **values}}, path)

    return edit


def edited_metrics(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = run / "metrics.jsonl"
        path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))

    return damage


def edited_config(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["experiment"]["student"]["lr"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def without(*names: str) -> Callable[[Path], None]:
    def remove(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def from_run(other: str, *names: str) -> Callable[[Path], None]:
    def copy(run: Path) -> None:
        for name in names:
            shutil.copy(run.parent / other / name, run / name)

    return copy


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return damage


def anonymous(run: Path) -> None:
    path = run / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["run"]
    torch.save(state, path)


def top1(line: str) -> str:
    return json.dumps({**json.loads(line), "top1": 99.0})


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        for one in damages:
            one(run)

    return damage


LR = ["student.lr=0.5"]
CHECKPOINT = "checkpoint/state.pt"
UNFINISHED: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "settings lost": (without("config.yaml"), [], "expected its settings in config.yaml beside metrics.jsonl"),
    "settings lost, others given": (without("config.yaml"), LR, "expected its settings in config.yaml beside"),
    "only metrics": (without("config.yaml", "checkpoint"), [], "in config.yaml beside metrics.jsonl, found none"),
    "only a checkpoint": (without("config.yaml", "metrics.jsonl"), [], "in config.yaml beside checkpoint/state.pt"),
    "settings edited": (edited_config, LR, "is of another run than config.yaml beside it: experiment.student.lr"),
    "settings of another run": (from_run("other", "config.yaml"), ["seed=1"], "experiment.seed expected 0, got 1"),
    "checkpoint of another run": (from_run("other", CHECKPOINT), [], "experiment.seed expected 1, got 0"),
    "checkpoint and metrics": (from_run("other", CHECKPOINT, "metrics.jsonl"), [], "seed expected 1, got 0"),
    "another network": (from_run("larger", CHECKPOINT), [], "architecture expected resnet14, got resnet8"),
    "checkpoint cut": (cut(CHECKPOINT, 0.5), [], "can't be read"),
    "checkpoint empty": (cut(CHECKPOINT, 0), [], "can't be read"),
    "checkpoint of nobody": (anonymous, [], "expected to read whose it is, found nothing"),
    "metrics lost": (without("metrics.jsonl"), [], "metrics.jsonl: expected the lines that the run wrote"),
    "metrics empty": (cut("metrics.jsonl", 0), [], "metrics.jsonl: expected the lines that the run wrote"),
    "last line lost": (edited_metrics(lambda lines: lines[:-1]), [], "expected the lines that the run wrote"),
    "first line lost": (edited_metrics(lambda lines: lines[1:]), [], "expected the lines that the run wrote"),
    "metrics cut": (cut("metrics.jsonl", 0.9), [], "expected the lines that the run wrote"),
    "a line edited": (
        edited_metrics(lambda lines: [lines[0], top1(lines[1]), lines[2]]),
        [],
        "expected the lines that the run wrote",
    ),
    "lines swapped": (edited_metrics(lambda lines: lines[::-1]), [], "expected the lines that the run wrote"),
    "metrics of another run": (from_run("other", "metrics.jsonl"), [], "expected the lines that the run wrote"),
    "fewer epochs done": (edited_cursor(epochs_done=1), [], "epochs_done is 1, by metrics.jsonl it is 3"),
    "more epochs done": (edited_cursor(epochs_done=4), [], "epochs_done is 4, by metrics.jsonl it is 3"),
    "a better best": (edited_cursor(best_top1=99.5), [], "best_top1 is 99.5, by metrics.jsonl it is"),
    "a better last": (edited_cursor(last_top5=100.5), [], "last_top5 is 100.5, by metrics.jsonl it is"),
    "less time": (edited_cursor(seconds=0.001), [], "seconds is 0.001, by metrics.jsonl it is"),
    "fewer bytes": (edited_cursor(metrics_bytes=5), [], "metrics.jsonl: expected 5 bytes of whole lines"),
    "more bytes": (edited_cursor(metrics_bytes=10**9), [], "expected 1000000000 bytes of whole lines"),
    "no bytes": (edited_cursor(metrics_bytes=0), [], "epochs_done is 3, by metrics.jsonl it is 0"),
    "negative bytes": (edited_cursor(metrics_bytes=-1), [], "expected -1 bytes of whole lines"),
    "no number": (edited_cursor(epochs_done="three"), [], "epochs_done is three, by metrics.jsonl it is 3"),
}


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(run: Path, *overrides: str, resume: bool) -> str:
    """The line with which training in the folder is refused, which changes none of its files."""
    before = content(run)
    with pytest.raises(DhkdError) as caught:
        trained(run, *CE, *overrides, resume=resume)
    assert content(run) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("damage", UNFINISHED)
def test_no_other_run_goes_on_from_a_checkpoint(damage: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    run = tmp_path / "runs" / "run"
    damaged, overrides, says = UNFINISHED[damage]
    without("result.json")(run)
    damaged(run)
    assert says in refused(run, *overrides, resume=True)
    if not (run / "config.yaml").exists():
        assert says in refused(run, *overrides, resume=False)


FINISHED: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "settings lost": (without("config.yaml"), [], "expected its settings in config.yaml beside metrics.jsonl"),
    "only a result": (without("config.yaml", "checkpoint", "metrics.jsonl"), [], "config.yaml beside result.json"),
    "settings edited": (edited_config, LR, "expected the result of the settings in config.yaml beside it"),
    "settings of another run": (from_run("other", "config.yaml"), ["seed=1"], "expected the result of the settings"),
    "metrics lost": (without("metrics.jsonl"), [], "metrics.jsonl: expected 3 epochs, as result.json says, got 0"),
    "last line lost": (edited_metrics(lambda lines: lines[:-1]), [], "expected 3 epochs, as result.json says, got 2"),
    "a line edited": (edited_metrics(lambda lines: [*lines[:2], top1(lines[2])]), [], "one of them was edited"),
    "result of another run": (from_run("other", "result.json"), [], ""),
}


@pytest.mark.parametrize("damage", FINISHED)
def test_a_finished_run_is_not_taken_for_another(damage: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    run = tmp_path / "runs" / "run"
    damaged, overrides, says = FINISHED[damage]
    damaged(run)
    assert says in refused(run, *overrides, resume=True)
    (reported,) = [one for one in read_runs(tmp_path / "runs") if one.name == "run"]
    assert reported.state == "damaged" or damage == "metrics lost"


def test_what_a_kill_leaves_behind_is_gone_on_with(finished: Path, tmp_path: Path) -> None:
    """Killed between an epoch's metrics and its checkpoint, or in the middle of a line."""
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    without("result.json", "student.safetensors")(run)
    whole = (run / "metrics.jsonl").read_bytes()
    for more in (whole.splitlines()[0] + b"\n", b'{"epo'):
        (run / "metrics.jsonl").write_bytes(whole + more)
        again = trained(run, *CE, resume=True)
        assert (run / "metrics.jsonl").read_bytes() == whole
        assert again.sha256 == json.loads((finished / "run" / "result.json").read_text())["sha256"]
        without("result.json")(run)


def test_a_damaged_run_ends_none_of_those_beside_it(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "bad")
    without("result.json", "metrics.jsonl")(tmp_path / "bad")
    experiments = {tmp_path / "bad": experiment_of(*CE), tmp_path / "good": experiment_of(*CE, "seed=5")}
    bad, good = train_students(experiments, None, data=DATA, track=["none"], cpu=True, resume=True).values()
    assert isinstance(bad, RunMismatch)
    assert isinstance(good, TrainedRun)


def test_a_later_group_that_fails_takes_no_earlier_result_with_it(tmp_path: Path) -> None:
    names = {"first": "seed=0", "unknown": "objective=dhdk", "last": "seed=2"}
    experiments: dict[Path, Experiment] = {
        tmp_path / name: experiment_of("objective=ce", setting) for name, setting in names.items()
    }
    outcomes = train_grid(experiments, None, together=1, data=DATA, track=["none"], cpu=True)
    first, unknown, last = outcomes.values()
    assert isinstance(first, TrainedRun)
    assert isinstance(unknown, ConfigError)
    assert isinstance(last, TrainedRun)


# views


def interrupted(call: Callable[[], object], begun: Path) -> None:
    """Press Ctrl-C when `begun` exists."""
    press = partial(signal.raise_signal, signal.SIGINT)
    with at_the_moment(begun.exists, press), pytest.raises(KeyboardInterrupt):
        call()


@pytest.mark.parametrize("schedule", ["independent", "cycle"])
def test_students_go_on_with_the_views_that_they_began_with(schedule: str, weights: Path, tmp_path: Path) -> None:  # noqa: F811
    cache = str(tmp_path / "c.zarr")
    settings = ("objective=kd", "student.epochs=6", f"student.view_schedule={schedule}")
    cache_teacher(experiment_of(), weights, cache, data=DATA, cpu=True)
    whole = trained(tmp_path / "whole", *settings, cache=cache)
    run = tmp_path / "run"
    interrupted(lambda: trained(run, *settings, cache=cache), run / "checkpoint" / "state.pt")
    assert not (run / "result.json").exists()
    cache_teacher(experiment_of("cache.views=4"), weights, cache, data=DATA, cpu=True)
    resumed = trained(run, *settings, cache=cache, resume=True)
    assert resumed.sha256 == whole.sha256
    other = trained(tmp_path / "new", *settings, cache=cache)
    assert other.sha256 != whole.sha256
    assert [one.settings["run.views"] for one in read_runs(tmp_path)] == [4, 2, 2]


def test_a_data_set_shows_the_views_that_the_preset_names(reader: LogitReader) -> None:  # noqa: F811
    overrides = ["data.limit=20", "teacher=resnet8", "student.views=1"]
    shown = DistillationSet("digits", reader.location, overrides=overrides)
    assert shown.reader.plan.num_views == 1
    with pytest.raises(ConfigError, match=r"student\.views: expected at most 2"):
        DistillationSet("digits", reader.location, overrides=[*overrides[:2], "student.views=3"])


# reports


def test_a_damaged_run_alone_in_a_folder_is_reported_with_the_reason(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    edited_metrics(lambda lines: [*lines[:2], top1(lines[2])])(tmp_path / "run")
    for command in (["runs"], ["etf"], ["collapse"], ["views"], ["conflict", "--cache", "c.zarr"]):
        outcome = dhkd("report", command[0], tmp_path, *command[1:])
        assert_one_line(outcome, 1, ["run is damaged (", "by metrics.jsonl it is 99; one of them was edited"])


def test_runs_of_different_test_images_are_not_compared(tmp_path: Path) -> None:
    trained(tmp_path / "many", "objective=ce")
    trained(tmp_path / "few", "objective=ce", "data.test_limit=10")
    with pytest.raises(RunMismatch, match=r"expected the same test images.*num_samples expected"):
        report_etf(read_runs(tmp_path), None, tmp_path / "report", data=DATA, cpu=True)


def test_runs_of_different_teachers_are_not_compared_with_one(
    reader: LogitReader,  # noqa: F811
    weights: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for teacher in ("null", "b"):
        trained(tmp_path / teacher, "objective=kd", f"student.teacher={teacher}", cache=reader.location)
    for run in ("b", "."):
        with pytest.raises(RunMismatch, match=r"--teacher .*: sha256 expected .*; give the teacher from which b"):
            report_correlation(read_runs(tmp_path / run), weights, tmp_path / "report", data=DATA, cpu=True)
    other = weights.with_name("other.safetensors")
    assert len(report_correlation(read_runs(tmp_path / "b"), other, tmp_path / "r", data=DATA, cpu=True).rows) == 1


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> LogitReader:
    """A cache of two teachers, both of which have names."""
    folder = tmp_path_factory.mktemp("named")
    for seed, name in enumerate("ab"):
        file = untrained_weights(folder / f"{name}.safetensors", seed)
        cache_teacher(experiment_of(), file, str(folder / "c.zarr"), data=DATA, name=name, cpu=True)
    return open_cache(folder / "c.zarr")


def test_conflict_reads_each_runs_own_teacher(named: LogitReader, tmp_path: Path) -> None:
    for teacher in ("a", "b", "mean"):
        settings = ("objective=binary-kl-norm", f"student.teacher={teacher}", "student.keep_every=1")
        trained(tmp_path / teacher, *settings, cache=named.location)
    analysis = report_conflict(
        read_runs(tmp_path), named.location, tmp_path / "report", samples=20, temperature=2.0, data=DATA, cpu=True
    )
    before_training: list[Any] = [row for row in analysis.rows if getattr(row, "epochs", None) == 0]
    assert len(before_training) == 6
    assert len({row.cosine for row in before_training if row.on == "features"}) == 3, "one student, three teachers"


@pytest.mark.parametrize("read", [LogitReader.read_view, lambda reader, view: reader.bound("logits")])  # noqa: F811
def test_a_signal_that_a_cache_lacks_is_named(read: Callable[[LogitReader, int], object], named: LogitReader) -> None:
    with pytest.raises(CacheMismatch, match=r"expected the signal logits, it holds a\.logits, b\.logits; name one"):
        read(named, 0)


# numbers and keys that make no sense


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("student.milestones", "[-1]"),
        ("student.milestones", "[2, 1]"),
        ("student.milestones", "[2, 2]"),
        ("teacher.milestones", "[1, -100]"),
        ("student.warmup_epochs", "6"),
        ("student.warmup_epochs", "-1"),
        ("student.warmup_epochs", "1"),
        ("student.lr", "1e-300"),
        ("student.lr", "1e300"),
        ("student.weight_decay", "1e9"),
        ("student.weight_decay", "-1"),
        ("student.gamma", "10"),
        ("student.gamma", "1e-30"),
        ("student.clip_norm", "1e-30"),
        ("student.momentum", "1.5"),
        ("student.nesterov", "true"),
        ("student.epochs", "10000000000"),
        ("student.batch_size", "10000000000"),
        ("student.views", "0"),
        ("cache.views", "0"),
        ("cache.views", "-3"),
        ("cache.batch_size", "10000000000"),
        ("cache.block_mb", "1e-30"),
        ("cache.views_at_once", "1000000"),
        ("cache.codec", "{kind: top-k, k: 3, temperature: 1e-30}"),
        ("data.std", "[1e-30, 0.5, 0.5]"),
        ("data.num_classes", "10000000000"),
    ],
)
def test_numbers_of_presets_that_make_no_sense(setting: str, value: str) -> None:
    more = ["student.momentum=0"] if setting == "student.nesterov" else []
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits", [*more, f"{setting}={value}"])
    assert str(caught.value).startswith(f"preset digits: {setting}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["1e-30", "0", "-1", ".nan", ".inf", "1e30"])
@pytest.mark.parametrize("objective", ["kd", "dkd", "dist", "binary-kl", "dhkd", "crd"])
def test_temperatures_that_make_no_sense(objective: str, value: str) -> None:
    setting = f"objectives.{objective}={{temperature: {value}}}"
    with pytest.raises(ConfigError, match="temperature"):
        objective_of(load_experiment("digits", [f"objective={objective}", setting]))


@pytest.mark.parametrize("objective", ["1e30 * kd", "kd + 1e300 * dkd"])
def test_factors_that_make_no_sense(objective: str) -> None:
    with pytest.raises(ConfigError, match="expected a factor of at most"):
        objective_of(load_experiment("digits", [f"objective={objective}"]))


@pytest.mark.parametrize("option", ["--temperature", "--teacher-rate"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_numbers_of_analyses_that_make_no_sense(option: str, value: str, tmp_path: Path) -> None:
    words = ["conflict", "--cache", "c"] if option == "--temperature" else ["views"]
    outcome = dhkd("report", *words, tmp_path, option, value)
    assert outcome.code == 2
    assert option in outcome.err


PRESET = "description: d\ndata: digits\nviews: {}\nteacher: {architecture: a, epochs: 1, lr: 1}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("student: {architecture: a, epochs: 1, lr: 1}\nstudent: {architecture: b, epochs: 1, lr: 1}\n", "student"),
        ("student: {architecture: a, epochs: 1, lr: 1, lr: 2}\n", "lr"),
        ('student: {architecture: a, epochs: 1, "lr": 1, lr: 2}\n', "lr"),
        ("student:\n  architecture: a\n  epochs: 1\n  lr: 1\n  epochs: 2\n", "epochs"),
        ("student: {architecture: a, epochs: 1, lr: 1}\nrecord: {a: [{b: 1, b: 2}]}\n", "b"),
        ("student: {architecture: a, epochs: 1, lr: 1}\nseed: 1\nseed: 1\n", "seed"),
    ],
)
def test_a_key_that_occurs_twice_is_refused(text: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PRESET + text)
    with pytest.raises(ConfigError, match=rf"expected each key once, got '{key}' twice, in line"):
        load_experiment(str(path))


def test_a_key_that_occurs_twice_in_an_override_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected each key once, got 'lr' twice"):
        load_experiment("digits", ["student={architecture: a, epochs: 1, lr: 1, lr: 2}"])


def test_merged_mappings_give_way(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    base = "record: {base: &base {architecture: a, epochs: 1, lr: 1}, more: &more {<<: *base, lr: 2}}\n"
    path.write_text(f"{base}{PRESET}student: {{<<: *more, epochs: 3}}\n")
    student = load_experiment(str(path)).student
    assert (student.architecture, student.epochs, student.lr) == ("a", 3, 2)


def test_a_run_that_lost_its_settings_is_in_the_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    without("config.yaml")(tmp_path / "runs" / "run")
    (lost,) = [run for run in require_runs(tmp_path / "runs") if run.name == "run"]
    assert lost.damage is not None
    assert "expected its settings in config.yaml" in lost.damage


def test_a_lock_is_no_run(tmp_path: Path) -> None:
    """A folder in which training has just begun is empty but for the lock, and reports leave it out."""
    with held(tmp_path / "run"):
        assert read_runs(tmp_path) == []
