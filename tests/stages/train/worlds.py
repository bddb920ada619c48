"""Small worlds to train in: images, a teacher and its cache, students, tasks, and a cache with a damaged row."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dhkd.data.cache.reader import open_cache
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Normalization
from dhkd.data.runs.folder import RunFolder
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import ResidentSignals, Signals
from dhkd.pipeline.build.training import student_of
from dhkd.stages.cache.write import write_blocks
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import Student
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.processes import Processes
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.loop import Task, train
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from dhkd.stages.train.step import Compile
from torch import Tensor, nn

from tests.caches import manifest_of, writer_at
from tests.samples import make_images

RECIPE = CropFlip(padding=1, flip=True, seed=0)
VIEWS, BATCH = 3, 10

# Options that tests of all methods change: a signal that depends on the other rows of its batch can't be cached.
OPTIONS: dict[str, dict[str, object]] = {"ofd": {"teacher_batch_norm": "eval"}, "crd": {"negatives": 20}}


def objective_of(name: str) -> Objective:
    return combined_objective(name, OPTIONS)


class World:
    """A data set, a teacher and, in a folder, a cache of the signals that an objective needs."""

    def __init__(self, folder: Path, processes: Processes, dtype: str = "float16", objective: str = "dhkd") -> None:
        self.images: ImageSet = make_images()
        self.normalize = Normalization(self.images.mean, self.images.std)
        self.renderer = ResidentRenderer(self.images, RECIPE, processes.device)
        self.network = teacher_network()
        self.teacher = Teacher(self.network, self.normalize, processes)
        setting = setting_of(objective)
        needs = objective_of(objective).needs(setting) or {"logits": None}
        signals = {name: (dtype, setting.teacher.row(name)) for name in needs}
        manifest = manifest_of(len(self.images), self.images.num_classes, VIEWS, 13, signals=signals)
        writer = writer_at(folder / "c.zarr", manifest)
        write_blocks(self.teacher, self.renderer, writer, batch_size=8, processes=processes)
        names = {name: [name] for name in needs}
        self.signals = ResidentSignals(open_cache(folder / "c.zarr"), names, processes.device)

    def stream(self, signals: Signals | None = None, seed: int = 2, batch_size: int = BATCH) -> Stream:
        signals = signals or self.signals
        return Stream(self.renderer, self.normalize, signals, schedule="independent", seed=seed, batch_size=batch_size)


def teacher_network() -> Network:
    torch.manual_seed(5)
    network = build_network("resnet8", 5)
    network.head.weight.data *= 20  # logits as large as a trained teacher's
    return network.eval()


def setting_of(objective_name: str, architecture: str = "resnet8") -> Setting:
    shapes_of = partial(Shapes, num_classes=5, image=(8, 8))
    setting = Setting(shapes_of(architecture), shapes_of("resnet8"), make_images().labels_N, 0, teacher_network())
    return replace(setting, student=shapes_of(objective_of(objective_name).architecture(setting)))


def new_student(objective_name: str, architecture: str = "resnet8") -> Student:
    return student_of(objective_of(objective_name), setting_of(objective_name, architecture))


def task_of(
    world: World,
    out: Path,
    *,
    student: Student | None = None,
    objective: str = "dhkd",
    epochs: int = 3,
    lr: float = 0.05,
    signals: Signals | None = None,
    stream: Stream | None = None,
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
    seed: int = 7,
    look_every: int | None = None,
    alignment: Alignment | None = None,
    fused: bool = False,
    compiled: Compile = "off",
    evaluate: Callable[[nn.Module], Accuracy] | None = None,
    schedule_epochs: int = 3,
    **regularizing: Any,
) -> Task:
    student = student or new_student(objective)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused or look_every is not None
    )
    return Task(
        student,
        optimizer,
        combined_objective(objective, OPTIONS, alignment),
        stream or world.stream(signals),
        evaluate or sum_of_logits,
        learning_rate=LearningRate(lr, "cosine", epochs=schedule_epochs),
        epochs=epochs,
        seed=seed,
        clip_norm=clip_norm,
        run=RunFolder(out, {}, resume=True),
        look_every=look_every,
        compiled=compiled,
        **regularizing,
    )


def sum_of_logits(network: nn.Module) -> Accuracy:
    """Not an accuracy, but a number that depends on all weights."""
    images_BCHW = torch.ones(1, 3, 8, 8, device=next(network.parameters()).device)
    return Accuracy(float(network(images_BCHW).detach().sum()), 0.0)


def run_train(world: World, processes: Processes, out: Path, **options: Any) -> Student:
    task = task_of(world, out, **options)
    train(task, processes)
    return task.student


class OneBadRow:
    """Signals of a cache, except that one key has logits that are not finite, as failing memory would have."""

    in_memory = True

    def __init__(self, signals: ResidentSignals, view: int, index: int) -> None:
        self.num_views, self._signals, self._key = signals.num_views, signals, (view, index)

    def prepare(self, epoch: int, view_N: Tensor, index_N: Tensor) -> None:
        self._signals.prepare(epoch, view_N, index_N)

    def gather(self, view_B: Tensor, index_B: Tensor) -> dict[str, Tensor]:
        rows = self._signals.gather(view_B, index_B)
        bad_B = (view_B == self._key[0]) & (index_B == self._key[1])
        return {name: torch.where(bad_B[:, None], float("nan"), values) for name, values in rows.items()}
