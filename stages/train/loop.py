"""The one training loop: batches by key → student → objective → (aligned) gradients → step → checkpoint.

`train-teacher` is this loop with the objective `ce` and a stream without signals. Order, views and dropout are
functions of (seed, epoch, step), and a checkpoint holds the rest, so a resumed run ends with the weights of an
uninterrupted one.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from dhkd.data.errors import NonFiniteLoss, RunMismatch, WeightsError
from dhkd.data.philox import Domain, raw_rows
from dhkd.data.stream import Batch, Stream
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.student import Student, StudentOutputs
from dhkd.stages.models.weights import fit_weights
from dhkd.stages.processes import Processes, joined
from dhkd.stages.progress import progress_bar
from dhkd.stages.train.gradients import backward
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.run_folder import RunFolder
from torch import Tensor, nn

log = logging.getLogger("dhkd")

KEYS_NAMED = 5  # how many keys an error about a batch lists


@dataclass
class Cursor:
    """Where a run stands: what a checkpoint holds beside weights and optimizer. Accuracies are in percent."""

    epochs_done: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    last_top1: float = 0.0
    last_top5: float = 0.0
    best_top1: float = 0.0
    best_top5: float = 0.0
    metrics_bytes: int = 0


def train(
    student: Student,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    stream: Stream,
    evaluate: Callable[[nn.Module], Accuracy],
    *,
    learning_rate: LearningRate,
    epochs: int,
    seed: int,
    clip_norm: float | None,
    run: RunFolder,
    processes: Processes,
) -> dict[str, Any]:
    """Train `student` in place for `epochs`, or for what a checkpoint in `run` leaves of them; the run's figures.

    `evaluate` maps the student's backbone (in eval mode) to its test accuracy. Raises `NonFiniteLoss` before the update
    when a term is not finite. The figures: last and best accuracy in percent, seconds over all interruptions, and
    samples/s of the training steps alone.
    """
    model, prepared = processes.prepare(student, optimizer)
    cursor = _restore(run, student, optimizer)
    if processes.is_first:
        run.begin()
        run.cut_metrics(cursor.metrics_bytes)
    processes.start_tracking(run.config)
    for epoch in range(cursor.epochs_done, epochs):
        began = time.perf_counter()
        metrics = _epoch(model, prepared, objective, stream, epoch, learning_rate, seed, clip_norm, processes)
        cursor.train_seconds += metrics["train_seconds"]
        processes.share_buffers(student)
        student.eval()
        accuracy = evaluate(student.backbone)
        cursor.seconds += time.perf_counter() - began
        cursor.epochs_done = epoch + 1
        cursor.last_top1, cursor.last_top5 = accuracy.top1, accuracy.top5
        cursor.best_top1 = max(cursor.best_top1, accuracy.top1)
        cursor.best_top5 = max(cursor.best_top5, accuracy.top5)
        if processes.is_first:
            line = {"epoch": epoch + 1, **metrics, **asdict(accuracy), "seconds": cursor.seconds}
            log.info(_summary(line, epochs))
            processes.track(line, step=epoch + 1)
            cursor.metrics_bytes = run.append_metrics(line)
            tensors = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            run.save_checkpoint({"cursor": asdict(cursor), **tensors})
        processes.wait()
    return {
        "epochs": epochs,
        "last_top1": cursor.last_top1,
        "best_top1": cursor.best_top1,
        "last_top5": cursor.last_top5,
        "best_top5": cursor.best_top5,
        "seconds": round(cursor.seconds, 2),
        "samples_per_second": round(stream.samples_per_epoch * epochs / cursor.train_seconds, 1),
    }


def _restore(run: RunFolder, student: Student, optimizer: torch.optim.Optimizer) -> Cursor:
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Cursor()
    try:
        cursor = Cursor(**checkpoint["cursor"])
        fit_weights(student, checkpoint["student"], f"checkpoint in {run.path}")
        optimizer.load_state_dict(checkpoint["optimizer"])
    except WeightsError as error:
        raise RunMismatch(f"{error}; choose another --out or train from the start") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunMismatch(f"checkpoint in {run.path} is of another program or version ({error}); delete it") from error
    return cursor


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    stream: Stream,
    epoch: int,
    learning_rate: LearningRate,
    seed: int,
    clip_norm: float | None,
    processes: Processes,
) -> dict[str, float]:
    """One pass over the training set; means over it of every term, training accuracy in percent, the last rate."""
    model.train()
    weights = objective.weights(epoch)
    totals: dict[str, float] = dict.fromkeys([*weights, "hits", "rows", "conflicts"], 0.0)
    skipped = 0
    began = time.perf_counter()
    with progress_bar(f"epoch {epoch + 1}", stream.samples_per_epoch, visible=processes.is_first) as advance:
        for step, batch in enumerate(stream.epoch(epoch)):
            rate = learning_rate.at(epoch, step, stream.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            _seed_dropout(seed, epoch * stream.steps_per_epoch + step, processes.rank)
            sums = _step(model, optimizer, objective, batch, weights, clip_norm, processes, (epoch, step))
            skipped += processes.step_was_skipped(optimizer)
            for name, value in sums.items():
                totals[name] += value
            advance(batch.global_size)
    seconds = time.perf_counter() - began
    rows = totals["rows"]
    means = {name: totals[name] / rows for name in weights}
    metrics = {
        "learning_rate": rate,
        "loss": sum(weights[name] * mean for name, mean in means.items()),
        **means,
        "train_top1": 100 * totals["hits"] / rows,
        "train_seconds": seconds,
        "samples_per_second": rows / seconds,
    }
    if objective.alignment is not None:
        metrics["conflicting_steps"] = totals["conflicts"]
    if processes.precision == "fp16":
        metrics["skipped_steps"] = float(skipped)
    return metrics


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    weights: Mapping[str, float],
    clip_norm: float | None,
    processes: Processes,
    where: tuple[int, int],
) -> dict[str, float]:
    """One update; sums over all processes' rows of every term, the correct answers and the rows."""
    alignment = objective.alignment
    # Aligned gradients come from autograd.grad, which DDP's averaging never sees: they are averaged in `backward`.
    with processes.unsynchronized(model) if alignment else nullcontext():
        student: StudentOutputs = model(batch.images_BCHW, batch)
        joint = objective.couples_rows and processes.world_size > 1
        seen = _joined(student, batch) if joint else (student, batch.labels_B, batch.teacher)
        terms = objective.terms(*seen)
        sums = _sums(terms, student, batch, processes)
        _require_finite(sums, student, batch, where)
        # DDP averages over processes. Where terms are means over this process's rows, together with this factor that is
        # the mean over the joint batch, whatever the shares. Terms of the joint batch are the same in every process,
        # and their gradient is the sum of what each has of its own rows.
        share = processes.world_size if joint else len(batch.index_B) * processes.world_size / batch.global_size
        report = backward(
            terms,
            {name: weight * share for name, weight in weights.items()},
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            alignment=alignment,
            scale=processes.scale,
            average=processes.average if processes.world_size > 1 else None,
        )
    if clip_norm is not None:
        processes.clip(model, clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    if report is not None:
        sums["conflicts"] = float(report.conflict)
    return sums


def _joined(student: StudentOutputs, batch: Batch) -> tuple[StudentOutputs, Tensor, dict[str, Tensor]]:
    """What `terms` takes, of the rows of all processes."""
    task, features = joined(student.task), {name: joined(feature) for name, feature in student.features.items()}
    distill = task if student.distill is student.task else joined(student.distill)
    teacher = {name: joined(signal) for name, signal in batch.teacher.items()}
    return StudentOutputs(task, distill, features), joined(batch.labels_B), teacher


def _sums(terms: Mapping[str, Tensor], student: StudentOutputs, batch: Batch, processes: Processes) -> dict[str, float]:
    """Every term times its rows, the correct answers and the rows, summed over the processes."""
    rows = len(batch.index_B)
    hits = (student.task.argmax(dim=1) == batch.labels_B).sum()
    values = [*(term.detach() * rows for term in terms.values()), hits, hits.new_tensor(rows)]
    sums = processes.sum(torch.stack([value.double() for value in values])).tolist()
    return dict(zip([*terms, "hits", "rows"], sums, strict=True))


def _require_finite(
    sums: Mapping[str, float],
    student: StudentOutputs,
    batch: Batch,
    where: tuple[int, int],
) -> None:
    """Stop before the update, in every process alike, naming term, step and keys."""
    broken = [name for name, value in sums.items() if not math.isfinite(value)]
    if not broken:
        return
    rows = _suspects(student, batch)
    keys = [f"({int(batch.view_B[row])}, {int(batch.index_B[row])})" for row in rows[:KEYS_NAMED]]
    named = f"keys (view, index) {', '.join(keys)}" if keys else "keys of another process or of the batch as a whole"
    more = f" and {len(rows) - KEYS_NAMED} more" if len(rows) > KEYS_NAMED else ""
    raise NonFiniteLoss(
        f"loss term {', '.join(broken)} is not finite at epoch {where[0] + 1}, step {where[1] + 1}, {named}{more};"
        f" nothing was updated; lower the learning rate or use --precision float32, then --resume"
    )


def _suspects(student: StudentOutputs, batch: Batch) -> list[int]:
    """The rows in which something isn't finite, or is too large to be squared."""
    limit = torch.finfo(torch.float32).max ** 0.5
    tensors = [student.task, student.distill, *student.features.values(), *batch.teacher.values()]
    good_B = torch.stack([(tensor.detach().flatten(1).abs() < limit).all(dim=1) for tensor in tensors]).all(dim=0)
    return [row for row, good in enumerate(good_B.tolist()) if not good]


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout draws from torch's generator: make its state a function of (seed, step, rank)."""
    torch.manual_seed(int(raw_rows(seed, Domain.DROPOUT, step, rank, rank + 1)[0, 0] >> 1))


def _summary(line: Mapping[str, float], epochs: int) -> str:
    return (
        f"epoch {line['epoch']}/{epochs}  loss {line['loss']:.4f}  train {line['train_top1']:.2f} %"
        f"  test {line['top1']:.2f} %  {line['samples_per_second']:,.0f} samples/s"
    )
