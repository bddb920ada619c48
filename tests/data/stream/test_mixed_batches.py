"""Batches of mixed images: pixels, labels and the teacher's signals are those of the same mixture, cached or live."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheMismatch
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.recipes import build_recipe
from dhkd.data.render import Normalization
from dhkd.data.stream.batches import Batch, Live, Stream
from dhkd.data.stream.check import check_witnesses
from dhkd.data.stream.labels import DRAWN_TOGETHER, Labels, labels_of_batches, labels_of_keys
from dhkd.data.stream.signals import NoSignals, ResidentSignals, Signals
from dhkd.stages.cache.compare import compare_with_live
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import build_network
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives import build_objective
from torch import Tensor

from tests.caches import manifest_of, writer_at
from tests.samples import make_images

CPU = torch.device("cpu")
SAMPLES, CLASSES, VIEWS = 37, 5, 3
MIX = {"mixup": 0.8, "cutmix": 1.0, "probability": 0.9, "group": 8}
NORMALIZE = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def renderer_of(images: ImageSet | None = None, *, mix: object = MIX, padding: int = 1) -> ResidentRenderer:
    recipe = build_recipe("crop-flip", {"padding": padding, "flip": True, "seed": 3, "mix": mix})
    return ResidentRenderer(images or make_images(SAMPLES), recipe, CPU)


def stream_of(
    signals: Signals | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    live: Live | None = None,
    renderer: ResidentRenderer | None = None,
) -> Stream:
    return Stream(
        renderer or renderer_of(),
        NORMALIZE,
        signals or NoSignals(VIEWS),
        schedule="independent",
        seed=5,
        batch_size=8,
        live=live,
        rank=rank,
        world_size=world_size,
    )


def teacher_of(processes: Processes) -> Teacher:
    torch.manual_seed(3)
    return Teacher(build_network("resnet8", CLASSES), NORMALIZE, processes)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    labels = {name: value for name, value in vars(batch.labels).items() if value is not None}
    return {"view": batch.view_B, "index": batch.index_B, "images": batch.images_BCHW, **labels, **batch.teacher}


def joined(batches: list[Batch]) -> dict[str, Tensor]:
    rows = [tensors_of(batch) for batch in batches]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


# labels


def test_labels_are_those_of_both_images_and_weigh_what_is_seen() -> None:
    """Of images of one colour each: a mixture's mean colour says how much of each is seen."""
    colours = torch.arange(SAMPLES) * 6 + 10
    images = make_images(SAMPLES)
    plain = colours.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    renderer = renderer_of(
        ImageSet("colours", "train", plain, images.labels_N, CLASSES, images.mean, images.std), padding=0
    )
    mixes = renderer.recipe.mixing
    assert mixes is not None
    for batch in stream_of(renderer=renderer).epoch(0):
        labels = batch.labels
        drawn = mixes.drawn(batch.view_B, batch.index_B, SAMPLES, (8, 8))
        assert torch.equal(labels.classes_B, images.labels_N[batch.index_B])
        assert torch.equal(labels.second_B, images.labels_N[drawn.partner_B])
        assert labels.weight_B.dtype == torch.float32
        seen = labels.weight_B * colours[batch.index_B] + (1 - labels.weight_B) * colours[drawn.partner_B]
        pixels = (
            batch.images_BCHW * torch.tensor([0.2, 0.25, 0.3])[:, None, None]
            + torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        )
        assert (255 * pixels.mean(dim=(1, 2, 3)) - seen).abs().max() < 0.51


def test_labels_of_an_epoch_are_those_of_each_key_alone() -> None:
    """They are drawn for several batches at once."""
    renderer, images = renderer_of(make_images(2 * DRAWN_TOGETHER, size=2)), make_images(2 * DRAWN_TOGETHER, size=2)
    index_N = torch.randperm(2 * DRAWN_TOGETHER, generator=torch.Generator().manual_seed(0))
    keys = [(index_B % 7, index_B) for index_B in index_N.split(1000)]
    for got, (view_B, index_B) in zip(labels_of_batches(images.labels_N, renderer, keys), keys, strict=True):
        expected = labels_of_keys(images.labels_N, renderer, view_B, index_B)
        for name, value in vars(expected).items():
            assert torch.equal(value, getattr(got, name)), name


