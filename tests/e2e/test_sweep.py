"""`dhkd sweep` and `dhkd report`: every run once whatever happens, and a table that agrees with the runs' files."""

import csv
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.runs.lock import held
from dhkd.data.runs.read import read_runs
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.table import axes_of

from tests.e2e.command_line import SMALL, dhkd, done, in_processes, spawn

GRID = ("--grid", "objective=ce,dhkd", "--grid", "student=resnet8,resnet14", "--seeds", 3)
FEW = ("--grid", "objective=ce,kd", "--seeds", 2)
SIZES = [word if word != "student.epochs=2" else "student.epochs=1" for word in SMALL]


def words_for(cache: Path, out: Path, *more: object) -> list[object]:
    return ["sweep", "digits", *SIZES, "--cache", cache, "--out", out, *more]


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def finished_in(out: Path) -> dict[Path, int]:
    """Each finished run's folder, and when it finished."""
    return {path.parent: path.stat().st_mtime_ns for path in out.rglob("result.json")}


@pytest.mark.slow
def test_killed_and_started_again_it_repeats_nothing(cache: Path, tmp_path: Path) -> None:
    process = spawn(*words_for(cache, tmp_path, *GRID))
    while len(finished_in(tmp_path)) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished_in(tmp_path)
    assert 4 <= len(before) < 12, "it was killed too late"

    result = done(*words_for(cache, tmp_path, *GRID, "--json")).result
    after = finished_in(tmp_path)
    assert len(after) == 12
    assert {run: after[run] for run in before} == before
    assert (len(result["finished"]), result["failed"]) == (12, {})

    rows = {row["run"]: row for row in rows_of(tmp_path)}
    assert len(rows) == 12
    for run in after:
        result, row = result_of(run), rows[run.name]
        objective, student, seed = (part.partition("=")[2] for part in run.name.split(","))
        assert (row["objective"], row["student"], row["seed"], row["state"]) == (objective, student, seed, "finished")
        for name in ("last_top1", "best_top1", "last_top5", "seconds", "samples_per_second", "epochs", "parameters"):
            assert float(row[name]) == result[name]
        assert (row["sha256"], result["seed"], result["architecture"]) == (result["sha256"], int(seed), student)
        assert row["cache"] == result["cache"]["digest"]


