"""The one training loop: batches by key → students → evaluation → checkpoint, epoch by epoch.

`train-teacher` is this loop with the objective `ce` and a stream without signals. Order, views and dropout are
functions of (seed, epoch, step), and a checkpoint holds the rest, so a resumed run ends with the weights of an
uninterrupted one. Several students train side by side on batches that are made once for those of one stream; each
ends as it would alone.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import torch
from dhkd.data.errors import DhkdError, RunMismatch, WeightsError
from dhkd.data.runs.folder import RunFolder
from dhkd.data.stream.batches import Batch, Stream
from dhkd.stages.models.evaluate import Accuracy
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import fit_weights
from dhkd.stages.processes import Processes
from dhkd.stages.progress import progress_bar
from dhkd.stages.trackers import Trackers
from dhkd.stages.train.crew import Crew
from dhkd.stages.train.learner import Compile, Learner
from dhkd.stages.train.learning_rate import LearningRate
from dhkd.stages.train.objectives.contract import Objective
from torch import nn

log = logging.getLogger("dhkd")


@dataclass(frozen=True)
class Task:
    """What there is to train: `student`, in place, for `epochs`, or for what a checkpoint in `run` leaves of them.

    Tasks may share a `stream`. `evaluate` maps the student's backbone (in eval mode) to its test accuracy. `look_every`
    is how many steps the host lets the device run before it looks whether losses are finite; None: as fits the device.
    The student's weights are kept before the first epoch, after every `keep_every` of them and after the last. Each
    epoch's metrics also go to `trackers`.
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


def train(task: Task, processes: Processes) -> dict[str, Any]:
    """The run's figures: last and best accuracy in percent, seconds over all interruptions, samples/s of the steps.

    Raises `NonFiniteLoss` before the update when a term is not finite.
    """
    (outcome,) = train_together([task], processes)
    if isinstance(outcome, DhkdError):
        raise outcome
    return outcome


def train_together(tasks: Sequence[Task], processes: Processes) -> list[dict[str, Any] | DhkdError]:
    """Each task's figures as `train` gives them, or the error that ended it while the others went on."""
    runs: list[_Run] = []
    with ExitStack() as ends, Crew(len(tasks), processes.device) as crew:
        for task in tasks:
            runs.append(_Run(task, processes, alone=len(tasks) == 1))
            ends.callback(runs[-1].end_tracking)
        for epoch in range(min(run.cursor.epochs_done for run in runs), max(task.epochs for task in tasks)):
            active = [run for run in runs if run.expects(epoch)]
            crew.each(_Run.begin, active)
            _epoch(active, epoch, crew, processes)
            crew.each(_Run.end, [run for run in active if run.error is None])
            for run in active:
                run.record()
            processes.wait()
    return [run.error or run.figures() for run in runs]


def _epoch(runs: "Sequence[_Run]", epoch: int, crew: Crew, processes: Processes) -> None:
    """One pass over each run's training set, in step with one another."""
    streams = list(dict.fromkeys(run.task.stream for run in runs))
    samples = sum(run.task.stream.samples_per_epoch for run in runs)
    together = f" of {len(runs)} students" if len(runs) > 1 else ""
    with progress_bar(f"epoch {epoch + 1}{together}", samples, visible=processes.is_first) as advance:
        for step, batches in enumerate(zip_longest(*(stream.epoch(epoch) for stream in streams))):
            batch_of_stream = dict(zip(streams, batches, strict=True))
            learning = [run for run in runs if run.error is None and batch_of_stream[run.task.stream] is not None]
            crew.each(partial(_learn, step, batch_of_stream), learning)
            advance(sum(batch_of_stream[run.task.stream].global_size for run in learning))
            if not any(run.error is None for run in runs):
                return


def _learn(step: int, batch_of_stream: Mapping[Stream, Batch], run: "_Run") -> None:
    run.learn(step, batch_of_stream[run.task.stream])


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


