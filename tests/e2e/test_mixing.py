"""Mixed images on the command line and from Python: both stages agree, and what can't be mixed is refused at once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes import build_recipe
from dhkd.pipeline.api import DistillationSet
from torch.utils.data import DataLoader

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done

MIX = ["--set", "views.mix={mixup: 0.8, cutmix: 1.0, group: 32}"]
REFUSED = (
    "expected images of one class each, for {}, got views that mix images; leave views.mix out, or choose an objective"
    " that takes mixed images, such as kd"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that was trained on mixed images."""
    out = tmp_path_factory.mktemp("mixing") / "teacher"
    longer = ["--set", "teacher.epochs=3", "--set", "teacher.lr=0.1"]
    done("train-teacher", "digits", *SMALL, *longer, *MIX, "--out", out)
    return out


@pytest.fixture(scope="module")
def cache(teacher: Path) -> Path:
    out = teacher.parent / "c.zarr"
    done("cache-teacher", "digits", *SMALL, *MIX, "--teacher", teacher, "--out", out)
    return out


def student(cache: Path, out: Path, *words: object, mix: Sequence[str] = MIX) -> list[object]:
    return ["train-student", "digits", *SMALL, *mix, "--cache", cache, "--out", out, *words]


def test_a_student_learns_from_a_cache_of_mixed_images(cache: Path, tmp_path: Path) -> None:
    done(*student(cache, tmp_path / "s", "--set", "student.epochs=3"))
    *_, metrics = [json.loads(line) for line in (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < metrics["train_top1"] < 100
    assert np.isfinite(metrics["ce"])
    assert done("verify", cache).code == 0


def test_a_live_teacher_sees_what_the_cached_one_saw(cache: Path, teacher: Path, tmp_path: Path) -> None:
    """The live signals are float32 and the cached ones float16."""
    done(*student(cache, tmp_path / "cached", "--set", "objective=kd"))
    live = ["--set", "objective=kd", "--set", "teacher.live=true", "--set", "student.views=3", "--teacher", teacher]
    done("train-student", "digits", *SMALL, *MIX, *live, "--out", tmp_path / "live")
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cached", "live")
    )
    for cached_epoch, live_epoch in zip(first, second, strict=True):
        for name in ("ce", "kd", "train_top1", "top1"):
            assert cached_epoch[name] == pytest.approx(live_epoch[name], rel=1e-3), name


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ([], "recipe.mix expected nothing, got"),
        (["--set", "views.mix={mixup: 0.8, cutmix: 1.0}"], "recipe.mix.group expected 64, got 32"),
    ],
)
def test_other_mixing_than_the_caches_is_refused(cache: Path, tmp_path: Path, mix: list[str], message: str) -> None:
    outcome = dhkd(*student(cache, tmp_path / "s", mix=mix))
    assert_one_line(outcome, 1, message)
    assert not (tmp_path / "s").exists()


def test_methods_of_one_class_are_refused_before_anything_is_trained(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    for words, method in (
        (student(cache, out, "--set", "objective=crd"), "crd"),
        (["sweep", "digits", *SMALL, *MIX, "--cache", cache, "--out", out, "--grid", "objective=kd,kd + dkd"], "dkd"),
        (["plan", "digits", *MIX, "--set", "objective=dkd + 0.5 * crd"], "dkd and crd"),
    ):
        assert_one_line(dhkd(*words), 2, REFUSED.format(method))
        assert not out.exists()
    methods = json.loads(done("methods", "digits", *MIX, "--json").out)
    refused = {method["method"]: method["stands_against"] for method in methods if method["stands_against"]}
    assert refused == {name: f"objective {name!r}: {REFUSED.format(name)}" for name in ("dkd", "crd")}


def test_items_of_a_loop_have_the_share_of_each_class(cache: Path) -> None:
    samples = DistillationSet.from_cache(cache)
    images, shares, logits = next(iter(DataLoader(samples, batch_size=150)))
    assert (shares.shape, shares.dtype) == (logits.shape, torch.float32)
    assert torch.allclose(shares.sum(dim=1), torch.ones(150))
    assert 0.5 < ((shares > 0).sum(dim=1) == 2).float().mean() < 1
    recipe = build_recipe(
        "crop-flip", {"padding": 1, "flip": False, "seed": 0, "mix": {"mixup": 0.8, "cutmix": 1.0, "group": 32}}
    )
    digits = samples._renderer.images
    index_B = torch.arange(150)
    pixels = ResidentRenderer(digits, recipe, torch.device("cpu")).pixels(samples._view_N, index_B)
    assert torch.equal(images, samples._normalize(pixels))
    drawn = recipe.mixing.drawn(samples._view_N, index_B, 150, digits.shape)
    expected = torch.zeros(150, 10)
    for row, (label, partner) in enumerate(zip(digits.labels_N, digits.labels_N[drawn.partner_B], strict=True)):
        expected[row, label] += drawn.weight_B[row]
        expected[row, partner] += 1 - drawn.weight_B[row]
    assert torch.equal(shares, expected)
    test = DistillationSet.from_cache(cache, split="test")
    assert isinstance(test[0][1], int)
