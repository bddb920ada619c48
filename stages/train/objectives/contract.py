"""The interface between training loop and objectives, and the checks that objectives share.

An objective holds the losses and hyper-parameters of one method; `gradients.py` sums the losses and aligns their
gradients. Adding a method takes one file in this folder and one line in `OBJECTIVES`; there is no registry. Most
methods define `needs`, `terms` and `weights`, and inherit the rest. A term is a named loss. A signal is a named output
of a network for a sample, such as its logits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.network import Network
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import AuxiliaryHead, StudentOutputs
from dhkd.stages.train.gradients import Alignment
from torch import Tensor, nn

# At other temperatures a softmax is a 0-1 choice or uniform, and float32 may overflow or vanish. Published weights go
# up to 1000, and a float32 loss overflows only far above `MAX_WEIGHT`.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
MAX_WEIGHT = 1e6

LATE = 10**6  # an epoch by which every warm-up has ended


@dataclass(frozen=True)
class Setting:
    """What an objective works with: the shapes of both networks, the labels of the training set, the experiment's seed.

    `student` has the shapes of the network that `Objective.architecture` names. `labels_N` is int64, or None for images
    without labels, for which only objectives without `needs_labels` are built. `teacher_network` is the teacher in eval
    mode on the CPU; it is None if no teacher weights were given.
    """

    student: Shapes
    teacher: Shapes
    labels_N: Tensor | None
    seed: int
    teacher_network: Network | None = None

    def stages(self, objective: str) -> list[tuple[int, int]]:
        """Return the pairs (the student's stage, the teacher's stage) that `objective` compares, by their numbers.

        The stages that settings name are paired in order; without such settings, all stages after the stem (stage 0)
        are paired. If a library chose a network's maps, and the other network has fewer, only as many of the last ones
        are compared. In any other case in which the numbers of stages differ, raises `ConfigError`, which names
        `objective`.
        """
        student, teacher = self.student.stages, self.teacher.stages
        fewer = min(len(student), len(teacher))
        if len(student) > fewer and self.student.may_leave_out_stages:
            student = student[-fewer:]
        if len(teacher) > fewer and self.teacher.may_leave_out_stages:
            teacher = teacher[-fewer:]
        if len(student) != len(teacher):
            raise ConfigError(
                f"objective {objective!r} compares stage with stage: expected equally many, got"
                f" {_maps_of(self.student, student)} and {_maps_of(self.teacher, teacher)}; choose with student.maps or"
                f" teacher.maps"
            )
        return list(zip(student, teacher, strict=True))

    def pair(self, objective: str, stage: int) -> tuple[int, int]:
        """Return the student's and the teacher's stage number for the value `stage` of an option of `objective`.

        `stage` is the number of the stage in both networks. If settings or a library name the maps, it is instead the
        number of a pair of maps, from 1.
        """
        if not any(shapes.chooses_stages for shapes in (self.student, self.teacher)):
            return stage, stage
        pairs = self.stages(objective)
        if not 1 <= stage <= len(pairs):
            raise ConfigError(f"objective {objective!r}: expected one of the {len(pairs)} pairs of maps, got {stage}")
        return pairs[stage - 1]


def _maps_of(shapes: Shapes, stages: Sequence[int]) -> str:
    sizes = ", ".join(f"{shapes.maps[stage][1]}×{shapes.maps[stage][2]}" for stage in stages)
    return f"{len(stages)} of {shapes.architecture} ({sizes})"


class Objective(ABC):
    """The losses of one method. Objectives are immutable, so that an objective always matches its configuration."""

    # Whether a term compares the rows of a batch with each other, so that it needs the rows of all processes together.
    couples_rows: bool = False
    # Whether the method remembers rows and compares later rows with them. Then a batch can't be computed in parts.
    remembers_rows: bool = False
    # Whether the losses other than cross-entropy compare logits. An alignment whose `against` is None projects only the
    # terms of objectives for which this is true.
    of_logits: bool = True
    # Whether a step runs entirely on the device, so that it can be captured as a CUDA graph.
    capturable: bool = True
    # The share of the target that the term `ce` spreads over all classes. A combination has one cross-entropy, so it
    # has to know whether the terms `ce` of two parts are the same.
    label_smoothing: float = 0.0
    # The terms that are computed from labels. For images without labels, they must have weight 0 and are not computed.
    of_labels: tuple[str, ...] = ("ce",)
    # The names of the methods that need one class for each image, so that mixed images are refused.
    of_one_class: Sequence[str] = ()
    # The part of the teacher's network that the objective needs besides signals. If it is None,
    # the objective needs no teacher weights.
    takes_of_teacher: str | None = None

    @property
    def auxiliary(self) -> AuxiliaryHead | None:
        """The second head that the student has during training, or None if it has only the task head."""
        return None

    @property
    def alignment(self) -> Alignment | None:
        """The terms whose gradient the other terms must not oppose, or None if all gradients are simply summed."""
        return None

    @property
    def needs_labels(self) -> Sequence[str]:
        """The terms for which images need labels: those of `of_labels` that ever have a weight or are aligned."""
        aligned = self.alignment
        named = [] if aligned is None else [*aligned.kept, *(aligned.against or ())]
        weights = [self.weights(epoch) for epoch in (0, LATE)]
        return [term for term in self.of_labels if term in named or any(epoch.get(term) for epoch in weights)]

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Return the names of the teacher's signals that the terms read; if there are none, no teacher is needed.

        A name is mapped to None if the terms read the raw signal. The name of the logits may be mapped to a temperature
        instead: then the softmax probabilities at that temperature are enough.
        """
        return {}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Return the names of the student's signals that the objective reads besides logits, named as in `needs`."""
        return ()

    def architecture(self, setting: Setting) -> Architecture:
        """Return the network to train, evaluate and export: the preset's network or one that contains it."""
        return setting.student.wanted

    def start(self, network: Network, setting: Setting) -> None:  # noqa: B027  # most copy nothing
        """Copy the teacher weights that the method reuses, if any, into the freshly initialised `network`."""

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return the number of the method's definition, by the method's name, if it isn't the first in this setting.

        Runs record it. So a run that began under an earlier definition is not continued under another one.
        """
        return {}

    def adapter(self, setting: Setting) -> nn.Module | None:
        """Build a module that is trained with the student and dropped afterwards, or return None if none is needed.

        The module is initialised from torch's default generator. It maps the signals that the objective `reads`, as
        {name: (B, …)}, and the `Batch` to further features under new names. The module's buffers may hold state; its
        attribute `same_in_every_process` may name the buffers whose values are the same in all processes.
        """
        return None

    @abstractmethod
    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the named, unweighted losses of a batch, each a scalar and a mean over the batch's rows.

        `teacher` holds the teacher's signals by name. `labels` may be mixed. Pass them to `losses.cross_entropy`. If a
        method needs the classes themselves, use `labels.one_class_each`, which raises `ConfigError` for mixed labels.
        """

    @abstractmethod
    def weights(self, epoch: int) -> dict[str, float]:
        """Return the weight of each term in this epoch, counted from 0.

        A term of weight 0 stays in the autograd graph, because DDP (torch's DistributedDataParallel) expects
        a gradient for every parameter.
        """


def warm_up(epoch: int, epochs: int) -> float:
    """Return a factor that grows linearly to 1 over the first `epochs` epochs; with 0 `epochs` it is always 1."""
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0


def require_temperature(objective: str, value: float) -> None:
    """Raise `ConfigError` unless the option `temperature` of `objective` is one at which a softmax makes sense."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"objective {objective!r}: temperature: expected a finite number > 0, got {value!r}")
    if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise ConfigError(
            f"objective {objective!r}: temperature: expected {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}, got {value!r}"
        )


def require_weights(objective: str, **options: float) -> None:
    """Raise `ConfigError` unless each of these options of `objective` is at least 0 and at most `MAX_WEIGHT`."""
    for option, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"objective {objective!r}: {option}: expected a finite number >= 0, got {value!r}")
        if value > MAX_WEIGHT:
            raise ConfigError(f"objective {objective!r}: {option}: expected at most {MAX_WEIGHT:g}, got {value!r}")


def require_at_least(objective: str, least: int, **options: int) -> None:
    """Raise `ConfigError` unless each of these options of `objective` is at least `least`."""
    for option, value in options.items():
        if value < least:
            raise ConfigError(f"objective {objective!r}: {option}: expected at least {least}, got {value!r}")
