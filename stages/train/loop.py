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
from dhkd.data.errors import DhkdError, RunMismatch, WeightsError
from dhkd.data.progress import duration, progress
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.metrics import EpochMetrics, read_metrics
from dhkd.data.runs.names import METRICS
from dhkd.data.stream.batches import Stream
from dhkd.stages.agreement import require_agreement
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import fit_weights, weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.trackers import Trackers
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.side_by_side import SideBySide, batches_by_stream
from dhkd.stages.train.step import Compile, TrainingStep
from torch import nn

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Task:
    """A student to train, in place, for `epochs` epochs in total.

    If `run` holds a checkpoint, training resumes from this checkpoint. Tasks may share a `stream`. `evaluate` takes the
    student's backbone, in eval mode, and returns the backbone's test accuracy, or what `measured` names. The host
    checks every `look_every` steps whether losses are finite; if `look_every` is None, a number that suits the device
    is used. If `keep_every` is given, the student's weights are saved in the run's folder before the first epoch, after
    every `keep_every` epochs and after the last epoch; if it is None, no such weights are saved. If `clip_norm` is
    None, gradients are not clipped. The metrics of each epoch also go to the services named in `trackers`, such as
    TensorBoard. Each batch is computed in `accumulate` parts.
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


@dataclass(frozen=True)
class Figures:
    """The results of a finished run.

    Accuracies are in percent. `seconds` is the time of all epochs, including evaluation and the epochs before an
    interruption; `samples_per_second` counts only the time of the training steps.
    """

    epochs: int
    last_top1: float
    best_top1: float
    last_top5: float
    best_top5: float
    seconds: float
    samples_per_second: float


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
            errors |= side_by_side.run({run: partial(run.step, step, batch) for run, batch in batches.items()})
            advance(sum(batch.global_size for batch in batches.values()))
            if len(errors) == len(runs):
                break
    return errors


@dataclass
class Cursor:
    """The progress of a run. Checkpoints store it besides weights and optimizer state. Accuracies are in percent."""

    epochs_done: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    last_top1: float = 0.0
    last_top5: float = 0.0
    best_top1: float = 0.0
    best_top5: float = 0.0
    metrics_bytes: int = 0


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
        )
        self.cursor = _restore(task)
        # A run's folder that is not shared by all machines would give each process another checkpoint.
        require_agreement(
            processes,
            lambda: {"checkpoint": {"epochs": self.cursor.epochs_done, "weights": weights_sha256(task.student)}},
        )
        # The trackers begin first, so that the files of the run are unchanged if a tracker can't begin.
        self._trackers = Trackers(task.trackers if processes.is_first else (), task.run.path, task.run.config)
        if processes.is_first:
            task.run.begin()
            if self.cursor.epochs_done == 0 and (lost := len(read_metrics(task.run.path))):
                log.warning("run at %s: no checkpoint; its %d epochs are trained again", task.run.path, lost)
            task.run.cut_metrics(self.cursor.metrics_bytes)
            if self.cursor.epochs_done == 0:
                self._keep_weights()

    def expects(self, epoch: int) -> bool:
        """Return whether `epoch` is the next epoch to train."""
        return self.cursor.epochs_done == epoch < self.task.epochs

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
            "seconds": cursor.seconds,
        }

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
        self._trackers.log(metrics, self.cursor.epochs_done)
        self.cursor.metrics_bytes = task.run.append_metrics(metrics)
        self._keep_weights()
        tensors = {"student": task.student.state_dict(), "optimizer": task.optimizer.state_dict()}
        task.run.save_checkpoint({"cursor": asdict(self.cursor), **tensors})

    def _keep_weights(self) -> None:
        task, epochs = self.task, self.cursor.epochs_done
        if task.keep_every is not None and (epochs % task.keep_every == 0 or epochs == task.epochs):
            task.run.keep_weights(epochs, task.student.state_dict())

    def end_tracking(self) -> None:
        """Tell the trackers that no more metrics will come."""
        self._trackers.end(failed=self.cursor.epochs_done < self.task.epochs)

    def figures(self) -> Figures:
        """Return the results of the finished run."""
        cursor, epochs = self.cursor, self.task.epochs
        return Figures(
            epochs=epochs,
            last_top1=cursor.last_top1,
            best_top1=cursor.best_top1,
            last_top5=cursor.last_top5,
            best_top5=cursor.best_top5,
            seconds=round(cursor.seconds, 2),
            samples_per_second=round(self.task.stream.samples_per_epoch * epochs / cursor.train_seconds, 1),
        )


def _restore(task: Task) -> Cursor:
    """Load the checkpoint, if one exists, into student and optimizer. Return the run's progress.

    Without a checkpoint, the progress is 0 epochs. Raises `RunMismatch` if the checkpoint doesn't fit this run.
    """
    run, student = task.run, task.student
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Cursor()
    try:
        cursor = Cursor(**checkpoint["cursor"])
        _require_metrics_of(cursor, run)
        fit_weights(student, checkpoint["student"], f"checkpoint in {run.path}")
        task.optimizer.load_state_dict(checkpoint["optimizer"])
    except WeightsError as error:
        raise RunMismatch(f"{error}; choose another --out or train from the start") from error
    except RunMismatch:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RunMismatch(f"checkpoint in {run.path} is of another program or version ({error}); delete it") from error
    return cursor


def _require_metrics_of(cursor: Cursor, run: RunFolder) -> None:
    """Raise `RunMismatch` unless a checkpoint's cursor is the one that the run had after the metrics before it."""
    by_metrics = cursor_after(run.epochs_until(cursor.metrics_bytes), cursor.metrics_bytes)
    differing = [
        f"{name} is {value}, by {METRICS} it is {asdict(by_metrics)[name]}"
        for name, value in asdict(cursor).items()
        if value != asdict(by_metrics)[name]
    ]
    if differing:
        raise RunMismatch(
            f"checkpoint in {run.path}: {'; '.join(differing)}; one of the two was edited; put back the run's own"
            f" files, or delete the checkpoint to train from the start"
        )


def cursor_after(epochs: Sequence[EpochMetrics], metrics_bytes: int) -> Cursor:
    """Return the progress of a run whose metrics are these `epochs`, which take `metrics_bytes` bytes in its file."""
    if not epochs:
        return Cursor(metrics_bytes=metrics_bytes)
    train_seconds = 0.0
    for epoch in epochs:
        train_seconds += epoch.values["train_seconds"]  # in the order of training, so that the sum is the same float
    last = epochs[-1].values
    return Cursor(
        epochs_done=len(epochs),
        seconds=last["seconds"],
        train_seconds=train_seconds,
        last_top1=last["top1"],
        last_top5=last["top5"],
        best_top1=max(0.0, *(epoch.top1 for epoch in epochs)),
        best_top5=max(0.0, *(epoch.values["top5"] for epoch in epochs)),
        metrics_bytes=metrics_bytes,
    )


def _summary(metrics: Mapping[str, float], epochs: int, measured: str) -> str:
    epochs_left = epochs - int(metrics["epoch"])
    left = f"  {duration(epochs_left * metrics['seconds'] / metrics['epoch'])} left" if epochs_left else ""
    train = f"  train {metrics['train_top1']:.2f} %" if "train_top1" in metrics else ""
    return (
        f"epoch {metrics['epoch']}/{epochs}  loss {metrics['loss']:.4f}{train}"
        f"  {measured} {metrics['top1']:.2f} %  {metrics['samples_per_second']:,.0f} samples/s{left}"
    )
