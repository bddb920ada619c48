"""What steps are timed on: random images of CIFAR-100's shape, their stream, and a student that takes one at a time."""

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
    """Images of random pixels and labels."""
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(256, (num_samples, 3, size, size), generator=generator, dtype=torch.uint8)
    labels_N = torch.randint(num_classes, (num_samples,), generator=generator)
    return ImageSet("random", "train", images_NCHW, labels_N, num_classes, MEAN, STD)


def stream_of(renderer: ResidentRenderer, signals: Signals, batch_size: int, live: Live | None = None) -> Stream:
    """A stream of them, each sample in a view of its own."""
    normalize = Normalization(MEAN, STD)
    return Stream(renderer, normalize, signals, schedule="independent", seed=0, batch_size=batch_size, live=live)


def batches_of(stream: Stream) -> Iterator[tuple[int, int, Batch]]:
    """Endless epochs: epoch, step and batch."""
    return ((epoch, step, batch) for epoch in count() for step, batch in enumerate(stream.epoch(epoch)))


class Loop:
    """A student in training, one step at a time, as the training loop takes them."""

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
        # A low rate, so that random labels don't make the loss diverge; it has no influence on the time.
        student, of_teacher = networks or (STUDENT, TEACHER)
        training = Training(architecture=student, epochs=1000, lr=1e-4)
        self.objective = combined_objective(objective, {}, Alignment(("ce",), None, every) if every > 1 else None)
        shapes_of = partial(Shapes, num_classes=NUM_CLASSES, image=(32, 32))
        labels_N = stream.renderer.images.labels_N
        setting = Setting(shapes_of(student), shapes_of(of_teacher), labels_N, seed=0, teacher_network=teacher)
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
        """Take the stream's next batch and train on it."""
        self.train_on(*next(self._batches))

    def steps(self) -> Iterator[None]:
        """Endless steps."""
        while True:
            self.step()
            yield

    def train_on(self, epoch: int, step: int, batch: Batch) -> None:
        """One update on a batch that is ready."""
        if epoch != self._epoch:
            self._step.begin_epoch(epoch)
            self._epoch = epoch
        self._step(step, batch)


def train_side_by_side(side_by_side: SideBySide, loops: Sequence[Loop], epoch: int, step: int, batch: Batch) -> None:
    """One update of every student on the same batch."""
    errors = side_by_side.run({loop: partial(loop.train_on, epoch, step, batch) for loop in loops})
    for error in errors.values():
        raise error


def steps_per_second(steps: Iterator[None], num_steps: int) -> float:
    """The rate of so many steps, after as many to warm up."""
    for _ in range(num_steps):
        next(steps)
    began = time.perf_counter()
    for _ in range(num_steps):
        next(steps)
    return num_steps / (time.perf_counter() - began)