@pytest.mark.soak  # a killed run is resumed in CI in test_processes.py
def test_a_killed_run_is_continued(cache: Path, tmp_path: Path) -> None:
    """It ends with the weights of a run that nobody interrupted."""
    words = [word if word != "student.epochs=1" else "student.epochs=12" for word in words_for(cache, tmp_path / "cut")]
    process = spawn(*words, "--seeds", 1)
    while not list(tmp_path.rglob("state.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not finished_in(tmp_path), "it was killed too late"
    done(*words, "--seeds", 1)
    whole = [word if word != tmp_path / "cut" else tmp_path / "whole" for word in words]
    done(*whole, "--seeds", 1)
    cut, uncut = (result_of(tmp_path / name / "seed=0") for name in ("cut", "whole"))
    assert cut["sha256"] == uncut["sha256"]


def test_a_run_that_fails_is_kept_apart(cache: Path, tmp_path: Path) -> None:
    words = words_for(cache, tmp_path, "--set", "objective=kd", "--grid", "student.lr=1e30,0.01")
    outcome = dhkd(*words)
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert "1 of 2 runs failed: student.lr=1e30: loss term" in line
    failed = tmp_path / "student.lr=1e30" / "failed.txt"
    assert failed.read_text().startswith("loss term")
    assert "Traceback" in failed.read_text()
    assert {row["run"]: row["state"] for row in rows_of(tmp_path)} == {
        "student.lr=0.01": "finished",
        "student.lr=1e30": "failed",
    }
    written = failed.stat().st_mtime_ns
    assert dhkd(*words).code == 1
    assert failed.stat().st_mtime_ns == written, "nobody asked to try it again"
    assert dhkd(*words, "--again").code == 1
    assert failed.stat().st_mtime_ns != written


def test_other_settings_are_not_taken_for_the_same_runs(
    cache: Path, other_teacher: Path, swept: Path, tmp_path: Path
) -> None:
    out = copied(swept, tmp_path)
    outcome = dhkd(*words_for(cache, out, *FEW, "--set", "student.lr=0.5"))
    assert outcome.code == 1
    assert "student.lr expected" in outcome.err
    assert "choose another --out" in outcome.err
    other = tmp_path / "other.zarr"
    done("cache-teacher", "digits", *SMALL, "--teacher", other_teacher, "--out", other)
    outcome = dhkd(*words_for(other, out, *FEW))
    assert outcome.code == 1
    assert "cache expected" in outcome.err


def test_signals_that_are_added_to_a_cache_leave_its_runs_what_they_are(
    teacher: Path, cache: Path, tmp_path: Path
) -> None:
    """The sweep and a run that had begun continue, and no warning speaks of two caches."""
    grown, out = tmp_path / "grown.zarr", tmp_path / "out"
    shutil.copytree(cache, grown)
    done(*words_for(grown, out, "--grid", "objective=kd", "--seeds", 2))
    (out / "objective=kd,seed=1" / "result.json").unlink()
    before = finished_in(out)
    done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", grown, "--signals", "embedding")
    assert done("inspect", grown, "--json").result["digests"]["logits"] == rows_of(out)[0]["cache"]
    result = done(*words_for(grown, out, "--grid", "objective=kd,rkd", "--seeds", 2, "--json")).result
    assert len(result["finished"]) == 4
    assert {run: finished_in(out)[run] for run in before} == before
    assert (result["comparison"]["warnings"], result["comparison"]["axes"]) == ([], ["objective"])
    assert result["comparison"]["cost"]["teacher_forwards_cached"] == 3 * 150


def test_a_folder_may_have_the_name_of_an_analysis(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swept, tmp_path / "views")
    monkeypatch.chdir(tmp_path)
    assert done("report", "views", "--json").result == done("report", "runs", "views", "--json").result
    done("report", "collapse", "views")


def test_parts_do_all_of_it(cache: Path, tmp_path: Path) -> None:
    for part, finished in (("1/3", 2), ("3/3", 3), ("2/3", 4)):
        result = done(*words_for(cache, tmp_path, *FEW, "--part", part, "--json")).result
        assert (len(result["finished"]), result["runs"]) == (finished, 4)


def test_a_run_that_another_worker_trains_is_left_to_it(cache: Path, tmp_path: Path) -> None:
    busy = tmp_path / "objective=ce,seed=0"
    with held(busy):
        assert len(done(*words_for(cache, tmp_path, *FEW, "--json")).result["finished"]) == 3
    assert len(done(*words_for(cache, tmp_path, *FEW, "--json")).result["finished"]) == 4


@pytest.mark.soak
@pytest.mark.parametrize("started", ["by hand", "by torchrun"])
def test_workers_share_the_runs_out(started: str, cache: Path, tmp_path: Path) -> None:
    """Each run is trained once by two workers."""
    words = words_for(cache, tmp_path, *FEW)
    if started == "by hand":
        workers = [spawn(*words, stderr=subprocess.STDOUT) for _ in range(2)]
        text = "".join(worker.communicate()[0] for worker in workers)
        assert [worker.returncode for worker in workers] == [0, 0], text
    else:
        outcome = in_processes(2, *words)
        assert outcome.code == 0, outcome.err
        text = outcome.err
    assert len(finished_in(tmp_path)) == 4
    for objective in ("ce", "kd"):
        for seed in (0, 1):
            assert text.count(f"objective={objective},seed={seed}: trained") == 1
    assert all(result_of(run)["processes"] == 1 for run in finished_in(tmp_path))


def test_side_by_side_is_as_one_by_one(cache: Path, tmp_path: Path) -> None:
    one_by_one, together = tmp_path / "one", tmp_path / "together"
    done(*words_for(cache, one_by_one, *FEW))
    done(*words_for(cache, together, *FEW, "--together", 2))
    for run in finished_in(one_by_one):
        same = result_of(together / run.name)
        assert same["last_top1"] == pytest.approx(result_of(run)["last_top1"])
        assert same["together"] == 2


def test_the_table_shows_the_spread_over_seeds(cache: Path, tmp_path: Path) -> None:
    from scipy import stats

    result = done(*words_for(cache, tmp_path, "--grid", "objective=ce,kd", "--seeds", 3, "--json")).result
    rows = {row["values"]["objective"]: row for row in result["comparison"]["rows"]}
    tops = {
        name: [result_of(tmp_path / f"objective={name},seed={seed}")["last_top1"] for seed in range(3)] for name in rows
    }
    for name, row in rows.items():
        low, high = stats.t.interval(0.95, 2, stats.tmean(tops[name]), stats.sem(tops[name]))
        assert row["last_top1"]["mean"] == pytest.approx(stats.tmean(tops[name]))
        assert row["last_top1"]["deviation"] == pytest.approx(stats.tstd(tops[name]))
        assert row["last_top1"]["half"] == pytest.approx((high - low) / 2)
        assert row["seeds"] == [0, 1, 2]
    assert result["comparison"]["baseline"] == "objective=ce"
    assert rows["ce"]["difference"] is None
    paired = [kd - ce for kd, ce in zip(tops["kd"], tops["ce"], strict=True)]
    assert rows["kd"]["difference"]["mean"] == pytest.approx(stats.tmean(paired))
    report = done("report", tmp_path, "--json").result
    assert report == result["comparison"]
    with (tmp_path / "report" / "comparison.csv").open(newline="") as stream:
        written = {row["objective"]: row for row in csv.DictReader(stream)}
    for name, row in rows.items():
        assert float(written[name]["last_top1_mean"]) == row["last_top1"]["mean"]
        assert float(written[name]["best_top1_half"]) == row["best_top1"]["half"]
        assert written[name]["verdict"] == (row["difference"] or {"verdict": ""})["verdict"]
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 10_000
    cost = report["cost"]
    assert (cost["teacher_forwards_cached"], cost["teacher_forwards_live"]) == (3 * 150, 3 * 150)


def test_pandas_reads_the_table_as_the_page_shows(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/experiments.md, unchanged but for the names."""
    from scipy import stats

    pandas = pytest.importorskip("pandas", reason="needs pandas")
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    code = code.replace("runs/sweep", str(swept)).replace('["student", "objective"]', '["objective"]')
    printed: list[Any] = []
    exec(code.replace("print(", "printed.append("), {"printed": printed})
    assert isinstance(printed[0], pandas.DataFrame)
    for objective in ("ce", "kd"):
        tops = [result_of(swept / f"objective={objective},seed={seed}")["last_top1"] for seed in (0, 1)]
        assert printed[0].loc[objective].tolist() == pytest.approx([stats.tmean(tops), stats.tstd(tops), 2])


@pytest.fixture(scope="module")
def swept(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two objectives and two seeds: never to be changed."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    done(*words_for(cache, out, *FEW))
    return out


def copied(swept: Path, tmp_path: Path) -> Path:
    out = tmp_path / "sweep"
    subprocess.run(["cp", "-r", swept, out], check=True)
    return out


def test_runs_that_were_trained_one_by_one_are_compared_too(cache: Path, swept: Path, tmp_path: Path) -> None:
    out = copied(swept, tmp_path)
    done(
        "train-student",
        "digits",
        *SIZES,
        "--cache",
        cache,
        "--set",
        "objective=dhkd",
        "--out",
        out / "by-hand" / "first",
    )
    runs = read_runs(out)
    assert next(run.name for run in runs if run.state == "finished") == "by-hand/first"
    assert axes_of(runs) == {"objective": "experiment.objective"}
    assert "dhkd" in done("report", out, "--baseline", "objective=kd").out


def test_an_objectives_own_options_are_compared_with_a_baseline_that_has_none(
    cache: Path, swept: Path, tmp_path: Path
) -> None:
    from scipy import stats

    out = copied(swept, tmp_path)
    option = "objectives.binary-kl-norm.ce_weight"
    words = words_for(
        cache, out, "--set", "objective=binary-kl-norm", "--grid", f"{option}=0,1", "--seeds", 2, "--json"
    )
    rows = {row["name"]: row for row in done(*words).result["comparison"]["rows"]}
    assert list(rows) == ["ce", "kd", "binary-kl-norm, ce_weight=0", "binary-kl-norm, ce_weight=1"]
    for weight in (0, 1):
        with_weight, of_ce = ([result_of(out / name)["last_top1"] for name in names] for names in (
            [f"{option}={weight},seed={seed}" for seed in (0, 1)], [f"objective=ce,seed={seed}" for seed in (0, 1)]
        ))  # fmt: skip
        difference = rows[f"binary-kl-norm, ce_weight={weight}"]["difference"]
        assert difference["mean"] == pytest.approx(stats.tmean(with_weight) - stats.tmean(of_ce))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda run: (run / "result.json").write_text("{"), "expected a finished run's figures in JSON"),
        (lambda run: edit(run, last_top1=99.0), "last_top1 is 99, but by metrics.jsonl it is"),
        (lambda run: edit(run, best_top1="high"), "expected a finished run's figures in JSON"),
        (lambda run: edit(run, epochs=7), "epochs is 7, but by metrics.jsonl it is 1"),
        (lambda run: edit(run, last_top5=None), "expected a finished run's figures in JSON"),
        (lambda run: (run / "metrics.jsonl").write_text('{"top1"\n{"top1": 1}\n'), "metrics.jsonl, line 1: expected"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"top1": 1.0, "loss": "low"}\n{}\n'),
            "metrics.jsonl, line 1: exp",
        ),
        (lambda run: (run / "config.yaml").write_text("run: {}\n"), "expected a run's configuration"),
        (lambda run: (run / "result.json").unlink(), "1 unfinished runs are left out: objective=kd,seed=1"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(fault: Any, says: str, swept: Path, tmp_path: Path) -> None:
    out = copied(swept, tmp_path)
    fault(out / "objective=kd,seed=1")
    compared = compare(read_runs(out))
    (warning,) = compared.warnings
    assert says in warning
    assert "objective=kd,seed=1" in warning
    assert {row.values["objective"]: row.seeds for row in compared.rows} == {"kd": [0], "ce": [0, 1]}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda run: edit(run, last_top1=99.0), "last_top1 is 99, but by metrics.jsonl it is"),
        (lambda run: (run / "config.yaml").write_text("run: {}\n"), "expected a run's configuration"),
        (lambda run: (run / "result.json").unlink(), "1 unfinished runs are left out: objective=kd,seed=1"),
    ],
)
def test_a_damaged_run_is_left_out_of_the_printed_report_and_the_table(
    fault: Any, says: str, swept: Path, tmp_path: Path
) -> None:
    out = copied(swept, tmp_path)
    fault(out / "objective=kd,seed=1")
    outcome = done("report", out)
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("beware: ")]
    assert says in line
    assert "objective=kd,seed=1" in line
    rows = {row["values"]["objective"]: row for row in done("report", out, "--json").result["rows"]}
    assert (rows["kd"]["seeds"], rows["ce"]["seeds"]) == ([0], [0, 1])
    table = rows_of(out)
    assert list(table[0])[:4] == ["run", "objective", "seed", "state"], "settings that can't be read are no axis"
    states = {row["run"]: row["state"] for row in table}
    assert states.pop("objective=kd,seed=1") in ("damaged", "unfinished")
    assert set(states.values()) == {"finished"}


def edit(run: Path, **values: object) -> None:
    (run / "result.json").write_text(json.dumps({**result_of(run), **values}))


def test_a_comparison_of_two_caches_warns(teacher: Path, swept: Path, tmp_path: Path) -> None:
    out, other = copied(swept, tmp_path), tmp_path / "other.zarr"
    done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", other, "--set", "views.seed=1")
    done("train-student", "digits", *SIZES, "--set", "views.seed=1", "--cache", other, "--set", "objective=kd",
         "--out", out / "of-another")  # fmt: skip
    outcome = done("report", out)
    assert "beware: runs of 2 caches (" in outcome.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["report", "{empty}"], 1, "expected finished runs of train-student or sweep, found none"),
        (["report", "{empty}/none"], 1, "expected a folder of runs, found nothing"),
        (["report", "{swept}", "--baseline", "objective=dhkd"], 2, "unknown value 'dhkd'"),
        (["report", "{swept}", "--baseline", "objectiv=ce"], 2, "unknown axis 'objectiv': did you mean 'objective'?"),
        (["sweep", "digits", "--out", "{empty}/out"], 2, "expected --grid or --seeds"),
        (["sweep", "digits", "--out", "{empty}/out", "--grid", "objective=ce,dhdk"], 2, "unknown objective 'dhdk'"),
        (["sweep", "digits", "--out", "{empty}/out", "--grid", "seed=1", "--seeds", "2"], 2, "got seed twice"),
        (["sweep", "digits", "--out", "{empty}/out", "--grid", "student.lr=0.1,0.10"], 2, "expected different"),
        (["sweep", "digits", "--out", "{empty}/out", "--seeds", "2", "--cache", "{empty}/none"], 1, "none"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], code: int, says: str, swept: Path, tmp_path: Path) -> None:
    outcome = dhkd(*(word.format(empty=tmp_path, swept=swept) for word in words))
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("config.yaml"))
