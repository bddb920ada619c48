"""Batches that are computed in parts, whose gradients add up to the gradient of the whole batch.

A step then needs the memory of one part. The terms are means over rows, so the sum of the parts' terms, each weighted
by its share of the rows, is the term of the whole batch. Batch norm is an exception: it sees the rows of one part. An
objective that compares rows with each other, or with rows that it remembers, would see fewer of them, so it is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.objectives.contract import Objective

LEAST_ROWS = 2  # of a part, because batch norm needs two


def require_divisible(objective: Objective, parts: int) -> None:
    """Raise `ConfigError` if batches are to be computed in several `parts` and `objective` needs all rows at once."""
    if parts > 1 and (objective.couples_rows or objective.remembers_rows):
        terms = ", ".join(objective.weights(0))
        raise ConfigError(
            f"accumulate {parts}: the objective ({terms}) compares the rows of a batch with each other: expected no"
            f" parts, got {parts}; leave accumulate out, or choose an objective such as kd, dkd or dhkd"
        )


def parts_of(batch: Batch, parts: int, world_size: int) -> Iterator[Batch]:
    """Divide a process's rows into `parts` of almost equal size, in order.

    A small batch is divided into fewer parts, of at least `LEAST_ROWS` rows; the number is the same in all processes,
    whose shares of a batch differ by at most one row.
    """
    number = max(1, min(parts, batch.global_size // world_size // LEAST_ROWS))
    if number == 1:
        yield batch
        return
    rows = len(batch.index_B)
    bounds = [rows * part // number for part in range(number + 1)]
    for start, stop in pairwise(bounds):
        some = slice(start, stop)
        yield replace(
            batch,
            view_B=batch.view_B[some],
            index_B=batch.index_B[some],
            images_BCHW=batch.images_BCHW[some],
            labels=batch.labels.map(itemgetter(some)),
            teacher={name: signal[some] for name, signal in batch.teacher.items()},
        )


def joined_outputs(parts: Sequence[StudentOutputs]) -> StudentOutputs:
    """Join the outputs of a batch's parts to those of the batch, in order."""
    if len(parts) == 1:
        return parts[0]
    features = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
    return StudentOutputs(
        torch.cat([part.task for part in parts]), torch.cat([part.distill for part in parts]), features
    )
