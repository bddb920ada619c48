"""What the training loop asks of an objective, and the checks that objectives share.

An objective is the losses and hyper-parameters of one method. It neither sums nor aligns them: `gradients.py` does. A
method is one file beside this one and one line in `OBJECTIVES`; there is no registry. Most methods define `needs`,
`terms` and `weights`, and inherit the rest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.network import Network
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import AuxiliaryHead, StudentOutputs
from dhkd.stages.train.gradients import Alignment
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """What an objective works with: the shapes of both networks, the labels of the training set, the experiment's seed.

    The student is the network that `Objective.architecture` names. `labels_N` is int64. `teacher_network` is the
    teacher in eval mode on the CPU; None, if no weights of it were given.
    """

    student: Shapes
    teacher: Shapes
    labels_N: Tensor
    seed: int
    teacher_network: Network | None = None

    def stages(self, objective: str) -> list[int]:
        """The numbers of the stages behind the stem. Raises `ConfigError` unless both networks have as many of them."""
        student, teacher = len(self.student.maps), len(self.teacher.maps)
        if student != teacher:
            raise ConfigError(
                f"objective {objective!r} compares stage with stage: expected equally many, got {student - 1} of"
                f" {self.student.architecture} and {teacher - 1} of {self.teacher.architecture}"
            )
        return list(range(1, student))


class Objective(ABC):
    """The losses of one method; immutable, so that a run's objective is what its configuration says."""

    # Whether a term depends on how the rows of a batch relate, so that it needs the rows of all processes together.
    couples_rows: bool = False
    # Whether its losses, apart from cross-entropy, compare logits. Alignment leaves other losses alone.
    of_logits: bool = True
    # Whether its step runs on the device alone, so that a CUDA graph can hold it.
    capturable: bool = True
    # The part of the teacher's network that it needs beside signals; then the teacher's weights must be given.
    takes_of_teacher: str | None = None

    @property
    def auxiliary(self) -> AuxiliaryHead | None:
        """The second head that its student has in training; None: it has the task head alone."""
        return None

    @property
    def alignment(self) -> Alignment | None:
        """Which terms have a gradient that others must not oppose; None: all gradients are simply summed."""
        return None

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """The names of the teacher's signals that its terms read; empty: it needs no teacher.

        The value is None if the raw signal is read. For logits it may be a temperature: then the probabilities that
        softmax gives at that temperature are enough.
        """
        return {}

    def reads(self, setting: Setting) -> Sequence[str]:
        """The names of the student's signals that it reads beside logits; they are named as the teacher's are."""
        return ()

    def architecture(self, setting: Setting) -> str:
        """The name of the network that is trained, evaluated and exported: the preset's, or one built around it."""
        return setting.student.architecture

    def start(self, network: Network, setting: Setting) -> None:  # noqa: B027  # most copy nothing
        """Copy what the freshly initialised network takes over from the teacher."""

    def adapter(self, setting: Setting) -> nn.Module | None:
        """A module that is trained beside the student and dropped afterwards, initialised from torch's generator.

        It maps what the objective `reads`, {name: (B, …)}, and the `Batch` to further features under new names. Its
        buffers may hold state; `same_in_every_process` may name those that all processes compute alike.
        """
        return None

    @abstractmethod
    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named, unweighted losses of a batch, each a scalar and a mean over the batch's rows.

        `labels` may be mixed. Pass them to `losses.cross_entropy`; if the classes themselves are needed,
        `labels.one_class_each` gives them or refuses.
        """

    @abstractmethod
    def weights(self, epoch: int) -> dict[str, float]:
        """The weight of each term in this epoch, from 0. A term of weight 0 stays in the graph: DDP needs it."""


def warm_up(epoch: int, epochs: int) -> float:
    """A factor that grows linearly over the first `epochs` epochs and then stays 1; without any it is always 1."""
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0


def require_temperature(objective: str, value: float) -> None:
    """Raise `ConfigError` unless the option `temperature` of `objective` is above 0 and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"objective {objective!r}: temperature: expected a finite number > 0, got {value!r}")


def require_weights(objective: str, **options: float) -> None:
    """Raise `ConfigError` unless each of these options of `objective` is at least 0 and finite."""
    for option, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"objective {objective!r}: {option}: expected a finite number >= 0, got {value!r}")


def require_at_least(objective: str, least: int, **options: int) -> None:
    """Raise `ConfigError` unless each of these options of `objective` is at least `least`."""
    for option, value in options.items():
        if value < least:
            raise ConfigError(f"objective {objective!r}: {option}: expected at least {least}, got {value!r}")
