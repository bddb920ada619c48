"""Sizes that are known without reading data are those of the data."""

from pathlib import Path

import pytest
from dhkd.configs.load import load_experiment
from dhkd.data.errors import ConfigError
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources import SOURCES, load_source
from dhkd.data.sources.base import Place
from dhkd.pipeline.sizes import DataSize, data_size_of, pixels_of, setting_without_data

IMAGENET = "imagenet/resnet34-resnet18"


def test_sizes_are_those_of_the_sets() -> None:
    for name in ("digits", "glyphs"):
        images = load_source(name, "train")
        assert (len(images), images.num_classes) == (SOURCES[name].size.samples, SOURCES[name].size.classes)
        assert isinstance(images, ImageSet)
        assert images.images_NCHW.shape[2:] == (SOURCES[name].size.pixels,) * 2


def test_the_size_of_cifar100(real_data: Path) -> None:
    images = load_source("cifar100", "train", Place(root=str(real_data)))
    assert (len(images), images.num_classes) == (SOURCES["cifar100"].size.samples, SOURCES["cifar100"].size.classes)


@pytest.mark.parametrize(
    ("overrides", "samples", "classes", "expected"),
    [
        ([], None, None, (1_281_167, 1000, True)),
        ([], 3000, None, (3000, 1000, False)),
        ([], None, 30, (1_281_167, 30, True)),
        (["data.limit=500"], None, None, (500, 1000, False)),
        (["record={}"], 3000, 30, (3000, 30, False)),
        (["record={}", "data.limit=500"], None, 30, (500, 30, False)),
        (["record={samples: {train: 70, test: 5}, classes: 7}"], None, None, (70, 7, True)),
        (["record={samples: many, classes: 7}"], 9, None, (9, 7, False)),
    ],
    ids=str,
)
def test_a_folder_has_the_size_that_options_or_else_the_record_give(
    overrides: list[str], samples: int | None, classes: int | None, expected: tuple[int, int, bool]
) -> None:
    experiment = load_experiment(IMAGENET, overrides)
    assert data_size_of(experiment, samples, classes) == DataSize("image-folder", *expected)


@pytest.mark.parametrize(
    ("preset", "overrides", "options", "message"),
    [
        ("digits", [], {"samples": 100}, "--samples: digits has its own"),
        ("digits", [], {"classes": 100}, "--classes: digits has its own"),
        ("digits", ["data.limit=5000"], {}, "data.limit: expected 1 to 1437, the size of digits, got 5000"),
        (IMAGENET, ["record={}"], {}, "--samples: image-folder doesn't tell how many samples"),
        (IMAGENET, ["record={}"], {"samples": 9}, "--classes: image-folder doesn't tell how many classes"),
        (IMAGENET, ["data.limit=10"], {"samples": 9}, "data.limit: expected 1 to 9"),
    ],
    ids=str,
)
def test_a_size_that_is_unknown_or_known_already_is_an_error(
    preset: str, overrides: list[str], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        data_size_of(load_experiment(preset, overrides), **options)


def test_images_have_the_pixels_of_the_source_or_of_the_views() -> None:
    assert pixels_of(load_experiment("digits")) == 8
    assert pixels_of(load_experiment(IMAGENET)) == 224
    folder = load_experiment("digits", ["data={source: image-folder, num_classes: 5, limit: 10}"])
    assert pixels_of(folder) is None
    assert setting_without_data(folder, 5).teacher.maps[0][1:] == (32, 32), "a usual size stands in"


def test_a_setting_has_both_networks_and_a_label_for_each_class() -> None:
    setting = setting_without_data(load_experiment("cifar100/resnet56-resnet20", ["seed=5"]), 7)
    assert (setting.student.architecture, setting.teacher.architecture) == ("resnet20", "resnet56")
    assert setting.teacher.row("logits") == (7,)
    assert setting.labels_N.tolist() == list(range(7))
    assert (setting.seed, setting.teacher_network) == (5, None)
