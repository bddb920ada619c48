"""The only training loop. Each epoch trains the students on batches, evaluates them and writes their checkpoints.

The command `train-teacher` runs this loop with the objective `ce` and a stream without signals (teacher outputs such as
logits). Sample order, views (augmentation draws) and dropout are functions of (seed, epoch, step), and a checkpoint
holds everything else, so a resumed run ends with the same weights as an uninterrupted run. Several students can train
side by side: students that share a stream share its batches, and each student ends with the same weights as if it
trained alone (on a CPU, with the same number of cores). The single step is in `step.py`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import torch
from dhkd.data.errors import DhkdError, RunMismatch
from dhkd.data.progress import duration, progress
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.metrics import read_metrics
from dhkd.data.stream.batches import Batch, Stream
from dhkd.stages.agreement import require_agreement
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.trackers import Trackers
from dhkd.stages.train.cursor import restored
from dhkd.stages.train.early_stopping import EarlyStopping
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.parts import Part, change, with_epoch
from dhkd.stages.train.side_by_side import SideBySide, batches_by_stream
from dhkd.stages.train.step import Compile, TrainingStep
from torch import nn

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Task:
    """A student to train, in place, for `epochs` epochs in total, or fewer if `early_stopping` says so.

    If `run` holds a checkpoint, training resumes from this checkpoint. Tasks may share a `stream`. `evaluate` takes the
    student's backbone, in eval mode, and returns the backbone's test accuracy, or what `measured` names. The host
    checks every `look_every` steps whether losses are finite; if `look_every` is None, a number that suits the device
    is used. If `keep_every` is given, the student's weights are saved in the run's folder before the first epoch, after
    every `keep_every` epochs and after the last epoch; if it is None, no such weights are saved. If `clip_norm` is
    None, gradients are not clipped. The metrics of each epoch also go to the services named in `trackers`, such as
    TensorBoard. Each batch is computed in `accumulate` parts. `label_smoothing` acts in every cross-entropy with the
    labels. `ema` becomes the average of the backbone's weights, which is tested beside them; if it is None, no average
    is kept.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    objective: Objective
    stream: Stream
    evaluate: Callable[[nn.Module], Accuracy]
    learning_rate: LearningRate
    epochs: int
    seed: int
    clip_norm: float | None
    run: RunFolder
    look_every: int | None = None
    compiled: Compile = "off"
    keep_every: int | None = None
    trackers: Sequence[str] = ()
    measured: str = "test accuracy"
    accumulate: int = 1
    label_smoothing: float = 0.0
    ema: Ema | None = None
    early_stopping: EarlyStopping | None = None


@dataclass(frozen=True)
class Figures:
    """The results of a finished run.

    Accuracies are in percent. `seconds` is the time of all epochs, including evaluation and the epochs before an
    interruption; `samples_per_second` counts only the time of the training steps. The figures of `ema` are those of the
    average of the weights, and None if none was kept. If training was stopped early, `planned_epochs` is how many
    epochs it might have had, else None. If the number of processes changed, `parts` says how many trained which epochs.
    """

    epochs: int
    last_top1: float
    best_top1: float
    last_top5: float
    best_top5: float
    seconds: float
    samples_per_second: float
    last_ema_top1: float | None = None
    best_ema_top1: float | None = None
    last_ema_top5: float | None = None
    best_ema_top5: float | None = None
    planned_epochs: int | None = None
    parts: Sequence[Part] | None = None


def train(task: Task, processes: Processes) -> Figures:
    """Train one student and return its results.

    Raises `NonFiniteLoss` if a loss term is not finite; the student then has the weights from before the failed step.
    """
    (outcome,) = train_together([task], processes)
    if isinstance(outcome, DhkdError):
        raise outcome
    return outcome


def train_together(tasks: Sequence[Task], processes: Processes) -> list[Figures | DhkdError]:
    """Train several students side by side. Return each task's `Figures`, or the error that ended the task.

    An error ends only the task in which it occurs.
    """
    begun: list[_Run | RunMismatch] = []
    errors: dict[_Run, DhkdError] = {}
    with ExitStack() as ends, SideBySide(len(tasks), processes.device) as side_by_side:
        for task in tasks:
            try:
                begun.append(run := _Run(task, processes, alone=len(tasks) == 1))
                ends.callback(run.end_tracking)
            except RunMismatch as error:
                begun.append(error)
        runs = [run for run in begun if isinstance(run, _Run)]
        first = min((run.cursor.epochs_done for run in runs), default=0)
        for epoch in range(first, max((run.task.epochs for run in runs), default=0)):
            active = [run for run in runs if run not in errors and run.expects(epoch)]
            if not active:
                break
            errors |= _train_epoch(active, epoch, side_by_side, processes)
            errors |= side_by_side.run({run: run.end_epoch for run in active if run not in errors})
            finished = [run for run in active if run not in errors]
            for run in finished:
                try:
                    run.record_epoch()
                except DhkdError as error:
                    errors[run] = error
            if finished:
                processes.wait()
    return [run if isinstance(run, RunMismatch) else errors.get(run) or run.figures() for run in begun]


