"""What the training loop asks of an objective, and the checks that objectives share.

An objective is a method's losses and hyper-parameters. It sums nothing and aligns nothing: that is `gradients.py`'s
job. A method is one file beside this one and one line in `OBJECTIVES`; there is no registry. Most methods say `needs`,
`terms` and `weights`, and leave the rest as it is here.
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
    """What an objective is to work with: both networks' shapes, the training set's labels, the experiment's seed.

    The student is the network that `Objective.architecture` names. `teacher_network` is there where weights of the
    teacher were given, in eval mode, on the CPU.
    """

    student: Shapes
    teacher: Shapes
    labels_N: Tensor
    seed: int
    teacher_network: Network | None = None

    def stages(self, objective: str) -> list[int]:
        """The stages behind the stem, by number. Raises `ConfigError` unless both networks have equally many."""
        student, teacher = len(self.student.maps), len(self.teacher.maps)
        if student != teacher:
            raise ConfigError(
                f"objective {objective!r} compares stage with stage: expected equally many, got {student - 1} of"
                f" {self.student.architecture} and {teacher - 1} of {self.teacher.architecture}"
            )
        return list(range(1, student))


class Objective(ABC):
    """The losses of one method; immutable, so that a run's objective is what its configuration says."""

    # Whether its terms couple the rows of a batch, so that they have to see those of all processes together.
    couples_rows: bool = False
    # Whether its losses, cross-entropy aside, are of logits. Alignment leaves others alone.
    of_logits: bool = True
    # Whether its step is the device's work alone, so that a CUDA graph can hold it.
    capturable: bool = True
    # What it takes of the teacher's network itself, beside signals, so that its weights have to be given.
    takes_of_teacher: str | None = None

    @property
    def auxiliary(self) -> AuxiliaryHead | None:
        """The extra head that its student carries in training; None: the task head alone."""
        return None

    @property
    def alignment(self) -> Alignment | None:
        """Which terms' gradient is never opposed by which; None: the terms' gradients are simply summed."""
        return None

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """The teacher's signals that it reads; empty: no teacher.

        For logits, the temperature at which nothing but softmax's probabilities is read of them; None: raw values.
        """
        return {}

    def reads(self, setting: Setting) -> Sequence[str]:
        """The student's own signals that it reads beside logits, by the names that the teacher's have."""
        return ()

    def architecture(self, setting: Setting) -> str:
        """The name of the network that is trained, evaluated and exported, made of the preset's."""
        return setting.student.architecture

    def start(self, network: Network, setting: Setting) -> None:  # noqa: B027  # most take over nothing
        """Give the freshly initialised network what it takes over from the teacher."""

    def adapter(self, setting: Setting) -> nn.Module | None:
        """What is trained beside the student and dropped afterwards, freshly initialised from torch's generator.

        It maps what the objective `reads`, {name: (B, …)}, and the `Batch` to further features under names of their
        own. Its buffers may be state, and `same_in_every_process` may name those that all processes compute alike.
        """
        return None

    @abstractmethod
    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named, unweighted losses of a batch, each a scalar and a mean over the batch's rows."""

    @abstractmethod
    def weights(self, epoch: int) -> dict[str, float]:
        """Each term's weight in this epoch (from 0). A term of weight 0 stays in the graph, as DDP needs it to."""


def warm_up(epoch: int, epochs: int) -> float:
    """A factor that grows linearly and is 1 from epoch `epochs` - 1 (from 0) on; 0 epochs: 1 always."""
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
