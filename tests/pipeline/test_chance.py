"""A teacher whose classes are in another order, or that only guesses, is seen; an untrained one on few images isn't."""

import logging

import pytest
import torch
from dhkd.configs.load import load_experiment
from dhkd.data.errors import DataError
from dhkd.data.images.in_memory import ImageSet
from dhkd.pipeline.build import data
from dhkd.pipeline.chance import chance_fault, order_fault, require_better_than_chance
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models.evaluate import Accuracy

FOLDER = "data={source: image-folder}"


def images_of(labels: torch.Tensor, num_classes: int, size: int = 1) -> ImageSet:
    pixels = torch.zeros(len(labels), 3, size, size, dtype=torch.uint8)
    return ImageSet("some", "test", pixels, labels, num_classes, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def judged(labels: torch.Tensor, top: torch.Tensor, num_classes: int) -> tuple[Accuracy, ImageSet]:
    return Accuracy(100 * float((labels == top).float().mean()), 100.0, top), images_of(labels, num_classes)


def guesses(num_classes: int, total: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, num_classes, (total,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_classes", "each"), [(2, 20), (4, 4), (11, 3), (1000, 5)])
@pytest.mark.parametrize("right", [1.0, 0.9])
def test_classes_in_another_order_are_seen(num_classes: int, each: int, right: float) -> None:
    labels = torch.arange(num_classes * each) % num_classes
    wrong = torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) >= right
    # As folders 0, 1, 2, 10, sorted as text; for few classes, all move by one.
    names = sorted(range(num_classes), key=str) if num_classes > 4 else [*range(1, num_classes), 0]
    top = torch.tensor(names)[labels]
    top[wrong] = guesses(num_classes, len(labels))[wrong]
    fault = order_fault(*judged(labels, top, num_classes))
    assert fault is not None
    assert "its classes are in another order than the data's: it takes class" in fault


@pytest.mark.parametrize(
    ("num_classes", "total"), [(2, 8), (2, 200), (4, 16), (10, 20), (10, 500), (100, 200), (100, 9)]
)
@pytest.mark.parametrize("seed", range(20))
def test_guessing_is_no_other_order(num_classes: int, total: int, seed: int) -> None:
    labels = torch.arange(total) % num_classes
    for top in (guesses(num_classes, total, seed), torch.full_like(labels, seed % num_classes)):
        assert order_fault(*judged(labels, top, num_classes)) is None


@pytest.mark.parametrize("hits", [0, 3, 10, 60, 200])
def test_an_accuracy_of_guessing_is_seen_where_there_are_enough_images(hits: int) -> None:
    labels = torch.arange(200) % 10
    top = (labels + 1) % 10
    top[:hits] = labels[:hits]
    assert (chance_fault(*judged(labels, top, 10)) is not None) == (hits < 28.5), "20 of 200, and twice 4.2"
    assert chance_fault(*judged(labels[:99], top[:99], 10)) is None


def test_a_guessing_teacher_stops_before_its_cache_unless_that_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    guess = judged(torch.arange(200) % 10, guesses(10, 200), 10)
    with pytest.raises(
        DataError, match=r"^teacher: test accuracy expected above 10\.00 %, .*; set data\.classes to num"
    ):
        require_better_than_chance(load_experiment("digits", [FOLDER]), *guess)
    require_better_than_chance(load_experiment("digits", [FOLDER, "teacher.allow_chance=true"]), *guess)
    require_better_than_chance(load_experiment("digits"), *guess)
    assert len(caplog.messages) == 2, "a data set of our own has a fixed order, so a smoke test may go on"
    right = torch.arange(200) % 10
    require_better_than_chance(load_experiment("digits", [FOLDER]), *judged(right, right, 10))
    assert len(caplog.messages) == 2


def test_classes_in_another_order_stop_any_data_set() -> None:
    labels = torch.arange(200) % 10
    with pytest.raises(DataError, match=r"^teacher: its classes are in another order .*; check the teacher's file"):
        require_better_than_chance(load_experiment("digits"), *judged(labels, (labels + 1) % 10, 10))


def test_test_images_of_another_size_are_told(caplog: pytest.LogCaptureFixture) -> None:
    experiment = load_experiment("digits", ["data.test_limit=4"])
    for size, notes in ((8, 0), (9, 1)):
        train = images_of(torch.arange(20) % 10, 10, size)
        with caplog.at_level(logging.WARNING, logger="dhkd"):
            data.test_renderer_of(experiment, torch.device("cpu"), DataOptions(), train)
        assert len(caplog.messages) == notes
    assert "the training images have 9×9 pixels, the test images 8×8" in caplog.text
    with pytest.raises(
        DataError, match="expected as many classes in both splits, got 9 for training and 10 for testing"
    ):
        data.test_renderer_of(experiment, torch.device("cpu"), DataOptions(), images_of(torch.arange(9), 9, 8))
