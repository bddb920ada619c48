"""Losses that are not finite: noticed on the device as they arise, reported by the host when it looks.

From the first such loss on, the device leaves out every update by itself. So however late the host looks, the error
names that first step, and nothing was updated since.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dhkd.data.errors import NonFiniteLoss
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.student import StudentOutputs
from torch import Tensor

KEYS_LISTED = 5  # how many keys of a batch an error lists


@dataclass(frozen=True)
class Failure:
    """The first `step` of an epoch, from 0, in which losses were not finite, and the names of these `terms`."""

    step: int
    terms: list[str]


class FiniteWatch:
    """Remembers the first step of an epoch in which one of the named sums was not finite.

    Its tensors live on the device for the whole run and are written in place, because a captured step knows only their
    addresses.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = list(names)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._failed_step = torch.full((), -1, dtype=torch.int64, device=device)  # -1: all steps were finite so far
        self._failed_terms = torch.zeros(len(self._names), dtype=torch.bool, device=device)

    def begin_epoch(self) -> None:
        """Forget what earlier epochs noticed."""
        self._failed_step.fill_(-1)
        self._failed_terms.zero_()

    def begin_step(self, step: int) -> None:
        """Name the step of the epoch, from 0, whose sums come next."""
        self._step.fill_(step)

    def check(self, sums: Tensor) -> None:
        """Notice which of the sums, in the order of the names, are not finite; the device decides this by itself."""
        broken = ~sums.isfinite()
        first = broken.any() & (self._failed_step < 0)
        self._failed_terms.copy_(torch.where(first, broken, self._failed_terms))
        self._failed_step.copy_(torch.where(first, self._step, self._failed_step))

    def found_inf(self) -> Tensor:
        """1.0 if a step of this epoch failed, else 0.0, on the device: the optimizer leaves out its update at 1."""
        return (self._failed_step >= 0).float()

    def failure(self) -> Failure | None:
        """The first step that failed, if one did. The host waits here for everything that the device has to do."""
        step = int(self._failed_step)
        if step < 0:
            return None
        return Failure(step, [name for name, bad in zip(self._names, self._failed_terms.tolist(), strict=True) if bad])


def non_finite_loss(failure: Failure, epoch: int, outputs: StudentOutputs, batch: Batch) -> NonFiniteLoss:
    """The error that names terms, step and keys; `outputs` and `batch` are those of the step that failed."""
    rows = _suspects(outputs, batch)
    keys = [f"({int(batch.view_B[row])}, {int(batch.index_B[row])})" for row in rows[:KEYS_LISTED]]
    listed = f"keys (view, index) {', '.join(keys)}" if keys else "keys of another process or of the batch as a whole"
    more = f" and {len(rows) - KEYS_LISTED} more" if len(rows) > KEYS_LISTED else ""
    return NonFiniteLoss(
        f"loss term {', '.join(failure.terms)} is not finite at epoch {epoch + 1}, step {failure.step + 1}, {listed}"
        f"{more}; nothing was updated; lower the learning rate or use --precision float32, then --resume"
    )


def _suspects(outputs: StudentOutputs, batch: Batch) -> list[int]:
    """The rows in which a value is not finite, or is too large to be squared."""
    limit = torch.finfo(torch.float32).max ** 0.5
    tensors = [outputs.task, outputs.distill, *outputs.features.values(), *batch.teacher.values()]
    good_B = torch.stack([(tensor.detach().flatten(1).abs() < limit).all(dim=1) for tensor in tensors]).all(dim=0)
    return [row for row, good in enumerate(good_B.tolist()) if not good]
