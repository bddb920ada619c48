"""Build the data of figures from runs and rows; picture files and the page show the same data."""

import math
from collections.abc import Sequence
from dataclasses import fields

from dhkd.data.runs.measured import common_top1_name, label_of
from dhkd.data.runs.read import Run
from dhkd.pipeline.report.comparison import Comparison, kinds_of
from dhkd.pipeline.report.rows import ConflictRow, EpochRow, EtfRow, ViewsRow
from dhkd.pipeline.report.table import axes_of
from dhkd.stages.report.figures import Line, Panel, Values, line_of
from dhkd.stages.report.geometry import NeuralCollapse
from dhkd.stages.report.statistics import Spread, spread

TEACHER = "teacher"

# Metrics in metrics.jsonl, with labels. The losses of different methods are sums of different terms, but cross-entropy,
# where it is computed, is the same term for all methods, because it is recorded without its weight.
CURVES = {"top1": "test top-1 accuracy (%)", "loss": "training loss", "ce": "cross-entropy in training"}

# What each can be at least and at most.
PERCENT, POSITIVE, COSINE = (0.0, 100.0), (0.0, math.inf), (-1.0, 1.0)
LIMITS = {"top1": PERCENT}


def accuracy_values(runs: Sequence[Run], compared: Comparison) -> Values:
    """Collect the accuracy of every seed for each compared row; mark the paper's accuracy if it is close.

    Short runs stay far below the paper's accuracies. Showing the paper's accuracies too would make the differences
    between runs too small to see.
    """
    top1_of = {run.name: run.result.last_top1 for run in runs if run.result is not None}
    of_seeds = {row.name: [top1_of[name] for name in row.runs] for row in compared.rows}
    every = [top1 for values in of_seeds.values() for top1 in values]
    low, high = min(every), max(every)
    near = max(high - low, 1.0)  # percentage points
    published = {
        row.name: row.published
        for row in compared.rows
        if row.published is not None and low - near <= row.published <= high + near
    }
    return Values(of_seeds, label_of(compared.top1), published, "published" if published else "", PERCENT)


def views_panels(rows: Sequence[ViewsRow], label: str = CURVES["top1"]) -> list[Panel]:
    """Build the panel that shows accuracy, or the quantity that `label` names, against the number of views."""
    lines = {}
    for kind in dict.fromkeys(row.runs for row in rows):
        points = [row for row in rows if row.runs == kind]
        spreads = [Spread(row.seeds, row.top1, row.deviation, row.half_interval) for row in points]
        lines[kind] = Line([row.views for row in points], [row.top1 for row in points], [one.reach for one in spreads])
    return [Panel(lines, "cached views", label, log_x=True, limits=PERCENT)]


def curves_of(trained: Sequence[Run]) -> tuple[list[EpochRow], list[Panel]]:
    """Compute accuracy and losses over seeds, by kind of run and epoch; also return a panel for each recorded curve."""
    rows = []
    lines: dict[str, dict[str, Line]] = {curve: {} for curve in CURVES}
    for kind, runs in kinds_of(trained, axes_of(trained)).items():
        spreads = _spreads_by_epoch(runs)
        for epoch, of_epoch in spreads.items():
            seeds = sum(len(run.metrics) >= epoch for run in runs)
            figures = [figure for curve in CURVES for figure in _mean_and_deviation(of_epoch.get(curve))]
            rows.append(EpochRow(kind, epoch, seeds, *figures))
        for curve in CURVES:
            points = {epoch: of_epoch[curve] for epoch, of_epoch in spreads.items() if curve in of_epoch}
            if points:
                lines[curve][kind] = line_of(points)
    panels = [
        Panel(lines[curve], "epoch", label, log_y=curve == "loss", limits=LIMITS.get(curve, POSITIVE))
        for curve, label in (CURVES | top1_label(trained)).items()
        if lines[curve]
    ]
    return rows, panels


def run_panels(run: Run) -> list[Panel]:
    """Build panels of one run's accuracy and loss over epochs; a metric that an epoch lacks gets no panel."""
    epochs, top1 = list(range(1, len(run.metrics) + 1)), label_of(common_top1_name([run.settings]))
    names = {"top1": top1, "loss": "training loss"}
    if any("ema_top1" in epoch.values for epoch in run.metrics):
        names["ema_top1"] = f"{top1}, average of weights"
    return [
        Panel({label: Line(epochs, [epoch.values[name] for epoch in run.metrics])}, "epoch", label)
        for name, label in names.items()
        if all(name in epoch.values for epoch in run.metrics)
    ]


def conflict_panels(rows: Sequence[ConflictRow]) -> list[Panel]:
    """Build a panel of the cosine between the two losses' forces for the classifier, and one for the features.

    A line shows, over training, the mean over the seeds of one kind of run.
    """
    panels = []
    for on in ("classifier", "features"):
        lines: dict[str, Line] = {}
        for kind in dict.fromkeys(row.runs for row in rows):
            # A cosine is NaN if one of the two losses acts on no row.
            points = [row for row in rows if (row.runs, row.on) == (kind, on) and not math.isnan(row.cosine)]
            spreads = {
                epochs: spread([row.cosine for row in points if row.epochs == epochs])
                for epochs in dict.fromkeys(row.epochs for row in points)
            }
            if spreads:
                lines[kind] = line_of(spreads)
        panels += [Panel(lines, "epochs", f"mean cosine on {on}", limits=COSINE)] if lines else []
    return panels


def etf_panels(rows: Sequence[EtfRow]) -> list[Values]:
    """Build a panel for each measure of neural collapse, with the teacher in the last row."""
    kinds = sorted(dict.fromkeys(row.runs for row in rows), key=TEACHER.__eq__)
    return [
        Values(
            {kind: [getattr(row, measure.name) for row in rows if row.runs == kind] for kind in kinds},
            measure.name.replace("_", " "),
            limits=POSITIVE,
        )
        for measure in fields(NeuralCollapse)
    ]


def top1_label(runs: Sequence[Run]) -> dict[str, str]:
    """Return {"top1": label} for the curve of top-1 figures; empty if they are accuracy on the test split."""
    name = common_top1_name([run.settings for run in runs])
    return {} if name == "top-1" else {"top1": label_of(name)}


def _spreads_by_epoch(runs: Sequence[Run]) -> dict[int, dict[str, Spread]]:
    """Compute, for each epoch from 1 on, the spread over seeds of each of `CURVES` that the runs' metrics hold."""
    spreads: dict[int, dict[str, Spread]] = {}
    for epoch in range(1, max(len(run.metrics) for run in runs) + 1):
        metrics = [run.metrics[epoch - 1].values for run in runs if len(run.metrics) >= epoch]
        values = {curve: [line[curve] for line in metrics if curve in line] for curve in CURVES}
        spreads[epoch] = {curve: spread(of_seeds) for curve, of_seeds in values.items() if of_seeds}
    return spreads


def _mean_and_deviation(over_seeds: Spread | None) -> tuple[float | None, float | None]:
    return (None, None) if over_seeds is None else (over_seeds.mean, over_seeds.deviation)
