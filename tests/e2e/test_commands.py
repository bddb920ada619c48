"""Everything in a user's order: train a teacher, cache it, train students, and use the trained networks."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from dhkd.stages.models import build_network
from dhkd.stages.train.objectives import OBJECTIVES

from tests.e2e.command_line import SMALL, SMALL_VERIFY, dhkd, done
from tests.few import few
from tests.samples import pixels_of

RESULT_FIELDS = {
    *("last_top1", "best_top1", "last_top5", "best_top5", "seconds", "samples_per_second", "seed", "cache", "versions"),
    *("objective", "architecture", "parameters", "epochs", "sha256", "precision", "hardware", "processes"),
}


@pytest.fixture(scope="module")
def of_every_signal(cache: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cache with every signal that some objective needs, added in a second call."""
    out = shutil.copytree(cache, tmp_path_factory.mktemp("signals") / "c")
    maps = ",".join(["map2", *(f"map{stage}-before" for stage in (1, 2, 3))])
    signals = f"embedding,cam,attention,last_map,{maps}"
    done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", out, "--signals", signals)
    return out


@pytest.mark.parametrize(
    "objective", few(OBJECTIVES, ["ce", "dhkd", "cat-kd", "crd", "fitnet", "ofd", "reviewkd", "simkd"])
)
def test_a_student_of_every_objective_from_one_cache(
    objective: str, of_every_signal: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = [*SMALL, "--set", f"objective={objective}", "--set", "objectives.ofd.teacher_batch_norm=eval"]
    words = ["train-student", "digits", *settings, "--cache", of_every_signal, "--teacher", teacher, "--out", out]
    outcome = done(*words, "--json")
    result = outcome.result
    assert result == json.loads((out / "result.json").read_text())
    assert result.keys() >= RESULT_FIELDS
    assert result["objective"] == objective
    assert 100 >= result["best_top1"] >= result["last_top1"] >= 0
    assert "epoch 2/2" in outcome.err, "progress goes to standard error"

    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2]
    assert metrics[-1]["top1"] == result["last_top1"]
    assert "ce" in metrics[0]
    assert yaml.safe_load((out / "config.yaml").read_text())["experiment"]["objective"] == objective
    assert list((out / "tracking").rglob("events.out.tfevents*")), "TensorBoard is installed with the tests"

    # The trained student is a plain network without the auxiliary head.
    tensors = safetensors.torch.load_file(out / "student.safetensors")
    assert tensors.keys() == build_network(result["architecture"], 10).state_dict().keys()
    assert (result["architecture"] == "resnet8") == (objective != "simkd")
    if objective not in ("dhkd", "simkd"):
        return
    exported = tmp_path / "exported.safetensors"
    done("export", out, "--out", exported)
    assert safetensors.torch.load_file(exported).keys() == tensors.keys()
    for weights in (["--student", out], ["--student", exported]):
        again = done("evaluate", "digits", "--cpu", *weights, "--set", "student.precision=float32", "--json").result
        assert (again["top1"], again["top5"]) == (result["last_top1"], result["last_top5"])
        assert again["sha256"] == result["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", few(["ce", "dhkd"], ["dhkd"]))
def test_students_learn(objective: str, teacher: Path, tmp_path: Path) -> None:
    """Four epochs on all of digits are enough to be far from chance, although this teacher has learnt little."""
    settings = ["--set", "teacher=resnet8", "--set", "cache.views=2", "--set", "student.epochs=4", "--cpu"]
    done("cache-teacher", "digits", *settings, "--teacher", teacher, "--out", tmp_path / "c.zarr")
    settings += ["--set", f"objective={objective}", "--set", "objectives.dhkd.alpha=0.1"]
    done("train-student", "digits", *settings, "--cache", tmp_path / "c.zarr", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["last_top1"] > 70


def test_evaluating_a_run_gives_its_own_accuracy(teacher: Path) -> None:
    result = json.loads((teacher / "result.json").read_text())
    outcome = done("evaluate", teacher, "--cpu")
    assert f"top-1 {result['last_top1']:.2f} %" in outcome.out
    assert outcome.out.count("\n") == 1


def test_the_folder_of_a_run_is_a_preset(teacher: Path, tmp_path: Path) -> None:
    """The same settings give the same weights."""
    done("train-teacher", teacher, "--cpu", "--out", tmp_path / "again")
    first, again = (json.loads((run / "result.json").read_text()) for run in (teacher, tmp_path / "again"))
    assert first["sha256"] == again["sha256"]


def test_inspect_describes_a_cache(cache: Path, teacher: Path) -> None:
    facts = done("inspect", cache, "--json").result
    sha256 = json.loads((teacher / "result.json").read_text())["sha256"]
    assert facts["complete"]
    assert (facts["views"], facts["samples"], facts["classes"]) == (3, 150, 10)
    assert facts["blocks"] == facts["blocks_done"] == 6
    assert facts["identity"]["signals"]["logits"]["teacher"]["sha256"] == facts["teacher_sha256"] == sha256
    chunks = [f for f in cache.rglob("c/**/*") if f.is_file()]
    assert facts["bytes"] == sum(f.stat().st_size for f in chunks)
    table = done("inspect", cache).out
    for words in ("complete, 6 of 6 blocks", "digits, train: 150 samples", "3 of crop-flip", "resnet8", "float16"):
        assert words in table


def test_verify_recomputes(cache: Path, teacher: Path) -> None:
    command = ["verify", cache, "--preset", "digits", *SMALL_VERIFY, "--rows", "40"]
    assert "rows re-rendered, all equal" in done(*command).out
    result = done(*command, "--teacher", teacher, "--json").result
    assert result["rows_recomputed"] == 40
    assert 0 < result["largest_difference_from_live"] < 0.02, "float16 rounds, and nothing else differs"


def test_a_complete_cache_is_not_written_again(cache: Path, teacher: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("c/**/*")}
    again = done("cache-teacher", "digits", *SMALL, "--teacher", teacher, "--out", cache, "--json").result
    assert again["blocks_written"] == 0
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("c/**/*")} == before


