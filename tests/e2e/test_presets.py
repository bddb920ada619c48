"""Every preset runs by its name: its networks are those that it records, and smoke mode passes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.configs.load import load_experiment, preset_names
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.train.objectives import OBJECTIVES, combined_objective
from PIL import Image

from tests.e2e.command_line import done

CLASSES = {"cifar100": 100, "imagenet": 1000}
RECORDED = [name for name in preset_names() if "/" in name]
PAIRS = [name for name in RECORDED if "published" in load_experiment(name).record]
MODERN = [name for name in RECORDED if name not in PAIRS]

# Top-1 in percent: teacher, student alone, DHKD (arXiv 2411.08937, the tables of CIFAR-100 and ImageNet).
PAPER = {
    ("resnet56", "resnet20"): (72.34, 69.06, 71.19),
    ("resnet110", "resnet32"): (74.31, 71.14, 73.92),
    ("resnet32x4", "resnet8x4"): (79.42, 72.50, 76.54),
    ("wrn_40_2", "wrn_16_2"): (75.61, 73.26, 76.36),
    ("wrn_40_2", "wrn_40_1"): (75.61, 71.98, 75.25),
    ("vgg13", "vgg8"): (74.64, 70.36, 74.84),
    ("resnet32x4", "ShuffleV1"): (79.42, 70.50, 76.78),
    ("wrn_40_2", "ShuffleV1"): (75.61, 70.50, 77.25),
    ("vgg13", "MobileNetV2"): (74.64, 64.60, 70.09),
    ("ResNet50", "MobileNetV2"): (79.34, 64.60, 71.08),
    ("resnet32x4", "ShuffleV2"): (79.42, 71.82, 77.99),
    ("torchvision:resnet34", "torchvision:resnet18"): (73.31, 69.75, 72.15),
    ("torchvision:resnet50", "MobileNetV1"): (76.16, 68.87, 72.99),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in ImageNet's layout: three classes of nine photographs each, of several sizes."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(27):
            file = root / split / f"n{number % 3:08d}" / f"n{number % 3:08d}_{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(60, 120, 2)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "JPEG")
    return root


def test_the_thirteen_pairs_of_the_paper_are_all_there() -> None:
    experiments = [load_experiment(name) for name in PAIRS]
    pairs = [(experiment.teacher.architecture, experiment.student.architecture) for experiment in experiments]
    assert sorted(pairs) == sorted(PAPER)
    for pair, experiment in zip(pairs, experiments, strict=True):
        published = experiment.record["published"]
        assert (published["teacher"], published["student"], published["dhkd"]) == PAPER[pair]


def test_presets_with_the_training_of_today_are_there() -> None:
    assert MODERN == ["cifar100/modern-resnet20", "imagenet/deit3-vit-small", "imagenet/modern-resnet18"]
    for experiment in map(load_experiment, MODERN):
        assert experiment.views.parameters.keys() >= {"policy", "mix"}
        assert experiment.record["trained"].startswith("not by us at full length")


@pytest.mark.parametrize("name", RECORDED)
def test_parameters_are_those_of_the_networks(name: str) -> None:
    experiment = load_experiment(name)
    with torch.device("meta"):
        counts = {
            role: count_parameters(build_network(settings.architecture, CLASSES[name.partition("/")[0]]))
            for role, settings in (("teacher", experiment.teacher), ("student", experiment.student))
        }
    assert experiment.record["parameters"] == counts


def test_the_list_shows_pairs_with_sizes_and_accuracies() -> None:
    rows = {row["name"]: row for row in done("presets", "--json").result}
    text = done("presets").out
    for name in PAIRS:
        row, line = rows[name], next(line for line in text.splitlines() if line.startswith(f"{name} "))
        figures = [row["published"][key] for key in ("teacher", "student", "dhkd")]
        shown = [row["teacher"], row["student"], *(f"{figure:.2f}" for figure in figures)]
        shown += [f"({row['parameters'][role] / 1e6:.2f} M)" for role in ("teacher", "student")]
        assert all(word in line for word in shown), line
    assert rows["demo"]["description"] in text


# Quick enough for every run of the tests; all of them run in `make soak`. Other tests run both stages on CIFAR-100.
QUICK = ("imagenet/resnet34-resnet18", *MODERN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in RECORDED]
)
def test_smoke_runs_both_stages(name: str, photographs: Path, tmp_path: Path) -> None:
    words = [name, "--smoke", "--cpu", "--precision", "float32", "--json"]
    words += ["--data-root", str(photographs), "--workers", "0"] if name.startswith("imagenet/") else []
    experiment = load_experiment(name, smoke=True)
    teacher = done("train-teacher", *words, "--out", tmp_path / "teacher").result
    assert teacher["architecture"] == experiment.teacher.architecture
    written = done("cache-teacher", *words, "--teacher", tmp_path / "teacher", "--out", tmp_path / "c.zarr").result
    assert written["cache"]["views"] == 2
    assert written["rows_written"] == 2 * (experiment.data.limit or 0)
    student = done("train-student", *words, "--cache", tmp_path / "c.zarr", "--out", tmp_path / "student").result
    assert (student["architecture"], student["objective"]) == (experiment.student.architecture, experiment.objective)
    assert student["cache"]["teacher_sha256"] == teacher["sha256"]


@pytest.mark.parametrize("name", preset_names())
def test_every_objective_takes_the_presets_options(name: str) -> None:
    options = load_experiment(name).objectives
    for objective in (*OBJECTIVES, "dhkd + reviewkd"):
        assert combined_objective(objective, options)


# For each pair: DKD's beta, ReviewKD's weight, CAT-KD's weight, grid and whether maps are normalised.
PUBLISHED = {
    "cifar100/resnet56-resnet20": (2, 0.6, (0.7, 2, False)),
    "cifar100/resnet110-resnet32": (2, 1, (1.8, 2, False)),
    "cifar100/resnet32x4-resnet8x4": (8, 5, (15, 2, False)),
    "cifar100/wrn_40_2-wrn_16_2": (6, 5, (12, 2, False)),
    "cifar100/wrn_40_2-wrn_40_1": (6, 5, (1.5, 2, False)),
    "cifar100/vgg13-vgg8": (6, None, (4.5, 2, False)),
    "cifar100/vgg13-MobileNetV2": (6, None, (15, 2, True)),
    "cifar100/resnet32x4-ShuffleV1": (8, 5, (600, 4, True)),
    "cifar100/resnet32x4-ShuffleV2": (8, 8, (600, 4, True)),
    "cifar100/wrn_40_2-ShuffleV1": (8, 5, (80, 4, True)),
    "cifar100/ResNet50-MobileNetV2": (8, 30, (40, 2, True)),
    "imagenet/resnet34-resnet18": (0.5, 1, (0.5, 4, False)),
    "imagenet/resnet50-MobileNetV1": (2, 8, (10, 2, True)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_settings_are_those_published_for_the_pair(name: str) -> None:
    options = load_experiment(name).objectives
    beta, review, cam = PUBLISHED[name]
    assert combined_objective("dkd", options).beta == beta
    assert review is None or combined_objective("reviewkd", options).review_weight == review
    cat_kd = combined_objective("cat-kd", options)
    assert (cat_kd.cam_weight, cat_kd.grid, cat_kd.normalize) == cam
    large = name.startswith("imagenet/")
    assert combined_objective("kd", options).temperature == (1 if large else 4)
    assert combined_objective("dkd", options).temperature == (1 if large else 4)
    assert combined_objective("dist", options).temperature == (1 if large else 4)
    assert combined_objective("ofd", options).ofd_weight == (1e-4 if large else 1e-3)
    # The authors' epochs count from 1, and alpha is 0 where `epoch >= 50`.
    dhkd, last = combined_objective("dhkd", options), 49 if large else 240
    assert [epoch for epoch in range(1, 241) if dhkd.weights(epoch - 1)["binary-kl-norm"]] == list(range(1, last + 1))
    review = combined_objective("reviewkd", options)
    assert review.student_before_activation == large
    assert review.fusion_width == (256 if name.endswith("MobileNetV1") else 512)
    assert combined_objective("crd", options).replacement == large
