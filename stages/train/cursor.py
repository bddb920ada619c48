"""The progress of a run, and resuming from the checkpoint that holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from dhkd.data.errors import RunMismatch, WeightsError
from dhkd.data.runs.folder import RunFolder
from dhkd.data.runs.metrics import EpochMetrics
from dhkd.data.runs.names import METRICS
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import fit_weights
from dhkd.stages.train.ema import Ema
from dhkd.stages.train.parts import Part


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


def restored(
    run: RunFolder, student: Student, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> tuple[Cursor, list[Mapping[str, float]], list[Part]]:
    """Load the checkpoint, if one exists, into student, optimizer and `ema`.

    Returns the run's progress, the metrics of each finished epoch, and the parts that the run was trained in. Without a
    checkpoint, the progress is 0 epochs. Checkpoints of older versions don't record parts.
    Raises `RunMismatch` if the checkpoint doesn't fit this run.
    """
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Cursor(), [], []
    try:
        cursor = Cursor(**checkpoint["cursor"])
        epochs = run.epochs_until(cursor.metrics_bytes)
        _require_metrics_of(cursor, epochs, run)
        fit_weights(student, checkpoint["student"], f"checkpoint in {run.path}")
        optimizer.load_state_dict(checkpoint["optimizer"])
        if ema is not None:
            ema.load(checkpoint["ema"])
        parts = [Part(**part) for part in checkpoint.get("parts", [])]
    except WeightsError as error:
        raise RunMismatch(f"{error}; choose another --out or train from the start") from error
    except RunMismatch:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunMismatch(f"checkpoint in {run.path} is of another program or version ({error}); delete it") from error
    return cursor, [epoch.values for epoch in epochs], parts


def _require_metrics_of(cursor: Cursor, epochs: Sequence[EpochMetrics], run: RunFolder) -> None:
    """Raise `RunMismatch` unless a checkpoint's cursor is the one that the run had after these `epochs` before it."""
    by_metrics = cursor_after(epochs, cursor.metrics_bytes)
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
