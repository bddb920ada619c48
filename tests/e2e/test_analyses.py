"""`dhkd report ANALYSIS`: tables and pictures agree with the runs' own files and networks."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.cache.reader import open_cache
from dhkd.data.runs.read import kept_weights
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of
from dhkd.pipeline.build.training import objective_of, setting_of, student_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.train.objectives import losses
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.command_line import SMALL, dhkd, done
from tests.runs import read_metrics

CPU = torch.device("cpu")
OBJECTIVES = ("ce", "binary-kl", "dhkd")


@pytest.fixture(scope="module")
def swept(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three objectives and two seeds that kept their weights after every epoch. Tests must not change them."""
    out = tmp_path_factory.mktemp("swept") / "sweep"
    done("sweep", "digits", *SMALL, "--cache", cache, "--out", out, "--set", "student.keep_every=1",
         "--grid", f"objective={','.join(OBJECTIVES)}", "--seeds", 2)  # fmt: skip
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def require_pictures(out: Path, name: str) -> None:
    with Image.open(out / f"{name}.png") as image:
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 10, "nothing is drawn"
    assert (out / f"{name}.svg").read_text().lstrip().startswith("<?xml")


def test_weights_are_kept_over_training(swept: Path) -> None:
    for run in swept.glob("objective=*"):
        kept = kept_weights(run)
        assert list(kept) == [0, 1, 2]
        first, last = (load_file(kept[epochs]) for epochs in (0, 2))
        assert not torch.equal(first["backbone.conv1.weight"], last["backbone.conv1.weight"])
        assert torch.equal(load_file(run / "student.safetensors")["conv1.weight"], last["backbone.conv1.weight"])


def test_resuming_keeps_the_same_weights(cache: Path, tmp_path: Path) -> None:
    words: list[object] = ["digits", *SMALL, "--cache", cache, "--set", "student.keep_every=2", "--set", "objective=kd"]
    words = [word if word != "student.epochs=2" else "student.epochs=3" for word in words]
    done("train-student", *words, "--out", tmp_path / "whole")
    assert list(kept_weights(tmp_path / "whole")) == [0, 2, 3]


def test_collapse_is_the_mean_of_the_runs_metrics(swept: Path, tmp_path: Path) -> None:
    printed = done("report", "collapse", swept, "--out", tmp_path, "--json").result
    rows = table(tmp_path / "collapse.csv")
    assert len(rows) == 3 * 2
    for row in rows:
        lines = [read_metrics(swept / f"objective={row['runs']},seed={seed}")[int(row["epoch"]) - 1] for seed in (0, 1)]
        assert float(row["top1"]) == pytest.approx(np.mean([line["top1"] for line in lines]))
        assert float(row["loss"]) == pytest.approx(np.mean([line["loss"] for line in lines]))
        assert float(row["ce"]) == pytest.approx(np.mean([line["ce"] for line in lines]))
        assert float(row["top1_deviation"]) == pytest.approx(np.std([line["top1"] for line in lines], ddof=1))
    assert [(row["runs"], row["epoch"]) for row in printed["rows"]] == [(name, 2) for name in sorted(OBJECTIVES)]
    require_pictures(tmp_path, "collapse")


