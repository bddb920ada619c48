"""The learning rate as a pure function of epoch and step, so that there is no state to save or resume."""

import math
from dataclasses import dataclass
from typing import Literal

from dhkd.data.errors import ConfigError

ONE_CYCLE_RISE = 0.3  # the share of all steps in which the rate rises
ONE_CYCLE_START = 1 / 25  # the first rate, relative to the peak

Kind = Literal["constant", "multistep", "cosine", "one-cycle", "linear", "polynomial"]
FALLING = ("cosine", "one-cycle", "linear", "polynomial")  # those that fall step by step, down to a lowest rate


@dataclass(frozen=True)
class LearningRate:
    """A learning-rate schedule over `epochs` epochs whose highest rate is `base`; `at` returns the rate of a step.

    `kind`:
    - "constant": the rate is always `base`.
    - "multistep": the rate starts at `base` and is multiplied by `gamma` at the start of each epoch in `milestones`,
      counted from 0. With the milestones (150, 180, 210), it falls at the start of the 151st, 181st and 211th epochs. A
      milestone after the last epoch has no effect here; the schema refuses it.
    - "cosine": the rate falls from `base` to `min_rate` along half a cosine, step by step.
    - "linear": it falls along a line.
    - "polynomial": it falls as (1 − progress) to the power of `power`.
    - "one-cycle": the rate rises linearly from `base`/25 to `base` over the first 30 % of the steps, then falls to
      `min_rate` along half a cosine.

    Over the first `warmup_epochs` epochs, the rate rises linearly, step by step, to the rate that applies without
    warm-up: from `warmup_start`, the rate of the first step, or from just above 0 if that is None. The schedules in
    `FALLING` start to fall after the warm-up; they reach their lowest rate `cooldown_epochs` epochs before the end and
    stay there. Raises `ConfigError` for settings that don't fit together; "one-cycle" already includes a rise, so a
    warm-up is one of them.
    """

    base: float
    kind: Kind
    epochs: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    warmup_start: float | None = None
    min_rate: float = 0.0
    cooldown_epochs: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "one-cycle" and self.warmup_epochs > 0:
            raise ConfigError(f"one-cycle has its own rise: warmup_epochs: expected 0, got {self.warmup_epochs}")
        if self.kind not in FALLING and (self.min_rate or self.cooldown_epochs):
            raise ConfigError(f"{self.kind} has no lowest rate: expected no min_lr and cooldown_epochs, got one")
        if self.cooldown_epochs and self.warmup_epochs + self.cooldown_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs and cooldown_epochs: expected at most {self.epochs} epochs together, got"
                f" {self.warmup_epochs + self.cooldown_epochs:g}"
            )
        if self.min_rate > self.base:
            raise ConfigError(f"min_lr: expected at most lr ({self.base:g}), got {self.min_rate:g}")

    def at(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate at `step` of `epoch`, both counted from 0."""
        assert 0 <= epoch < self.epochs, f"epoch {epoch} of {self.epochs}"
        assert 0 <= step < steps_per_epoch, f"step {step} of {steps_per_epoch}"
        done = epoch + step / steps_per_epoch
        if self.kind in FALLING and done >= self.warmup_epochs:
            return self._falling(done)
        rate = self.base
        if self.kind == "multistep":
            rate *= self.gamma ** sum(milestone <= epoch for milestone in self.milestones)
        if done < self.warmup_epochs and self.warmup_start is not None:
            return self.warmup_start + (rate - self.warmup_start) * done / self.warmup_epochs
        if done < self.warmup_epochs:
            rate *= min(1.0, (done + 1 / steps_per_epoch) / self.warmup_epochs)
        return rate

    def _falling(self, done: float) -> float:
        """Return the rate of a schedule in `FALLING` after `done` epochs, not before the end of the warm-up."""
        end = self.epochs - self.cooldown_epochs
        if done >= end:
            return self.min_rate
        progress = (done - self.warmup_epochs) / (end - self.warmup_epochs)
        if self.kind == "one-cycle" and progress < ONE_CYCLE_RISE:
            return self.base * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / ONE_CYCLE_RISE)
        return self.min_rate + (self.base - self.min_rate) * self._share_left(progress)

    def _share_left(self, progress: float) -> float:
        """Return how much of the fall is left, from 1 to 0, at this share of the schedule."""
        if self.kind == "one-cycle":
            return _half_cosine((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
        if self.kind == "cosine":
            return _half_cosine(progress)
        return float((1 - progress) ** (1.0 if self.kind == "linear" else self.power))


def _half_cosine(progress: float) -> float:
    """Fall along half a cosine, from 1 at progress 0 to 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2
