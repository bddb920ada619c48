"""Accuracy equals that of ranks counted directly, for any batch size and number of processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import pytest
import torch
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Normalization
from dhkd.stages.models import build_network
from dhkd.stages.models.evaluate import Accuracy, evaluate
from dhkd.stages.processes import Processes
from torch import Tensor

from tests.samples import make_images

SAMPLES = 37


class OneProcess:
    """One of several processes, without the others: its sums are its own."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.is_first = rank, world_size, rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        return values


ALONE = cast(Processes, OneProcess(0, 1))


def projection(num_classes: int) -> Callable[[Tensor], Tensor]:
    """A network with one random layer: its logits depend on every pixel."""
    weights_DK = torch.randn(3 * 8 * 8, num_classes, generator=torch.Generator().manual_seed(3))
    return lambda images_BCHW: images_BCHW.flatten(1) @ weights_DK


def counted_accuracy(images: ImageSet, num_classes: int) -> Accuracy:
    """The share of samples with less than 1, or 5, classes above the label; computed in float64."""
    mean, std = (np.array(values)[:, None, None] for values in (images.mean, images.std))
    inputs = (images.images_NCHW.numpy() / 255 - mean) / std
    logits = projection(num_classes)(torch.tensor(inputs, dtype=torch.float32)).double().numpy()
    labels = images.labels_N.numpy()
    above = np.array([(row > row[label]).sum() for row, label in zip(logits, labels, strict=True)])
    return Accuracy(100 * float((above < 1).mean()), 100 * float((above < 5).mean()))


def unaugmented(images: ImageSet) -> ResidentRenderer:
    return ResidentRenderer(images, AsTheyAre(), torch.device("cpu"))


def normalization(images: ImageSet) -> Normalization:
    return Normalization(images.mean, images.std)


@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 12, 40])
def test_accuracies_are_those_counted_directly(num_classes: int, processes: Processes) -> None:
    images = make_images(SAMPLES, num_classes=num_classes)
    expected = counted_accuracy(images, num_classes)
    accuracy = evaluate(
        projection(num_classes), unaugmented(images), normalization(images), batch_size=8, processes=processes
    )
    assert accuracy.top1 == pytest.approx(expected.top1, abs=1e-9)
    assert accuracy.top5 == pytest.approx(expected.top5, abs=1e-9)
    if num_classes <= 5:
        assert accuracy.top5 == 100
    else:
        assert accuracy.top1 < accuracy.top5 < 100, "otherwise the test could not tell them apart"


def test_the_best_and_the_worst(processes: Processes) -> None:
    images = make_images(SAMPLES, num_classes=12)
    one_hot_NK = torch.nn.functional.one_hot(images.labels_N, 12).float()
    for sign, expected in ((1.0, Accuracy(100, 100)), (-1.0, Accuracy(0, 0))):
        accuracy = evaluate(
            lambda images_BCHW, sign=sign: sign * one_hot_NK[: len(images_BCHW)],
            unaugmented(images), normalization(images), batch_size=SAMPLES, processes=processes,
        )  # fmt: skip
        assert accuracy == expected


@pytest.mark.parametrize("batch_size", [1, 7, 36, SAMPLES, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    images = make_images(SAMPLES, num_classes=12)
    accuracy = evaluate(
        projection(12), unaugmented(images), normalization(images), batch_size=batch_size, processes=ALONE
    )
    assert accuracy == evaluate(
        projection(12), unaugmented(images), normalization(images), batch_size=5, processes=ALONE
    )


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_processes_take_turns_with_the_same_batches(world_size: int) -> None:
    """One of nine processes has nothing to do, since there are eight batches."""
    images = make_images(SAMPLES, num_classes=12)
    model, normalize = projection(12), normalization(images)
    batches: dict[int, list[Tensor]] = {}

    def recorder(rank: int) -> Callable[[Tensor], Tensor]:
        def logits_of(images_BCHW: Tensor) -> Tensor:
            batches.setdefault(rank, []).append(images_BCHW)
            return model(images_BCHW)

        return logits_of

    whole = evaluate(recorder(-1), unaugmented(images), normalize, batch_size=5, processes=ALONE)
    parts = [
        evaluate(
            recorder(rank),
            unaugmented(images),
            normalize,
            batch_size=5,
            processes=cast(Processes, OneProcess(rank, world_size)),
        )
        for rank in range(world_size)
    ]
    assert sum(part.top1 for part in parts) == pytest.approx(whole.top1)
    assert sum(part.top5 for part in parts) == pytest.approx(whole.top5)
    for rank in range(world_size):
        expected = batches[-1][rank::world_size]
        assert [len(batch) for batch in batches.get(rank, [])] == [len(batch) for batch in expected]
        assert all(torch.equal(a, b) for a, b in zip(batches.get(rank, []), expected, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_keeps_its_mode_and_no_gradient_is_computed(training: bool) -> None:
    network = build_network("resnet8", 5).train(training)
    images = make_images(11)
    calls: list[tuple[bool, bool]] = []

    def logits_of(images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = network(images_BCHW)
        calls.append((network.training, logits_BK.requires_grad))
        return logits_BK

    evaluate(logits_of, unaugmented(images), normalization(images), batch_size=4, processes=ALONE)
    assert calls == [(training, False)] * 3
    assert network.training == training
    assert torch.is_grad_enabled()


def test_evaluating_leaves_a_network_in_eval_mode_as_it_was() -> None:
    network = build_network("resnet8", 5).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = make_images(11)
    evaluate(network, unaugmented(images), normalization(images), batch_size=4, processes=ALONE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
