"""One student in training: a batch in, an update out, and nothing read back from the device in between.

What a step finds out about itself is added up where it was computed. The host looks at it every `look_every` steps: on
a CPU after every step, since reading costs nothing there; on a GPU seldom, since reading waits for everything that was
launched. From a loss that isn't finite on, the device leaves updates out by itself, so that however late the host
looks, the error names the first such step and nothing was updated.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from dhkd.data.draws.philox import Domain, raw_rows
from dhkd.data.errors import ConfigError, NonFiniteLoss
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.student import Student, StudentOutputs
from dhkd.stages.processes import Processes, joined
from dhkd.stages.train.captured import CapturedStep
from dhkd.stages.train.gradients import backward
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from torch import Tensor

KEYS_NAMED = 5  # how many keys an error about a batch lists
LOOK_EVERY_ON_GPU = 64

# "reduce-overhead" replays a step as a CUDA graph; "max" also compiles the backbone, which is all it does on a CPU.
Compile = Literal["off", "reduce-overhead", "max"]


class Learner:
    """A student, its optimizer and its objective: `begin` an epoch, `learn` from its batches in order, `end` it.

    `again` gives the batch of a step of an epoch once more, to say which of its rows made a loss not finite; without
    it the host looks after every step. `compiled`: how steps are made fast. `alone`: no other learner is in this
    interpreter, so torch's own generator, from which foreign networks' dropout draws, is this one's.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        learning_rate: LearningRate,
        steps_per_epoch: int,
        seed: int,
        clip_norm: float | None,
        processes: Processes,
        again: Callable[[int, int], Batch] | None = None,
        look_every: int | None = None,
        compiled: Compile = "off",
        alone: bool = True,
    ) -> None:
        self.student, self.objective = student, objective
        self.model, self._prepared = processes.prepare(student, optimizer)
        self._optimizer = optimizer
        self._parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self._learning_rate, self._steps_per_epoch = learning_rate, steps_per_epoch
        self._seed, self._clip_norm, self._processes, self._alone = seed, clip_norm, processes, alone
        self._again = again
        fused = bool(optimizer.defaults.get("fused"))  # the only one that can leave an update out by itself
        if look_every is None:
            late = processes.device.type == "cuda" and fused and again is not None and processes.precision != "fp16"
            look_every = LOOK_EVERY_ON_GPU if late else 1
        assert look_every == 1 or (fused and again is not None)
        self._look_every = look_every
        self._captured: CapturedStep | None = None
        if compiled != "off":
            self._compile(compiled)
        # One set of them for the whole run, written in place: a captured step knows where they are, and no more.
        device = processes.device
        self._names = [*objective.weights(0), "hits", "rows", "conflicts"]
        self._totals = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        # The first step of which a term was not finite, and which terms' sums were not; -1: none so far.
        self._broken_at = torch.full((), -1, dtype=torch.int64, device=device)
        self._broken = torch.zeros(len(self._names), dtype=torch.bool, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._coefficient = torch.zeros((), device=device)
        self._rate = torch.zeros((), device=device)
        self._epoch = self._skipped = 0
        self._weights: dict[str, float] = {}

    def begin(self, epoch: int) -> None:
        """Start an epoch, from 0."""
        self.model.train()
        weights = self.objective.weights(epoch)
        if weights != self._weights and self._captured is not None:
            self._captured.forget()
        self._epoch, self._weights, self._skipped = epoch, weights, 0
        self._totals.zero_()
        self._broken_at.fill_(-1)
        self._broken.zero_()

    def learn(self, step: int, batch: Batch) -> None:
        """Update the student on the batch of this `step` of the epoch, from 0.

        Raises `NonFiniteLoss`, at the latest when `end` is called.
        """
        rate = self._learning_rate.at(self._epoch, step, self._steps_per_epoch)
        self._step.fill_(step)
        self._seed_dropout(step)
        # Whether the step computes a coefficient of its own. Checkpoints are between epochs, and the first step does.
        alignment = self.objective.alignment
        projects = alignment is not None and step % alignment.every == 0
        if self._captured is None:
            self._set_rate(rate)
            self._update(batch, projects)
        else:
            self._rate.fill_(rate)
            self._set_rate(self._rate)
            self._captured(batch, projects)
        self._skipped += self._processes.step_was_skipped(self._prepared)
        if self._look_every > 1 and (step + 1) % self._look_every == 0:
            self._require_finite(None)

    def end(self, seconds: float) -> dict[str, float]:
        """Means of every term over the epoch's rows, training accuracy in percent, the last rate.

        `seconds` are what it took, from which rates are computed. Raises `NonFiniteLoss`.
        """
        self._require_finite(None)
        rate = self._learning_rate.at(self._epoch, self._steps_per_epoch - 1, self._steps_per_epoch)
        self._set_rate(rate)  # a captured step's is a tensor, and a checkpoint holds a number
        totals = dict(zip(self._names, self._totals.tolist(), strict=True))
        rows = totals["rows"]
        means = {name: totals[name] / rows for name in self._weights}
        metrics = {
            "learning_rate": rate,
            "loss": sum(self._weights[name] * mean for name, mean in means.items()),
            **means,
            "train_top1": 100 * totals["hits"] / rows,
            "train_seconds": seconds,
            "samples_per_second": rows / seconds,
        }
        if self.objective.alignment is not None:
            metrics["conflicting_steps"] = totals["conflicts"]
        if self._processes.precision == "fp16":
            metrics["skipped_steps"] = float(self._skipped)
        return metrics

    def _compile(self, compiled: Compile) -> None:
        on_gpu = self._processes.device.type == "cuda"
        if not on_gpu and compiled == "reduce-overhead":
            raise ConfigError("compile reduce-overhead: expected a GPU, which replays a step; on a CPU use max or off")
        if compiled == "max":
            self.student.compile_backbone()
        if not on_gpu:
            return
        hindrances = {
            "several processes": self._processes.world_size > 1,
            "precision fp16": self._processes.precision == "fp16",
            "an objective that works on the host": not self.objective.capturable,
            "images or a cache that are not all in memory": self._again is None,
            "an optimizer that is not fused": not self._optimizer.defaults.get("fused"),
        }
        found = [hindrance for hindrance, is_there in hindrances.items() if is_there]
        if found:
            raise ConfigError(f"compile {compiled}: a graph can't hold a step with {' and '.join(found)}; use off")
        self._captured = CapturedStep(self._update, self.student.generators)

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self._prepared.param_groups:
            group["lr"] = rate

    def _update(self, batch: Batch, projects: bool) -> None:
        processes, alignment = self._processes, self.objective.alignment
        # Aligned gradients come from autograd.grad, which DDP's averaging never sees: they are averaged in `backward`.
        with processes.unsynchronized(self.model) if projects else nullcontext():
            student: StudentOutputs = self.model(batch.images_BCHW, batch)
            joint = self.objective.couples_rows and processes.world_size > 1
            seen = _joined(student, batch) if joint else (student, batch.labels_B, batch.teacher)
            terms = self.objective.terms(*seen)
            sums = self._sums(terms, student, batch)
            self._watch(sums)
            if self._look_every == 1:
                self._require_finite((student, batch))
            # DDP averages over processes. Where terms are means over this process's rows, together with this factor
            # that is the mean over the joint batch, whatever the shares. Terms of the joint batch are the same in every
            # process, and their gradient is the sum of what each has of its own rows.
            share = processes.world_size if joint else len(batch.index_B) * processes.world_size / batch.global_size
            report = backward(
                terms,
                {name: weight * share for name, weight in self._weights.items()},
                self._parameters,
                alignment=alignment,
                coefficient=None if projects else self._coefficient,
                scale=processes.scale,
                average=processes.average if processes.world_size > 1 else None,
            )
        if report is not None:
            sums[-1] = report.conflict
            self._coefficient.copy_(report.coefficient)
        self._totals += sums
        if self._clip_norm is not None:
            processes.clip(self.model, self._clip_norm)
        self._prepared.step()
        self._prepared.zero_grad()

    def _sums(self, terms: Mapping[str, Tensor], student: StudentOutputs, batch: Batch) -> Tensor:
        """Every term times its rows, the correct answers and the rows, summed over the processes; 0 conflicts."""
        rows = len(batch.index_B)
        hits = (student.task.argmax(dim=1) == batch.labels_B).sum()
        values = [*(terms[name].detach() * rows for name in self._weights), hits, torch.full_like(hits, rows)]
        sums = self._processes.sum(torch.stack([value.double() for value in values]))
        return torch.cat([sums, sums.new_zeros(1)])

    def _watch(self, sums: Tensor) -> None:
        """Remember the first step with a term that isn't finite, and have the optimizer leave out its update."""
        broken = ~sums.isfinite()
        first = broken.any() & (self._broken_at < 0)
        self._broken.copy_(torch.where(first, broken, self._broken))
        self._broken_at.copy_(torch.where(first, self._step, self._broken_at))
        if self._look_every > 1:
            # What GradScaler uses, too: the fused optimizer's kernels do nothing where this is 1.
            self._optimizer.found_inf = (self._broken_at >= 0).float()  # type: ignore[attr-defined]  # SGD.step reads it

    def _require_finite(self, at_hand: tuple[StudentOutputs, Batch] | None) -> None:
        """Stop, in every process alike, naming term, step and keys, if a loss was not finite.

        `at_hand` are outputs and batch of the step that was watched last; None: the step's are made again, of weights
        that are still those it saw.
        """
        step = int(self._broken_at)
        if step < 0:
            return
        broken = [name for name, bad in zip(self._names, self._broken.tolist(), strict=True) if bad]
        student, batch = at_hand or self._repeated(step)
        rows = _suspects(student, batch)
        keys = [f"({int(batch.view_B[row])}, {int(batch.index_B[row])})" for row in rows[:KEYS_NAMED]]
        named = (
            f"keys (view, index) {', '.join(keys)}" if keys else "keys of another process or of the batch as a whole"
        )
        more = f" and {len(rows) - KEYS_NAMED} more" if len(rows) > KEYS_NAMED else ""
        raise NonFiniteLoss(
            f"loss term {', '.join(broken)} is not finite at epoch {self._epoch + 1}, step {step + 1}, {named}{more};"
            f" nothing was updated; lower the learning rate or use --precision float32, then --resume"
        )

    def _repeated(self, step: int) -> tuple[StudentOutputs, Batch]:
        assert self._again is not None
        batch = self._again(self._epoch, step)
        self._seed_dropout(step)
        with torch.no_grad():
            return self.model(batch.images_BCHW, batch), batch

    def _seed_dropout(self, step: int) -> None:
        seed = dropout_seed(self._seed, self._epoch * self._steps_per_epoch + step, self._processes.rank)
        self.student.seed_dropout(seed)
        if self._alone:
            torch.manual_seed(seed)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """What dropout's generator starts from in a step, counted over all epochs, of the process `rank`."""
    return int(raw_rows(seed, Domain.DROPOUT, step, rank, rank + 1)[0, 0] >> 1)


def _joined(student: StudentOutputs, batch: Batch) -> tuple[StudentOutputs, Tensor, dict[str, Tensor]]:
    """What `terms` takes, of the rows of all processes."""
    task, features = joined(student.task), {name: joined(feature) for name, feature in student.features.items()}
    distill = task if student.distill is student.task else joined(student.distill)
    teacher = {name: joined(signal) for name, signal in batch.teacher.items()}
    return StudentOutputs(task, distill, features), joined(batch.labels_B), teacher


def _suspects(student: StudentOutputs, batch: Batch) -> list[int]:
    """The rows in which something isn't finite, or is too large to be squared."""
    limit = torch.finfo(torch.float32).max ** 0.5
    tensors = [student.task, student.distill, *student.features.values(), *batch.teacher.values()]
    good_B = torch.stack([(tensor.detach().flatten(1).abs() < limit).all(dim=1) for tensor in tensors]).all(dim=0)
    return [row for row, good in enumerate(good_B.tolist()) if not good]
