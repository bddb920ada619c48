"""The learning rate as a pure function of epoch and step, so that there is no state to save or resume."""

import math
from dataclasses import dataclass
from typing import Literal

from dhkd.data.errors import ConfigError

ONE_CYCLE_RISE = 0.3  # the share of all steps in which the rate rises
ONE_CYCLE_START = 1 / 25  # the first rate, relative to the peak


@dataclass(frozen=True)
class LearningRate:
    """A learning-rate schedule over `epochs` epochs whose highest rate is `base`; `at` returns the rate of a step.

    `kind`:
    - "constant": the rate is always `base`.
    - "multistep": the rate starts at `base` and is multiplied by `gamma` at the start of each epoch in `milestones`,
      counted from 0. With the milestones (150, 180, 210), it falls at the start of the 151st, 181st and 211th epochs. A
      milestone after the last epoch has no effect here; the schema refuses it.
    - "cosine": the rate falls from `base` to 0 along half a cosine, step by step.
    - "one-cycle": the rate rises linearly from `base`/25 to `base` over the first 30 % of the steps, then falls to 0
      along half a cosine.

    Over the first `warmup_epochs` epochs, the rate rises linearly, step by step, from just above 0 to the rate that
    applies without warm-up; "cosine" starts to fall after the warm-up. "one-cycle" already includes a rise, so a
    warm-up raises `ConfigError`.
    """

    base: float
    kind: Literal["constant", "multistep", "cosine", "one-cycle"]
    epochs: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.kind == "one-cycle" and self.warmup_epochs > 0:
            raise ConfigError(f"one-cycle has its own rise: warmup_epochs: expected 0, got {self.warmup_epochs}")

    def at(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate at `step` of `epoch`, both counted from 0."""
        assert 0 <= epoch < self.epochs, f"epoch {epoch} of {self.epochs}"
        assert 0 <= step < steps_per_epoch, f"step {step} of {steps_per_epoch}"
        done = epoch + step / steps_per_epoch
        if self.kind == "one-cycle":
            return self.base * _one_cycle(done / self.epochs)
        if self.kind == "cosine" and done >= self.warmup_epochs:
            return self.base * _half_cosine((done - self.warmup_epochs) / (self.epochs - self.warmup_epochs))
        rate = self.base
        if self.kind == "multistep":
            rate *= self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if done < self.warmup_epochs:
            rate *= min(1.0, (done + 1 / steps_per_epoch) / self.warmup_epochs)
        return rate


def _one_cycle(progress: float) -> float:
    if progress < ONE_CYCLE_RISE:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / ONE_CYCLE_RISE
    return _half_cosine((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))


def _half_cosine(progress: float) -> float:
    """Fall along half a cosine, from 1 at progress 0 to 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2