def test_the_cache_holds_the_teachers_logits(cache: Path, teacher: Path) -> None:
    """Computed by hand: load the weights, crop the images, run the network."""
    from dhkd.data.cache.reader import open_cache
    from dhkd.data.recipes.crop_flip import CropFlip
    from dhkd.data.sources import load_source

    images = load_source("digits", "train", limit=150)
    network = build_network("resnet8", 10)
    network.load_state_dict(safetensors.torch.load_file(teacher / "teacher.safetensors"))
    recipe = CropFlip(padding=1, flip=False, seed=0)
    index_B = torch.arange(150)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    reader = open_cache(cache)
    for view in range(3):
        pixels = pixels_of(recipe, images.images_NCHW, recipe.draws(torch.full_like(index_B, view), index_B))
        with torch.no_grad():
            expected = network.eval()((pixels / 255 - mean) / std)
        stored = torch.from_numpy(reader.read_view(view))
        torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)


def test_a_streamed_view_gives_the_same_student_as_one_in_memory(cache: Path, tmp_path: Path) -> None:
    """cycle streams the views, independent keeps them in memory; if there is only one view, they agree."""

    def sha256_of(schedule: str, views: int) -> str:
        settings = [*SMALL, "--set", f"student.view_schedule={schedule}", "--set", f"student.views={views}"]
        words = ["--set", "student.epochs=1", "--cache", cache, "--out", tmp_path / f"{schedule}-{views}", "--json"]
        return str(done("train-student", "digits", *settings, *words).result["sha256"])

    assert sha256_of("cycle", 1) == sha256_of("independent", 1)
    assert sha256_of("cycle", 3) != sha256_of("independent", 3), "other views, other weights"


def test_seed_decides_the_student(cache: Path, tmp_path: Path) -> None:
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        settings = [*SMALL, "--set", f"seed={seed}", "--set", "student.epochs=1"]
        out = tmp_path / str(number)
        hashes.append(
            done("train-student", "digits", *settings, "--cache", cache, "--out", out, "--json").result["sha256"]
        )
    assert hashes[0] == hashes[1] != hashes[2]


def test_presets_are_listed_shown_and_copied(tmp_path: Path) -> None:
    names = {row["name"] for row in done("presets", "--json").result}
    assert names >= {"demo", "digits", "cifar100/resnet56-resnet20", "cifar100/resnet32x4-resnet8x4"}
    shown = done("presets", "show", "cifar100/resnet56-resnet20").out
    file = tmp_path / "mine.yaml"
    done("presets", "copy", "cifar100/resnet56-resnet20", file)
    assert file.read_text() == shown
    assert dhkd("presets", "copy", "demo", file).code == 2, "it never overwrites"


@pytest.mark.slow
def test_the_smoke_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = done("demo", "--smoke", "--cpu", "--out", out)
    for words in ("teacher", "ce", "kd", "binary-kl", "dhkd", "Short runs", "accuracy.png"):
        assert words in outcome.out
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in outcome.out.splitlines()]
    for objective in ("ce", "kd", "binary-kl", "dhkd"):
        result = json.loads((out / objective / "result.json").read_text())
        (row,) = (row for row in rows if row and row[0] == objective)
        assert row[2] == f"{result['last_top1']:.2f}", "the table shows the run's own figures"
    assert dhkd("demo", "--smoke", "--out", out).code == 1, "it never writes into a folder that holds something"
