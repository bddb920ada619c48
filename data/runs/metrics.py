"""Reading metrics.jsonl, which has one line for each finished epoch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhkd.data.errors import RunMismatch
from dhkd.data.runs.names import METRICS
from pydantic_core import from_json


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch's metrics: `top1` is the test accuracy in percent; `values` holds all numbers, in the file's order.

    The values stay a mapping because objectives choose the names of their terms.
    """

    top1: float
    values: Mapping[str, float]


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Read the epochs of the run at `path`; the list is empty before the first epoch has ended.

    If training is killed, the last line may be incomplete. Such a line is ignored, as it is when the run is resumed.
    Raises `RunMismatch` if any other line is not an epoch's metrics.
    """
    try:
        content = (path / METRICS).read_bytes()
    except FileNotFoundError:
        return []
    return metrics_in(content, path / METRICS)


def metrics_in(content: bytes, where: Path) -> list[EpochMetrics]:
    """Read the epochs in the bytes of the file `where`, as `read_metrics` does."""
    lines = content.splitlines()
    try:
        return _all(lines)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # one line or more is damaged; read them one by one
    epochs = []
    for number, line in enumerate(lines):
        try:
            epochs.append(_epoch(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines) - 1:
                break
            raise RunMismatch(f"{where}, line {number + 1}: expected an epoch's metrics in JSON") from error
    return epochs


def _all(lines: list[bytes]) -> list[EpochMetrics]:
    """Read undamaged lines all at once with pydantic's fast parser, because reports read a hundred thousand of them."""
    trees = from_json(b"[" + b",".join(lines) + b"]", cache_strings="keys")
    if len(trees) != len(lines) or not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        raise ValueError("a line is damaged")
    return [_epoch(values) for values in trees]


def _epoch(values: Any) -> EpochMetrics:  # Any: JSON
    sum(values.values())  # a TypeError unless all are numbers
    return EpochMetrics(values["top1"], values)
