"""Signals beside logits: cached, added later, computed live; and the messages where they are missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dhkd.data.cache.reader import open_cache
from dhkd.stages.models import build_network
from safetensors.torch import load_file

from tests.e2e.command_line import SMALL, SMALL_VERIFY, assert_one_line, dhkd, done, in_processes
from tests.few import few
from tests.samples import files_of

# Not --signals: torchrun would take that for its own option.
OF_SIGNALS = ["--set", "cache.signals=[logits,embedding,cam,attention]"]


def caching(teacher: Path, out: Path, *signals: str) -> list[object]:
    words = ["cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", out]
    return [*words, "--signals", ",".join(signals)] if signals else words


def training(out: Path, objective: str, *words: object) -> list[object]:
    return ["train-student", "digits", *SMALL, "--set", f"objective={objective}", "--out", out, *words]


def first_epoch(run: Path) -> dict[str, float]:
    """The first line of a run's metrics."""
    return dict(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))


@pytest.fixture(scope="module")
def of_signals(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of logits and more, written in one call."""
    out = tmp_path_factory.mktemp("signals") / "c.zarr"
    done(*caching(teacher, out), *OF_SIGNALS)
    return out


@pytest.mark.parametrize("objective", few(["rkd", "crd", "cat-kd", "at"], ["crd", "at"]))
def test_a_student_is_the_same_from_the_cache_and_from_the_live_teacher(
    objective: str, of_signals: Path, cache: Path, teacher: Path, tmp_path: Path
) -> None:
    """Keys and pixels are the same; cached values are those of the teacher, rounded to float16."""
    views = ["--set", "objectives.crd.negatives=100", "--set", "student.lr=0.001", "--set", "student.epochs=1"]
    live = ["--set", "teacher.live=true", "--teacher", teacher, *views]
    done(*training(tmp_path / "cached", objective, "--cache", of_signals, *views))
    done(*training(tmp_path / "mixed", objective, "--cache", cache, *live))
    lines = {
        name: json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("cached", "mixed")
    }
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("cached", "mixed")}
    assert results["cached"]["live"] == []
    assert results["mixed"]["live"]
    terms = lines["cached"].keys() - {"seconds", "train_seconds", "samples_per_second"}
    for term in terms:
        assert lines["mixed"][term] == pytest.approx(lines["cached"][term], rel=2e-3, abs=1e-4), term


def test_adding_signals_leaves_the_others_alone(
    cache: Path, of_signals: Path, teacher: Path, other_teacher: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(cache, tmp_path / "c.zarr")
    before = files_of(out)
    done(*caching(teacher, out, "embedding", "cam"))
    done(*caching(teacher, out, "attention"))
    after = files_of(out)
    assert all(after[name] == content for name, content in before.items() if "/c/" in name)
    added, whole = open_cache(out), open_cache(of_signals)  # their blocks differ in size
    for name in whole.manifest.signals:
        for view in range(whole.plan.num_views):
            values = [reader.read_view(view, name) for reader in (added, whole)]
            np.testing.assert_allclose(*values, rtol=2e-3, atol=2e-3)
    assert open_cache(out).manifest.digest == open_cache(of_signals).manifest.digest
    refused = dhkd(*caching(other_teacher, out, "last_map"))
    assert_one_line(refused, 1, ["teacher.sha256 expected", "write this one to another --out"])
    assert files_of(out) == after
    verified = done("verify", out, "--preset", "digits", *SMALL_VERIFY, "--teacher", teacher, "--json").result
    assert verified["differences_from_live"].keys() == open_cache(out).manifest.signals.keys()


def test_class_activation_maps_agree_with_the_logits(of_signals: Path, teacher: Path) -> None:
    """Their mean over the map is logits − bias, so that two signals check each other without the teacher."""
    reader = open_cache(of_signals)
    network = build_network("resnet8", 10)
    network.load_state_dict(load_file(teacher / "teacher.safetensors"))
    bias = network.head.bias.detach().numpy()
    for view in range(reader.plan.num_views):
        cam, logits = reader.read_view(view, "cam-2x2"), reader.read_view(view, "logits")
        assert abs(cam.mean(axis=(2, 3)) + bias - logits).max() < 0.02


@pytest.mark.soak  # in CI for logits, in test_processes.py
def test_two_processes_write_the_same_signals(teacher: Path, of_signals: Path, tmp_path: Path) -> None:
    words = caching(teacher, tmp_path / "c.zarr")
    outcome = in_processes(2, *words, *OF_SIGNALS)
    assert outcome.code == 0, outcome.err
    assert files_of(tmp_path / "c.zarr") == files_of(of_signals)


def test_without_a_cache_all_is_live(teacher: Path, tmp_path: Path) -> None:
    result = done(*training(tmp_path / "r", "kd + rkd", "--set", "teacher.live=true", "--teacher", teacher, "--json"))
    assert result.result["live"] == ["logits", "embedding"]
    assert result.result["cache"] is None
    assert done(*training(tmp_path / "ce", "ce", "--json")).result["cache"] is None


def test_a_live_teachers_batch_norm_leaves_no_trace(teacher: Path, tmp_path: Path) -> None:
    """ofd's maps come from training mode, kd's logits from evaluation mode: they are the same without ofd."""
    live = ["--set", "teacher.live=true", "--teacher", teacher, "--set", "student.lr=0.001"]
    for name, objective in (("alone", "kd"), ("beside", "kd + 1e-9 * ofd")):
        done(*training(tmp_path / name, objective, *live))
    assert first_epoch(tmp_path / "beside")["kd"] == pytest.approx(first_epoch(tmp_path / "alone")["kd"], rel=1e-5)
    assert first_epoch(tmp_path / "beside")["ofd"] > 0


@pytest.mark.parametrize(
    ("objective", "words", "code", "says"),
    [
        ("rkd", [], 1, ["'rkd' needs the signal embedding, it holds logits;", "--signals embedding' (", "MB a view",
                        "450 forwards once for 3 views", "teacher.live=true", "forwards for each student"]),
        ("ofd", ["--teacher", "TEACHER"], 1, ["map1-before-batch", "can't be cached", "teacher.live=true"]),
        ("ofd", [], 2, ["--teacher", "batch norm", "no cache holds"]),
        ("simkd", [], 2, ["--teacher", "classifier"]),
        ("rkd", ["--set", "teacher.live=true"], 2, ["--teacher", "expected its weights, got none"]),
        ("kd + kd", [], 2, ["each only once", "kd + kd"]),
        ("kd + nothing", [], 2, ["unknown objective 'nothing'"]),
        ("kd + x * dist", [], 2, ["expected a finite factor > 0, got 'x'"]),
        ("rkd", ["--set", "student.teacher=mean", "--set", "teacher.live=true", "--teacher", "TEACHER"], 2,
         ["several teachers have a mean of their logits, not of embedding"]),
        ("kd", ["--set", "alignment.kept=[kd]", "--set", "alignment.against=[cd]"], 2, ["unknown term 'cd'"]),
        ("ce", ["--set", "alignment={}"], 2, ["alignment.against: expected at least one of ce, got none"]),
    ],
)  # fmt: skip
def test_a_missing_signal_is_one_line(
    objective: str, words: list[str], code: int, says: list[str], cache: Path, teacher: Path, tmp_path: Path
) -> None:
    given = [teacher if word == "TEACHER" else word for word in words]
    assert_one_line(dhkd(*training(tmp_path / "r", objective, "--cache", cache, *given)), code, says)
    assert not (tmp_path / "r").exists()


def test_a_signal_that_can_not_be_cached_or_read(teacher: Path, tmp_path: Path) -> None:
    for signal, says in [
        ("map1-before-batch", ["can't be cached"]),
        ("map9", ["expected a stage from 0 to 3, got 9"]),
        ("embeding", ["signal 'embeding': expected one such as logits, embedding"]),
    ]:
        assert_one_line(dhkd(*caching(teacher, tmp_path / "c", signal)), 2, says)
    assert not (tmp_path / "c").exists()


def test_alignment_of_any_split(cache: Path, teacher: Path, tmp_path: Path) -> None:
    """Another split trains another student, and the metrics count the steps with opposed gradients."""
    live = ["--cache", cache, "--set", "teacher.live=true", "--teacher", teacher]
    for name, words in [
        ("summed", []),
        ("aligned", ["--set", "alignment.kept=[ce]", "--set", "alignment.against=[review]"]),
    ]:
        done(*training(tmp_path / name, "reviewkd", *live, *words))
    lines = [json.loads(line) for line in (tmp_path / "aligned" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["conflicting_steps"] for line in lines) > 0
    results = [json.loads((tmp_path / name / "result.json").read_text())["sha256"] for name in ("summed", "aligned")]
    assert results[0] != results[1]


def test_methods_lists_the_needs_of_each() -> None:
    rows = {row["method"]: row for row in done("methods", "cifar100/resnet32x4-resnet8x4", "--json").result}
    assert rows["kd"]["row_bytes"] == 200
    assert rows["at"]["row_bytes"] == 2 * (32**2 + 16**2 + 8**2)
    assert rows["reviewkd"]["row_bytes"] == 2 * (64 * 32**2 + 128 * 16**2 + 256 * 8**2 + 256)
    assert rows["dhkd"]["extra_parameters"] == 71_900
    assert rows["fitnet"]["extra_parameters"] == 128 * 128 + 128 + 2 * 128
    assert rows["crd"]["extra_parameters"] == 2 * (256 * 128 + 128)
    assert rows["simkd"]["exported_parameters"] == rows["simkd"]["extra_parameters"] + 256 * 100 + 100
    assert [name for name, row in rows.items() if row["cacheable"] is False] == ["ofd"]
    table = done("methods").out
    assert all(name in table for name in rows)


def test_the_plan_lists_other_signals() -> None:
    plan = done(
        "plan",
        "cifar100/resnet32x4-resnet8x4",
        "--set",
        "cache.signals=[logits,cam]",
        "--set",
        "objective=at",
        "--json",
    ).result
    planned = {signal["signal"]: signal for signal in plan["signals"]}
    assert planned["cam-2x2"]["cached"]
    assert not planned["cam-2x2"]["needed"]
    assert planned["attention1-32x32"]["needed"]
    assert planned["cam-2x2"]["bytes"] == 162 * 50_000 * 800
    rows = {codec["codec"]: codec["block_rows"] for codec in plan["codecs"]}
    assert rows["float16"] == rows["int8"], "the largest signal decides how many rows a block has"


def test_signals_have_the_shapes_in_the_manifest(of_signals: Path) -> None:
    reader = open_cache(of_signals)
    for name, signal in reader.manifest.signals.items():
        values = reader.read_view(0, name)
        assert values.shape == (reader.plan.num_samples, *signal.row)
        assert np.isfinite(values).all()
