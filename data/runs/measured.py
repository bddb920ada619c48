"""Names what a run's top-1 and top-5 figures are: accuracy or agreement with the teacher, on the test split or a
held-out part of the training split.

A run's settings record this only if it isn't the usual case, accuracy on the test split.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dhkd.data.runs.names import MEASURED_KEY

USUAL = "test accuracy"  # the others are "val accuracy", "test agreement" and "val agreement"


def top1_name(measured: str | None) -> str:
    """Return the name of the top-1 figure in texts and tables: top-1, val top-1, test agreement or val agreement."""
    return "top-1" if measured in (None, USUAL) else str(measured).replace("accuracy", "top-1")


def common_top1_name(settings: Sequence[Mapping[str, Any]]) -> str:  # Any: settings are YAML
    """Return the name of the top-1 figure of runs with these settings, or top-1 if the runs' names differ."""
    names = {top1_name(of_run.get(MEASURED_KEY)) for of_run in settings}
    return names.pop() if len(names) == 1 else "top-1"


def caption_of(name: str) -> str:
    """Return the name of top-1 figures as the beginning of a sentence."""
    return "Test accuracy" if name == "top-1" else f"{name[0].upper()}{name[1:]}"


def label_of(name: str) -> str:
    """Return the axis label of a chart that shows top-1 figures of this name."""
    return f"{'test top-1' if name == 'top-1' else name} (%)"
