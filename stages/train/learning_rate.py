"""The learning rate as a pure function of epoch and step: no state, so nothing to save and nothing to resume."""

import math
from dataclasses import dataclass
from typing import Literal

RISE = 0.3  # one-cycle: the share of all steps in which the rate rises
START, END = 1 / 25, 1e-4  # one-cycle: where it starts and ends, relative to its peak


@dataclass(frozen=True)
class LearningRate:
    """A schedule over `epochs`; `base` is the peak, `milestones` are 0-based epochs that begin with rate · gamma.

    `multistep` changes between epochs only; `cosine` and `one-cycle` change with every step. `warmup_epochs` raises the
    rate linearly from 0 (not reached) at the start of any kind but `one-cycle`, which has its own rise.
    """

    base: float
    kind: Literal["constant", "multistep", "cosine", "one-cycle"]
    epochs: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0

    def at(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """The rate of step `step` (from 0) in epoch `epoch` (from 0)."""
        done = epoch + step / steps_per_epoch
        share = done / self.epochs
        if self.kind == "one-cycle":
            if share < RISE:
                return self.base * (START + (1 - START) * share / RISE)
            return self.base * (END + (1 - END) * _falling((share - RISE) / (1 - RISE)))
        rate = self.base
        if self.kind == "cosine":
            rate *= _falling(share)
        elif self.kind == "multistep":
            rate *= self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if done < self.warmup_epochs:
            rate *= (done + 1 / steps_per_epoch) / self.warmup_epochs
        return rate


def _falling(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2