class _Run:
    """A task on its way: where it stands, and what it writes into its folder."""

    def __init__(self, task: Task, processes: Processes, alone: bool) -> None:
        self.task = task
        self.error: DhkdError | None = None
        self._processes, self._alone = processes, alone
        stream = task.stream
        self._learner = Learner(
            task.student,
            task.optimizer,
            task.objective,
            learning_rate=task.learning_rate,
            steps_per_epoch=stream.steps_per_epoch,
            seed=task.seed,
            clip_norm=task.clip_norm,
            processes=processes,
            again=partial(batch_of, stream) if stream.repeatable else None,
            look_every=task.look_every,
            compiled=task.compiled,
            alone=alone,
        )
        self.cursor = _restore(task)
        # Before the folder is taken: a tracker that says no leaves it as it was.
        self._trackers = Trackers(task.trackers if processes.is_first else (), task.run.path, task.run.config)
        if processes.is_first:
            task.run.begin()
            task.run.cut_metrics(self.cursor.metrics_bytes)
            if self.cursor.epochs_done == 0:
                self._keep()

    def expects(self, epoch: int) -> bool:
        """Whether this is the epoch it is to train next."""
        return self.error is None and self.cursor.epochs_done == epoch < self.task.epochs

    def begin(self) -> None:
        """Start the epoch that it expects."""
        self._began = time.perf_counter()
        self._learner.begin(self.cursor.epochs_done)

    def learn(self, step: int, batch: Batch) -> None:
        """Update the student, or keep the error that ends this run alone."""
        try:
            self._learner.learn(step, batch)
        except DhkdError as error:
            self.error = error

    def end(self) -> None:
        """Finish the epoch: what its steps found, and the test accuracy."""
        cursor, student = self.cursor, self.task.student
        try:
            metrics = self._learner.end(time.perf_counter() - self._began)
        except DhkdError as error:
            self.error = error
            return
        self._processes.share_buffers(student)
        student.eval()
        accuracy = self.task.evaluate(student.backbone)
        cursor.train_seconds += metrics["train_seconds"]
        cursor.seconds += time.perf_counter() - self._began
        cursor.epochs_done += 1
        cursor.last_top1, cursor.last_top5 = accuracy.top1, accuracy.top5
        cursor.best_top1 = max(cursor.best_top1, accuracy.top1)
        cursor.best_top5 = max(cursor.best_top5, accuracy.top5)
        self._line = {"epoch": cursor.epochs_done, **metrics, **asdict(accuracy), "seconds": cursor.seconds}

    def record(self) -> None:
        """Write the finished epoch into the folder, in the first process."""
        if self.error is not None or not self._processes.is_first:
            return
        task, line = self.task, self._line
        log.info("%s%s", "" if self._alone else f"{task.run.path.name}: ", _summary(line, task.epochs))
        self._trackers.log(line, self.cursor.epochs_done)
        self.cursor.metrics_bytes = task.run.append_metrics(line)
        self._keep()
        tensors = {"student": task.student.state_dict(), "optimizer": task.optimizer.state_dict()}
        task.run.save_checkpoint({"cursor": asdict(self.cursor), **tensors})

    def _keep(self) -> None:
        task, epochs = self.task, self.cursor.epochs_done
        if task.keep_every is not None and (epochs % task.keep_every == 0 or epochs == task.epochs):
            task.run.keep_weights(epochs, task.student.state_dict())

    def end_tracking(self) -> None:
        """Say to the trackers that no more will come."""
        self._trackers.end(failed=self.cursor.epochs_done < self.task.epochs)

    def figures(self) -> dict[str, Any]:
        """What `train` returns."""
        cursor, epochs = self.cursor, self.task.epochs
        return {
            "epochs": epochs,
            "last_top1": cursor.last_top1,
            "best_top1": cursor.best_top1,
            "last_top5": cursor.last_top5,
            "best_top5": cursor.best_top5,
            "seconds": round(cursor.seconds, 2),
            "samples_per_second": round(self.task.stream.samples_per_epoch * epochs / cursor.train_seconds, 1),
        }


def batch_of(stream: Stream, epoch: int, step: int) -> Batch:
    """The batch of one step, made by itself."""
    return next(islice(stream.epoch(epoch), step, None))


def _restore(task: Task) -> Cursor:
    run, student = task.run, task.student
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Cursor()
    try:
        cursor = Cursor(**checkpoint["cursor"])
        fit_weights(student, checkpoint["student"], f"checkpoint in {run.path}")
        task.optimizer.load_state_dict(checkpoint["optimizer"])
    except WeightsError as error:
        raise RunMismatch(f"{error}; choose another --out or train from the start") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunMismatch(f"checkpoint in {run.path} is of another program or version ({error}); delete it") from error
    return cursor


def _summary(line: Mapping[str, float], epochs: int) -> str:
    return (
        f"epoch {line['epoch']}/{epochs}  loss {line['loss']:.4f}  train {line['train_top1']:.2f} %"
        f"  test {line['top1']:.2f} %  {line['samples_per_second']:,.0f} samples/s"
    )