def test_shares_of_classes_give_the_same_cross_entropy() -> None:
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    first, second, weight = torch.tensor([3, 1, 4, 2]), torch.tensor([0, 1, 2, 4]), torch.tensor([0.75, 0.25, 0.5, 1.0])
    shares_BK = Labels(first, second, weight).shares(CLASSES)
    assert shares_BK[1].tolist() == [0, 1, 0, 0, 0]
    assert shares_BK[0].tolist() == [0.25, 0, 0, 0.75, 0]
    expected = (weight * F.cross_entropy(logits, first, reduction="none")).sum()
    expected += ((1 - weight) * F.cross_entropy(logits, second, reduction="none")).sum()
    torch.testing.assert_close(F.cross_entropy(logits, shares_BK, reduction="sum"), expected)
    assert torch.equal(Labels(first).shares(CLASSES), F.one_hot(first, CLASSES).float())


def test_images_without_labels_are_mixed_all_the_same() -> None:
    plain = stream_of().epoch(0)
    renderer = renderer_of(make_images(SAMPLES).without_labels(None))
    for labelled, unlabelled in zip(plain, stream_of(renderer=renderer).epoch(0), strict=True):
        assert unlabelled.labels.are_absent
        assert torch.equal(labelled.images_BCHW, unlabelled.images_BCHW)


# processes


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_of_one(world_size: int, processes: Processes) -> None:
    teacher = partial(teacher_of(processes).signals, names=["logits"])
    alone = stream_of(live=teacher).epoch(1)
    ranks = [stream_of(live=teacher, rank=rank, world_size=world_size).epoch(1) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=False):
        together = joined(parts)
        for name, value in tensors_of(whole).items():
            torch.testing.assert_close(together[name], value, rtol=0, atol=1e-5 if name == "logits" else 0)


# cached and live


def write(path: Path, teacher: Teacher, processes: Processes, *, views: int = VIEWS, batch_size: int = 10) -> None:
    manifest = manifest_of(SAMPLES, CLASSES, views, 10)
    write_blocks(teacher, renderer_of(), writer_at(path, manifest), batch_size=batch_size, processes=processes)


def test_a_cached_step_is_a_live_step(processes: Processes, tmp_path: Path) -> None:
    teacher = teacher_of(processes)
    write(tmp_path / "c.zarr", teacher, processes)
    reader = open_cache(tmp_path / "c.zarr")
    cached = stream_of(ResidentSignals(reader, {"logits": ["logits"]}, CPU))
    live = stream_of(live=partial(teacher.signals, names=["logits"]))
    torch.manual_seed(7)
    student, objective = build_network("resnet8", CLASSES).train(), build_objective("kd", {})
    for one, other in zip(cached.epoch(2), live.epoch(2), strict=True):
        for name, value in tensors_of(other).items():
            rounding = {"rtol": 1e-3, "atol": 1e-3} if name == "logits" else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(tensors_of(one)[name], value, **rounding)
        gradients = []
        for batch in (one, other):
            outputs = student.outputs(batch.images_BCHW)
            terms = objective.terms(StudentOutputs(outputs.logits, outputs.logits), batch.labels, batch.teacher)
            gradients.append(torch.autograd.grad(0.1 * terms["ce"] + 0.9 * terms["kd"], list(student.parameters())))
        for first, second in zip(*gradients, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-3)


def test_checks_see_the_mixture(processes: Processes, tmp_path: Path) -> None:
    teacher = teacher_of(processes)
    write(tmp_path / "c.zarr", teacher, processes)
    reader = open_cache(tmp_path / "c.zarr")
    options = {"seed": 0, "rows_per_block": 5, "max_blocks": 12}
    assert check_witnesses(renderer_of(), reader, **options) == 60
    assert compare_with_live(teacher, renderer_of(), reader, "logits", seed=0, num_rows=40, repair="") < 0.01
    for mix in ({**MIX, "group": 9}, {**MIX, "switch": 0.4}, {**MIX, "cutmix": 0.2}):
        with pytest.raises(CacheMismatch, match="pixels differ from those that the teacher saw"):
            check_witnesses(renderer_of(mix=mix), reader, **options)


def test_a_larger_cache_begins_with_a_smaller_one_whatever_the_batches(processes: Processes, tmp_path: Path) -> None:
    teacher = teacher_of(processes)
    write(tmp_path / "small", teacher, processes, views=1)
    write(tmp_path / "large", teacher, processes, batch_size=4)
    small, large = (open_cache(tmp_path / name) for name in ("small", "large"))
    for block in small.plan.blocks():
        assert (small.witness(block) == large.witness(block)).all()
