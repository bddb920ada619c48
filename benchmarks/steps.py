"""Random images of CIFAR-100's shape, a stream of their batches, and a student that takes single steps."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from dhkd.configs.schema import Training
from dhkd.data.images.in_memory import ImageSet, ResidentRenderer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.render import Normalization
from dhkd.data.stream.batches import Batch, Live, Stream
from dhkd.data.stream.signals import Signals
from dhkd.pipeline.build.training import learning_rate_of, optimizer_of, student_of
from dhkd.stages.models import Network
from dhkd.stages.models.signals import Shapes
from dhkd.stages.processes import Processes
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.objectives import combined_objective
from dhkd.stages.train.objectives.contract import Setting
from dhkd.stages.train.side_by_side import SideBySide
from dhkd.stages.train.step import Compile, TrainingStep

NUM_CLASSES = 100
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
RECIPE = CropFlip(padding=4, flip=True, seed=0)
STUDENT, TEACHER = "resnet20", "resnet56"


def random_images(num_samples: int, num_classes: int, size: int = 32) -> ImageSet:
    """Draw images with random pixels and random labels."""
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(256, (num_samples, 3, size, size), generator=generator, dtype=torch.uint8)
    labels_N = torch.randint(num_classes, (num_samples,), generator=generator)
    return ImageSet("random", "train", images_NCHW, labels_N, num_classes, MEAN, STD)


def stream_of(renderer: ResidentRenderer, signals: Signals, batch_size: int, live: Live | None = None) -> Stream:
    """Build a stream of batches in which each sample's view is chosen independently."""
    normalize = Normalization(MEAN, STD)
    return Stream(renderer, normalize, signals, schedule="independent", seed=0, batch_size=batch_size, live=live)


def batches_of(stream: Stream) -> Iterator[tuple[int, int, Batch]]:
    """Yield epoch, step and batch, for an endless number of epochs."""
    return ((epoch, step, batch) for epoch in count() for step, batch in enumerate(stream.epoch(epoch)))


class Loop:
    """A student in training, which takes the same steps as in the training loop, but one at a time."""

    def __init__(
        self,
        objective: str,
        stream: Stream,
        processes: Processes,
        teacher: Network | None = None,
        *,
        networks: tuple[str, str] | None = None,
        every: int = 1,
        compiled: Compile = "off",
        alone: bool = True,
    ) -> None:
        # At a low learning rate, the loss doesn't diverge on random labels; the rate doesn't affect the time.
        student, teachers_architecture = networks or (STUDENT, TEACHER)
        training = Training(architecture=student, epochs=1000, lr=1e-4)
        self.objective = combined_objective(objective, {}, Alignment(("ce",), None, every) if every > 1 else None)
        shapes_of = partial(Shapes, num_classes=NUM_CLASSES, image=(32, 32))
        labels_N = stream.renderer.images.labels_N
        setting = Setting(
            shapes_of(student), shapes_of(teachers_architecture), labels_N, seed=0, teacher_network=teacher
        )
        setting = replace(setting, student=shapes_of(self.objective.architecture(setting)))
        self.student = student_of(self.objective, setting)
        on_gpu = processes.device.type == "cuda"
        self.optimizer = optimizer_of(training, self.student, fused=on_gpu)
        self._step = TrainingStep(
            self.student,
            self.optimizer,
            self.objective,
            stream,
            learning_rate=learning_rate_of(training),
            seed=0,
            clip_norm=None,
            processes=processes,
            compiled=compiled,
            alone=alone,
        )
        self._batches = batches_of(stream)
        self._epoch = -1

    def step(self) -> None:
        """Take one step on the next batch of the stream."""
        self.train_on(*next(self._batches))

    def steps(self) -> Iterator[None]:
        """Take an endless number of steps, yielding after each."""
        while True:
            self.step()
            yield

    def train_on(self, epoch: int, step: int, batch: Batch) -> None:
        """Take one step on this batch."""
        if epoch != self._epoch:
            self._step.begin_epoch(epoch)
            self._epoch = epoch
        self._step(step, batch)


def train_side_by_side(side_by_side: SideBySide, loops: Sequence[Loop], epoch: int, step: int, batch: Batch) -> None:
    """Take one step with every student on the same batch, all at once; raise the first student's error, if any."""
    errors = side_by_side.run({loop: partial(loop.train_on, epoch, step, batch) for loop in loops})
    for error in errors.values():
        raise error


def steps_per_second(steps: Iterator[None], num_steps: int) -> float:
    """Measure the rate of `num_steps` steps, after the same number of warm-up steps."""
    for _ in range(num_steps):
        next(steps)
    began = time.perf_counter()
    for _ in range(num_steps):
        next(steps)
    return num_steps / (time.perf_counter() - began)
