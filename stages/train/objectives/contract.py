"""What the training loop asks of an objective, and the checks that objectives share.

An objective is a method's losses and hyper-parameters. It sums nothing and aligns nothing: that is `gradients.py`'s
job. A method is one file beside this one and one line in `OBJECTIVES`; there is no base class and no registry.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from dhkd.data.errors import ConfigError
from dhkd.stages.models.student import AuxiliaryHead, StudentLogits
from torch import Tensor


class Objective(Protocol):
    """The losses of one method; immutable, so that a run's objective is what its configuration says."""

    @property
    def needs(self) -> Mapping[str, float | None]:
        """The teacher's signals that it reads; empty: no teacher.

        For logits, the temperature at which nothing but softmax's probabilities is read of them; None: raw values.
        """

    @property
    def auxiliary(self) -> AuxiliaryHead | None:
        """The extra head that its student carries in training; None: the task head alone."""

    @property
    def protected(self) -> str | None:
        """The term whose gradient alignment never alters; None: the terms' gradients are simply summed."""

    def terms(self, student: StudentLogits, labels_B: Tensor, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named, unweighted losses of a batch, each a scalar and a mean over the batch's rows."""

    def weights(self, epoch: int) -> dict[str, float]:
        """Each term's weight in this epoch (from 0). A term of weight 0 stays in the graph, as DDP needs it to."""


def require_temperature(objective: str, value: float) -> None:
    """Raise `ConfigError` unless the option `temperature` of `objective` is above 0 and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"objective {objective!r}: temperature: expected a finite number > 0, got {value!r}")


def require_weights(objective: str, **options: float) -> None:
    """Raise `ConfigError` unless each of these options of `objective` is at least 0 and finite."""
    for option, value in options.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"objective {objective!r}: {option}: expected a finite number >= 0, got {value!r}")