def test_views_are_those_that_students_were_trained_on(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", "digits", *SMALL, "--cache", cache, "--out", out, "--set", "objective=kd"]
    done(*words, "--grid", "student.views=1,3", "--seeds", 2)
    done("report", "views", out, "--teacher-rate", 50)
    rows = table(out / "report" / "views.csv")
    assert [(row["views"], row["seeds"]) for row in rows] == [("1", "2"), ("3", "2")]
    for row in rows:
        tops = [
            json.loads((out / f"student.views={row['views']},seed={seed}" / "result.json").read_text())["last_top1"]
            for seed in (0, 1)
        ]
        assert float(row["top1"]) == pytest.approx(np.mean(tops))
        assert int(row["teacher_forwards"]) == int(row["views"]) * 150
        assert float(row["teacher_hours"]) == pytest.approx(int(row["views"]) * 150 / 50 / 3600)
        assert int(row["cache_bytes"]) == int(row["views"]) * 150 * 10 * 2
    require_pictures(out / "report", "views")


def test_a_student_sees_only_as_many_views_as_it_is_given(teacher: Path, cache: Path, tmp_path: Path) -> None:
    """With the first of three views alone it ends as it does with a cache of one view."""
    words: list[object] = ["digits", *SMALL, "--set", "objective=kd", "--json"]
    few = done("train-student", *words, "--cache", cache, "--set", "student.views=1", "--out", tmp_path / "few").result
    all_of_them = done("train-student", *words, "--cache", cache, "--out", tmp_path / "all").result
    assert few["sha256"] != all_of_them["sha256"]
    one = tmp_path / "one.zarr"
    done("cache-teacher", "digits", *SMALL, "--views", 1, "--teacher", teacher, "--out", one)
    alone = done("train-student", *words, "--cache", one, "--out", tmp_path / "alone").result
    assert alone["sha256"] == few["sha256"]
    outcome = dhkd("train-student", *words, "--cache", cache, "--set", "student.views=4", "--out", tmp_path / "five")
    assert outcome.code == 2
    assert "student.views: expected at most 3" in outcome.err


def test_conflict_agrees_with_autograd(swept: Path, cache: Path, tmp_path: Path) -> None:
    done("report", "conflict", swept, "--cache", cache, "--out", tmp_path, "--samples", 40, "--cpu")
    rows = {(row["runs"], row["seed"], row["epochs"], row["on"]): row for row in table(tmp_path / "conflict.csv")}
    # In a run with a head for each loss, the losses share no classifier.
    expected_rows = 2 * 3 * (2 + 2 + 1)
    assert len(rows) == expected_rows
    run = swept / "objective=binary-kl,seed=1"
    experiment, data = load_experiment(str(run)), DataOptions()
    images = images_of(experiment, "train", data)
    objective = objective_of(experiment)
    student = student_of(objective, setting_of(experiment, experiment.student, images, objective))
    student.load_state_dict(load_file(kept_weights(run)[1]))
    renderer = renderer_of(images, recipe_of(experiment.views), CPU, data)
    pixels = next(iter(renderer.render([(torch.zeros(40, dtype=torch.int64), torch.arange(40))])))
    out = student.eval().backbone.outputs(normalization_of(experiment.student, images)(pixels))
    teacher_NK = torch.from_numpy(open_cache(cache).read(0, np.arange(40)))
    weight = student.backbone.head.weight
    gradients = [
        torch.autograd.grad(loss, [weight, out.embedding], retain_graph=True)
        for loss in (
            losses.cross_entropy(out.logits, Labels(images.labels_N[:40])),
            losses.binary_kl(out.logits, teacher_NK, 2.0),
        )
    ]
    for on, one, other in zip(("classifier", "features"), *gradients, strict=True):
        row = rows["binary-kl", "1", "1", on]
        cosines: Tensor = torch.cosine_similarity(one, other, dim=1)
        assert float(row["cosine"]) == pytest.approx(float(cosines.mean()), abs=1e-4)
        assert float(row["conflicting"]) == pytest.approx(float((cosines < 0).double().mean()), abs=0.03)
    require_pictures(tmp_path, "conflict")


@pytest.mark.slow
def test_pictures_of_outputs(swept: Path, teacher: Path, tmp_path: Path) -> None:
    """Tables hold every run; arrays and pictures show the first seed of each kind, whatever the order of the runs."""
    for analysis, *more in (("correlation",), ("etf",), ("tsne", "--samples", 60)):
        done("report", analysis, swept, "--teacher", teacher, "--cpu", "--out", tmp_path, *more)
        require_pictures(tmp_path, analysis)
    with np.load(tmp_path / "correlation.npz") as arrays:
        assert list(arrays) == ["teacher", *sorted(OBJECTIVES)]
        np.testing.assert_allclose(np.diag(arrays["teacher"]), 1)
        rows = table(tmp_path / "correlation.csv")
        assert [(row["runs"], row["seed"]) for row in rows] == [(o, s) for o in sorted(OBJECTIVES) for s in "01"]
        of_seed = {(row["runs"], row["seed"]): float(row["mean_absolute_difference"]) for row in rows}
        for objective in OBJECTIVES:
            assert of_seed[objective, "0"] == pytest.approx(np.abs(arrays[objective]).mean())
            assert of_seed[objective, "0"] != of_seed[objective, "1"]
    with np.load(tmp_path / "tsne.npz") as arrays:
        assert {name: points.shape for name, points in arrays.items()} == {
            **dict.fromkeys(("teacher", *OBJECTIVES), (60, 2)),
            "labels": (60,),
        }
        before = arrays["dhkd"]
    few = tmp_path / "few"
    shutil.copytree(swept / "objective=dhkd,seed=0", few / "dhkd")
    done("report", "tsne", few, "--teacher", teacher, "--cpu", "--samples", 60, "--out", tmp_path / "again")
    with np.load(tmp_path / "again" / "tsne.npz") as arrays:
        np.testing.assert_array_equal(arrays["all"], before, "the first seed, and the same points every time")
    rows = table(tmp_path / "etf.csv")
    assert [(row["runs"], row["seed"]) for row in rows] == [
        ("teacher", ""),
        *((objective, seed) for objective in sorted(OBJECTIVES) for seed in "01"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["views", "{swept}"], 1, "expected finished runs that differ in how many views they saw"),
        (["collapse", "{empty}"], 1, "expected runs with at least one finished epoch, found none"),
        (["conflict", "{few}", "--cache", "{cache}"], 1, "expected finished runs that kept weights over training"),
        (
            ["conflict", "{swept}", "--cache", "{other}", "--cpu"],
            1,
            "from which objective=binary-kl,seed=0 was trained",
        ),
        (["etf", "{empty}"], 1, "expected finished runs, found none"),
        (["colapse", "{swept}"], 2, ""),
        (["tsne", "{swept}"], 2, "Missing option '--teacher'"),
    ],
)
def test_what_an_analysis_lacks_is_reported(
    words: list[str], code: int, says: str, swept: Path, cache: Path, other_teacher: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    shutil.copytree(swept / "objective=ce,seed=0", few / "ce")
    shutil.rmtree(few / "ce" / "weights")
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.zarr"
    if "{other}" in words:
        done("cache-teacher", "digits", *SMALL, "--teacher", other_teacher, "--out", other)
    places = {"swept": swept, "few": few, "empty": empty, "cache": cache, "other": other}
    outcome = dhkd("report", *(word.format(**places) for word in words))
    assert outcome.code == code, outcome.err
    assert says in outcome.err
