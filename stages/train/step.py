"""One training step, from a batch to an update. `TrainingStep._update` shows the whole step in order.

A step adds its sums (losses, correct answers, rows, conflicts between gradients) to tensors on the device, in place.
Every `look_every` steps, the host checks whether all losses were finite. On a CPU, it checks in every step, since
reading a value costs nothing; on a GPU, it usually checks every 64 steps, since reading a value waits until the device
has finished all launched work.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Literal

import torch
from dhkd.data.draws.philox import Domain, raw_rows
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch, Stream
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import Student, StudentOutputs
from dhkd.stages.processes import Processes, joined
from dhkd.stages.train.accumulation import joined_outputs, parts_of
from dhkd.stages.train.cuda_graph import CapturedStep, require_capturable
from dhkd.stages.train.finite import Failure, FiniteWatch, broken_tensors, non_finite_loss, non_finite_weights
from dhkd.stages.train.gradients import Gradient, added, align, backward, gradients_by_group
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.optimizers import Rates, skips_on_device
from torch import Tensor

LOOK_EVERY_ON_GPU = 64

# "reduce-overhead" replays a step as a CUDA graph; "max" also compiles the backbone. On a CPU, "max" captures no graph.
Compile = Literal["off", "reduce-overhead", "max"]


class TrainingStep:
    """The training step of one student: call `begin_epoch`, then the step itself for each batch, then `end_epoch`.

    The host checks every `look_every` steps whether losses are finite; if `look_every` is None, a number that suits the
    device is used. If `stream` can't make a batch again, the host checks in every step, because it needs the batch to
    name the rows whose loss is not finite. A batch is computed in `accumulate` parts, whose gradients are added before
    the update. `alone` says whether no other student trains in this interpreter. If
    `alone` is true, every step also seeds torch's default generator, which the dropout of foreign networks uses.
    `label_smoothing` is the share of the target that every cross-entropy with the labels spreads over all classes.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        stream: Stream,
        *,
        learning_rate: LearningRate,
        seed: int,
        clip_norm: float | None,
        processes: Processes,
        look_every: int | None = None,
        compiled: Compile = "off",
        alone: bool = True,
        accumulate: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        self._student, self._objective, self._stream = student, objective, stream
        self._learning_rate, self._seed, self._clip_norm = learning_rate, seed, clip_norm
        self._processes, self._alone, self._accumulate = processes, alone, accumulate
        self._label_smoothing = label_smoothing
        self._model, self._optimizer = processes.prepare(
            student, optimizer, find_unused=student.backbone.may_leave_parameters_out
        )
        self._given_optimizer = optimizer
        self._parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self._look_every = look_every or self._steps_between_looks()
        assert self._look_every == 1 or self._can_look_late()
        self._joint = objective.couples_rows and processes.world_size > 1
        self._graphs = self._compiled(compiled)
        # These tensors live for the whole run and are written in place, because a step captured as a CUDA graph refers
        # to tensors by address.
        device = processes.device
        self._names = [*objective.weights(0), "hits", "rows", "conflicts"]
        self._totals = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._finite = FiniteWatch(self._names, device)
        self._coefficient = torch.zeros((), device=device)
        self._rates = Rates(self._optimizer, device)
        self._epoch = self._skipped = 0
        self._weights: dict[str, float] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch; `epoch` counts from 0."""
        self._model.train()
        weights = self._objective.weights(epoch)
        if weights != self._weights and self._graphs is not None:
            self._graphs.forget()
        self._epoch, self._weights, self._skipped = epoch, weights, 0
        self._totals.zero_()
        self._finite.begin_epoch()

    def __call__(self, step: int, batch: Batch) -> None:
        """Update the student with `batch`, the batch of this `step` of the epoch, counted from 0.

        If a loss is not finite, this call, a later call or at the latest `end_epoch` raises `NonFiniteLoss`.
        """
        rate = self._learning_rate.at(self._epoch, step, self._stream.steps_per_epoch)
        self._finite.begin_step(step)
        self._seed_dropout(step)
        # `projects` says whether this step computes the coefficient c of the alignment (see `gradients.backward`). An
        # epoch's first step computes c, so that checkpoints, which are written between epochs, need not hold it.
        alignment = self._objective.alignment
        projects = alignment is not None and step % alignment.every == 0
        if self._graphs is None:
            self._rates.set(rate)
            self._update(batch, projects)
        else:
            self._rates.set_on_device(rate)
            self._graphs(batch, projects)
        self._skipped += self._processes.step_was_skipped(self._optimizer)
        if self._look_every > 1 and (step + 1) % self._look_every == 0:
            self._require_finite()

    def _update(self, batch: Batch, projects: bool) -> None:
        """Run forward pass, terms, backward pass and update.

        If `projects` is true, the coefficient c of the alignment (see `gradients.backward`) is computed from this
        step's gradients; otherwise an objective with an alignment reuses the c of an earlier step.
        """
        processes, parts = self._processes, list(parts_of(batch, self._accumulate, self._processes.world_size))
        sums: Tensor | None = None
        gradients: list[Gradient] = []
        for part in parts:
            # DDP averages the gradients of all parts in the backward pass of the last one. To compute the coefficient,
            # autograd.grad is used, which bypasses DDP.
            synchronizes = part is parts[-1] and not projects
            with nullcontext() if synchronizes else processes.unsynchronized(self._model):
                outputs: StudentOutputs = self._model(part.images_BCHW, part)
                terms = self._terms(outputs, part)
                sums_of_part = self._sums(terms, outputs, part)
                sums = sums_of_part if sums is None else sums + sums_of_part
                if part is batch:
                    self._require_finite_sums(sums, batch, outputs)
                gradients = self._add_gradient(terms, part, gradients, projects)
        assert sums is not None
        if len(parts) > 1:
            self._require_finite_sums(sums, batch)

        if projects:
            report = align(gradients, self._parameters, processes.average if processes.world_size > 1 else None)
            sums[-1] = report.conflict
            self._coefficient.copy_(report.coefficient)
        self._totals += sums
        if self._clip_norm is not None:
            processes.clip(self._model, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _terms(self, outputs: StudentOutputs, batch: Batch) -> Mapping[str, Tensor]:
        arguments = outputs, batch.labels.smoothed(self._label_smoothing), batch.teacher
        return self._objective.terms(*(_joined(*arguments) if self._joint else arguments))

    def _add_gradient(
        self, terms: Mapping[str, Tensor], part: Batch, gradients: list[Gradient], projects: bool
    ) -> list[Gradient]:
        """Add the gradient of a part's weighted terms to `grad` or, if c is to be computed, to the sums `gradients`."""
        # DDP averages gradients over the processes. If terms are means over this process's rows, `share` turns this
        # average into the mean over the joint batch, however many rows each process has, and into the part's share of
        # it. Terms of the joint batch have the same value in every process, but gradients flow only into this process's
        # rows. The full gradient is therefore the sum over the processes, and `share` turns the average into this sum.
        processes, alignment = self._processes, self._objective.alignment
        world_size = processes.world_size
        share = world_size if self._joint else len(part.index_B) * world_size / part.global_size
        weights = {name: weight * share for name, weight in self._weights.items()}
        if not projects:
            coefficient, scale = self._coefficient, processes.scale
            backward(terms, weights, self._parameters, alignment=alignment, coefficient=coefficient, scale=scale)
            return gradients
        assert alignment is not None
        of_part = gradients_by_group(terms, weights, self._parameters, alignment=alignment, scale=processes.scale)
        return added(gradients, of_part) if gradients else of_part

    def _require_finite_sums(self, sums: Tensor, batch: Batch, outputs: StudentOutputs | None = None) -> None:
        """Let the device record losses that are not finite, and raise `NonFiniteLoss` if the host checks every step."""
        self._finite.check(sums)
        if self._look_every == 1:
            self._require_finite(outputs, batch)
        else:
            # If the attribute `found_inf`, which GradScaler also sets, is 1, the kernels of the fused optimizer do
            # nothing.
            self._given_optimizer.found_inf = self._finite.found_inf()  # type: ignore[attr-defined]  # its step reads it

    def end_epoch(self, seconds: float) -> dict[str, float]:
        """Return the epoch's metrics; `seconds` is the duration of the epoch's training steps.

        The metrics are the means of the loss and of every term over all rows, the training accuracy in percent, the
        learning rate and the throughput; for images without labels, the terms computed from labels and the training
        accuracy are left out. With an alignment, they include the number of steps whose gradients conflicted; under
        fp16, the number of skipped steps. Raises `NonFiniteLoss` if a loss of the epoch or a weight after it was not
        finite.
        """
        self._require_finite()
        steps = self._stream.steps_per_epoch
        rate = self._learning_rate.at(self._epoch, steps - 1, steps)
        self._rates.set(rate)  # a captured step's rate is a tensor, but a checkpoint holds a number
        totals = dict(zip(self._names, self._totals.tolist(), strict=True))
        rows = totals["rows"]
        means = {name: totals[name] / rows for name in self._weights}
        if int(self._processes.sum(broken_tensors(self._student))):
            largest = max(means, key=lambda name: self._weights[name] * means[name])
            raise non_finite_weights(self._student, largest, self._epoch, steps - 1, self._processes.precision)
        labelled = self._stream.labelled
        metrics = {
            "learning_rate": rate,
            "loss": sum(self._weights[name] * mean for name, mean in means.items()),
            **{name: mean for name, mean in means.items() if labelled or name not in self._objective.of_labels},
            **({"train_top1": 100 * totals["hits"] / rows} if labelled else {}),
            "train_seconds": seconds,
            "samples_per_second": rows / seconds,
        }
        if self._objective.alignment is not None:
            metrics["conflicting_steps"] = totals["conflicts"]
        if self._processes.precision == "fp16":
            metrics["skipped_steps"] = float(self._skipped)
        return metrics

    def _sums(self, terms: Mapping[str, Tensor], outputs: StudentOutputs, batch: Batch) -> Tensor:
        """Return sums over all processes: of each term times the process's rows, of correct answers and of rows.

        A last entry, for conflicts between gradients, is 0; the caller sets it if this step's gradients conflict.
        """
        rows = len(batch.index_B)
        top_B = outputs.task.argmax(dim=1)
        hits = torch.zeros_like(top_B).sum() if batch.labels.are_absent else batch.labels.hit_by(top_B).sum()
        values = [*(terms[name].detach() * rows for name in self._weights), hits, torch.full_like(hits, rows)]
        sums = self._processes.sum(torch.stack([value.double() for value in values]))
        return torch.cat([sums, sums.new_zeros(1)])

    def _require_finite(self, outputs: StudentOutputs | None = None, batch: Batch | None = None) -> None:
        """Raise `NonFiniteLoss`, in every process, if a loss of this epoch was not finite.

        The error describes the epoch's first step with a non-finite loss. `outputs` and `batch` must be from that step;
        if they are None, the batch of that step is made again and the forward pass is repeated.
        """
        failure = self._finite.failure()
        if failure is None:
            return
        batch = batch or batch_of(self._stream, self._epoch, failure.step)
        outputs = outputs or self._repeated(batch, failure)
        raise non_finite_loss(failure, self._epoch, outputs, batch, self._processes.precision)

    def _repeated(self, batch: Batch, failure: Failure) -> StudentOutputs:
        """Repeat the forward pass of the failed step's batch; no weights have changed since that step."""
        self._seed_dropout(failure.step)
        with torch.no_grad():
            parts = parts_of(batch, self._accumulate, self._processes.world_size)
            return joined_outputs([self._model(part.images_BCHW, part) for part in parts])

    def _seed_dropout(self, step: int) -> None:
        step_of_run = self._epoch * self._stream.steps_per_epoch + step
        seed = dropout_seed(self._seed, step_of_run, self._processes.rank)
        self._student.seed_dropout(seed)
        if self._alone and self._processes.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # `manual_seed` notes a stack for each kind of device, in vain
        elif self._alone:
            torch.manual_seed(seed)

    def _can_look_late(self) -> bool:
        """Return whether the host may check losses late: the device can skip updates, and a step can be repeated."""
        return skips_on_device(self._given_optimizer) and self._stream.repeatable

    def _steps_between_looks(self) -> int:
        processes = self._processes
        late = processes.device.type == "cuda" and self._can_look_late() and processes.precision != "fp16"
        return LOOK_EVERY_ON_GPU if late else 1

    def _compiled(self, compiled: Compile) -> CapturedStep | None:
        """Compile the backbone if `compiled` is "max". Return the captured step, or None if none is captured."""
        on_gpu = self._processes.device.type == "cuda"
        if not on_gpu and compiled == "reduce-overhead":
            raise ConfigError("compile reduce-overhead: expected a GPU, which replays a step; on a CPU use max or off")
        if compiled == "max":
            self._student.compile_backbone()
        if not on_gpu or compiled == "off":
            return None
        require_capturable(
            compiled,
            self._objective,
            self._given_optimizer,
            self._processes,
            in_memory=self._stream.repeatable,
            accumulate=self._accumulate,
        )
        return CapturedStep(self._update, self._student.generators)


def batch_of(stream: Stream, epoch: int, step: int) -> Batch:
    """Make the batch of one step of an epoch, by going through the epoch up to that step."""
    return next(islice(stream.epoch(epoch), step, None))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the dropout generators for a `step`, counted over all epochs, in the process with `rank`."""
    return int(raw_rows(seed, Domain.DROPOUT, step, rank, rank + 1)[0, 0] >> 1)


def _joined(
    outputs: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]
) -> tuple[StudentOutputs, Labels, dict[str, Tensor]]:
    """Return the arguments of `Objective.terms` with the rows of all processes."""
    task, features = joined(outputs.task), {name: joined(feature) for name, feature in outputs.features.items()}
    distill = task if outputs.distill is outputs.task else joined(outputs.distill)
    teacher_rows = {name: joined(signal) for name, signal in teacher.items()}
    return StudentOutputs(task, distill, features), labels.map(joined), teacher_rows
