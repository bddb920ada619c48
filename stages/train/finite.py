"""Detection of non-finite losses: the device records them in the step where they occur, the host reports them later.

A step fails if one of its losses is not finite. From the first failed step on, the device skips every update by itself.
So however late the host checks, the error names the first failed step, and no weights have changed since then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dhkd.data.errors import NonFiniteLoss
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.processes import Precision
from torch import Tensor, nn

KEYS_LISTED = 5  # the number of keys (view, index) that an error lists at most


@dataclass(frozen=True)
class Failure:
    """The first `step` of an epoch, counted from 0, with non-finite losses, and the names of the non-finite `terms`."""

    step: int
    terms: list[str]


class FiniteWatch:
    """A record of the first step of an epoch in which one of the named sums was not finite.

    The tensors live on the device for the whole run and are written in place, because a step captured as a CUDA graph
    refers to tensors by address.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = list(names)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._failed_step = torch.full((), -1, dtype=torch.int64, device=device)  # -1: all steps were finite so far
        self._failed_terms = torch.zeros(len(self._names), dtype=torch.bool, device=device)

    def begin_epoch(self) -> None:
        """Forget the failures of earlier epochs."""
        self._failed_step.fill_(-1)
        self._failed_terms.zero_()

    def begin_step(self, step: int) -> None:
        """Set the step of the epoch, counted from 0, to which the next sums belong."""
        self._step.fill_(step)

    def check(self, sums: Tensor) -> None:
        """Record this step and its non-finite sums, if any, unless an earlier step of the epoch failed.

        `sums` has the order of the names. The call doesn't wait for the device.
        """
        broken = ~sums.isfinite()
        first = broken.any() & (self._failed_step < 0)
        self._failed_terms.copy_(torch.where(first, broken, self._failed_terms))
        self._failed_step.copy_(torch.where(first, self._step, self._failed_step))

    def found_inf(self) -> Tensor:
        """Return, on the device, 1.0 if a step of this epoch failed, else 0.0; 1.0 makes the optimizer skip updates."""
        return (self._failed_step >= 0).float()

    def failure(self) -> Failure | None:
        """Return the epoch's first failed step, or None if no step failed.

        The call waits until the device has finished all launched work.
        """
        step = int(self._failed_step)
        if step < 0:
            return None
        return Failure(step, [name for name, bad in zip(self._names, self._failed_terms.tolist(), strict=True) if bad])


def non_finite_loss(
    failure: Failure, epoch: int, outputs: StudentOutputs, batch: Batch, precision: Precision
) -> NonFiniteLoss:
    """Build the error that names the failed terms, the step, and the keys (view, index) of rows that may be the cause.

    `outputs` and `batch` must be from the step in `failure`; `precision` is that of the run.
    """
    rows = _suspects(outputs, batch)
    keys = [f"({int(batch.view_B[row])}, {int(batch.index_B[row])})" for row in rows[:KEYS_LISTED]]
    listed = f"keys (view, index) {', '.join(keys)}" if keys else "keys of another process or of the batch as a whole"
    more = f" and {len(rows) - KEYS_LISTED} more" if len(rows) > KEYS_LISTED else ""
    terms = ", ".join(failure.terms)
    return NonFiniteLoss(
        f"loss term {terms} is not finite at epoch {epoch + 1}, step {failure.step + 1}, {listed}{more}; nothing was"
        f" updated; {_remedy(f'the learning rate or the weight of {terms}', precision)}"
    )


def non_finite_weights(module: nn.Module, largest: str, epoch: int, step: int, precision: Precision) -> NonFiniteLoss:
    """Build the error for an update that was not finite although the loss was; `largest` is the term that weighs most.

    `step`, counted from 0, is the last one of the `epoch`, which no later step checks.
    """
    names = [name for name, tensor in _floats(module).items() if not bool(tensor.isfinite().all())]
    listed = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "those of another process"
    return NonFiniteLoss(
        f"weights are not finite at epoch {epoch + 1}, step {step + 1}: {listed}; the loss was finite, its largest term"
        f" {largest}; nothing of this epoch is kept;"
        f" {_remedy(f'the learning rate or the weight of {largest}', precision)}"
    )


def broken_tensors(module: nn.Module) -> Tensor:
    """Return how many of a module's parameters and buffers are not finite, as a scalar on their device."""
    tensors = list(_floats(module).values())
    largest = torch._foreach_norm(tensors, float("inf"))  # an infinity or a NaN is also the largest
    return (~torch.stack([norm.float() for norm in largest]).isfinite()).sum()


def _floats(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: t.detach() for name, t in tensors.items() if t.is_floating_point() and t.numel()}


def _remedy(lower: str, precision: Precision) -> str:
    # A run keeps its settings, so that --resume would fail in the same way.
    exact = "" if precision == "float32" else " or use --precision float32,"
    return f"lower {lower},{exact} and train into another --out"


def _suspects(outputs: StudentOutputs, batch: Batch) -> list[int]:
    """Return the rows with an output or a teacher signal that is not finite or is too large to be squared."""
    limit = torch.finfo(torch.float32).max ** 0.5
    tensors = [outputs.task, outputs.distill, *outputs.features.values(), *batch.teacher.values()]
    rows = [tensor.detach().reshape(len(tensor), -1).abs() for tensor in tensors]
    good_B = torch.stack([(row < limit).all(dim=1) for row in rows]).all(dim=0)
    return [row for row, good in enumerate(good_B.tolist()) if not good]