def _train_epoch(
    runs: "Sequence[_Run]", epoch: int, side_by_side: SideBySide, processes: Processes
) -> "dict[_Run, DhkdError]":
    """Train every student on all its batches of one epoch; return the errors of the students that failed."""
    errors = side_by_side.run({run: run.begin_epoch for run in runs})
    together = f" of {len(runs)} students" if len(runs) > 1 else ""
    samples = sum(run.task.stream.samples_per_epoch for run in runs)
    with progress(f"epoch {epoch + 1}{together}", samples, visible=processes.is_first) as advance:
        for step, batch_of in enumerate(batches_by_stream([run.task.stream for run in runs], epoch)):
            batches = {
                run: batch_of[run.task.stream] for run in runs if run not in errors and run.task.stream in batch_of
            }
            errors |= side_by_side.run({run: partial(run.train_on, step, batch) for run, batch in batches.items()})
            advance(sum(batch.global_size for batch in batches.values()))
            if len(errors) == len(runs):
                break
    return errors


class _Run:
    """A task in progress: its training step, its cursor and everything that it writes into the run's folder."""

    def __init__(self, task: Task, processes: Processes, alone: bool) -> None:
        self.task = task
        self._processes, self._alone = processes, alone
        self.step = TrainingStep(
            task.student,
            task.optimizer,
            task.objective,
            task.stream,
            learning_rate=task.learning_rate,
            seed=task.seed,
            clip_norm=task.clip_norm,
            processes=processes,
            look_every=task.look_every,
            compiled=task.compiled,
            alone=alone,
            accumulate=task.accumulate,
            label_smoothing=task.label_smoothing,
        )
        if task.ema is not None:  # on the device, to which the step has moved the student
            task.ema.begin(task.student.backbone)
        self.cursor, self._epochs, self._parts = restored(task.run, task.student, task.optimizer, task.ema)
        # A run's folder that is not shared by all machines would give each process another checkpoint.
        require_agreement(
            processes,
            lambda: {"checkpoint": {"epochs": self.cursor.epochs_done, "weights": weights_sha256(task.student)}},
        )
        # The trackers begin first, so that the files of the run are unchanged if a tracker can't begin.
        self._trackers = Trackers(task.trackers if processes.is_first else (), task.run.path, task.run.config)
        changed = change(self._parts, processes.world_size, task.stream.batch_size)
        if changed is not None and processes.is_first and self.cursor.epochs_done < task.epochs:
            log.info("run at %s: after epoch %d, it %s", task.run.path, self.cursor.epochs_done, changed)
        if processes.is_first:
            task.run.begin()
            if self.cursor.epochs_done == 0 and (lost := len(read_metrics(task.run.path))):
                log.warning("run at %s: no checkpoint; its %d epochs are trained again", task.run.path, lost)
            task.run.cut_metrics(self.cursor.metrics_bytes)
            if self.cursor.epochs_done == 0:
                self._keep_weights()

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the run before its last epoch."""
        stopping = self.task.early_stopping
        return (
            stopping is not None
            and self.cursor.epochs_done < self.task.epochs
            and stopping.stops([epoch[stopping.monitor] for epoch in self._epochs])
        )

    def _why_stopped(self) -> str:
        stopping = self.task.early_stopping
        assert stopping is not None
        values = [epoch[stopping.monitor] for epoch in self._epochs]
        best = stopping.best_epoch(values)
        return (
            f"{self.task.run.path.name}: stopped early after epoch {len(values)} of {self.task.epochs}, because"
            f" {stopping.monitor} has had no gain since epoch {best} ({values[best - 1]:.2f} %)"
        )

    def expects(self, epoch: int) -> bool:
        """Return whether `epoch` is the next epoch to train."""
        return self.cursor.epochs_done == epoch < self.task.epochs and not self.stopped

    def train_on(self, step: int, batch: Batch) -> None:
        """Update the student with the batch of this step of the epoch, and then the average of its weights."""
        self.step(step, batch)
        if self.task.ema is not None:
            self.task.ema.step(self.task.student.backbone)

    def begin_epoch(self) -> None:
        """Start the next epoch."""
        self._began = time.perf_counter()
        self.step.begin_epoch(self.cursor.epochs_done)

    def end_epoch(self) -> None:
        """Finish the epoch: collect its metrics and measure the test accuracy.

        Raises `NonFiniteLoss` if a loss of the epoch was not finite.
        """
        cursor, student = self.cursor, self.task.student
        metrics = self.step.end_epoch(time.perf_counter() - self._began)
        self._processes.share_buffers(student)
        student.eval()
        accuracy = self.task.evaluate(student.backbone)
        averaged = self._accuracy_of_average()
        cursor.train_seconds += metrics["train_seconds"]
        cursor.seconds += time.perf_counter() - self._began
        cursor.epochs_done += 1
        cursor.last_top1, cursor.last_top5 = accuracy.top1, accuracy.top5
        cursor.best_top1 = max(cursor.best_top1, accuracy.top1)
        cursor.best_top5 = max(cursor.best_top5, accuracy.top5)
        self._metrics: dict[str, float] = {
            "epoch": cursor.epochs_done,
            **metrics,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            **averaged,
            "seconds": cursor.seconds,
        }
        self._epochs.append(self._metrics)
        self._parts = with_epoch(self._parts, self._processes.world_size)

    def _accuracy_of_average(self) -> dict[str, float]:
        """Return the metrics of the average of the weights; empty if none is kept."""
        ema, network = self.task.ema, self.task.student.backbone
        if ema is None:
            return {}
        self._processes.share(ema.tensors())  # each process averaged its own running statistics of batch norm
        with ema.in_place_of_weights(network):
            accuracy = self.task.evaluate(network)
        return {"ema_top1": accuracy.top1, "ema_top5": accuracy.top5}

    def record_epoch(self) -> None:
        """Log the finished epoch's metrics, and write them and a checkpoint into the run's folder.

        Only the first process does this.
        """
        if not self._processes.is_first:
            return
        task, metrics = self.task, self._metrics
        log.info(
            "%s%s",
            "" if self._alone else f"{task.run.path.name}: ",
            _summary(metrics, task.epochs, task.measured.removesuffix(" accuracy")),
        )
        if self.stopped:
            log.info("%s", self._why_stopped())
        self._trackers.log(metrics, self.cursor.epochs_done)
        self.cursor.metrics_bytes = task.run.append_metrics(metrics)
        self._keep_weights()
        tensors = {"student": task.student.state_dict(), "optimizer": task.optimizer.state_dict()}
        if task.ema is not None:
            tensors["ema"] = task.ema.state()
        parts = [asdict(part) for part in self._parts]
        task.run.save_checkpoint({"cursor": asdict(self.cursor), "parts": parts, **tensors})

    def _keep_weights(self) -> None:
        task, epochs = self.task, self.cursor.epochs_done
        if task.keep_every is not None and (epochs % task.keep_every == 0 or epochs == task.epochs or self.stopped):
            task.run.keep_weights(epochs, task.student.state_dict())

    def end_tracking(self) -> None:
        """Tell the trackers that no more metrics will come."""
        self._trackers.end(failed=self.cursor.epochs_done < self.task.epochs and not self.stopped)

    def figures(self) -> Figures:
        """Return the results of the finished run."""
        cursor = self.cursor
        averages = {name: [epoch[name] for epoch in self._epochs if name in epoch] for name in ("ema_top1", "ema_top5")}
        return Figures(
            epochs=cursor.epochs_done,
            last_top1=cursor.last_top1,
            best_top1=cursor.best_top1,
            last_top5=cursor.last_top5,
            best_top5=cursor.best_top5,
            seconds=round(cursor.seconds, 2),
            samples_per_second=round(self.task.stream.samples_per_epoch * cursor.epochs_done / cursor.train_seconds, 1),
            **{f"last_{name}": values[-1] for name, values in averages.items() if values},
            **{f"best_{name}": max(values) for name, values in averages.items() if values},
            planned_epochs=self.task.epochs if self.stopped else None,
            parts=self._parts if len(self._parts) > 1 else None,
        )


def _summary(metrics: Mapping[str, float], epochs: int, measured: str) -> str:
    epochs_left = epochs - int(metrics["epoch"])
    left = f"  {duration(epochs_left * metrics['seconds'] / metrics['epoch'])} left" if epochs_left else ""
    train = f"  train {metrics['train_top1']:.2f} %" if "train_top1" in metrics else ""
    average = f"  ema {metrics['ema_top1']:.2f} %" if "ema_top1" in metrics else ""
    return (
        f"epoch {metrics['epoch']}/{epochs}  loss {metrics['loss']:.4f}{train}"
        f"  {measured} {metrics['top1']:.2f} %{average}  {metrics['samples_per_second']:,.0f} samples/s{left}"
    )
