"""The charts of the page, each with figures, an explanation, and a description for screen readers.

Some charts are made from the runs themselves, the others from the files that analyses saved. `order` is the order of
names in the comparison; it decides which colour a kind of run has, so that the colour is the same in every chart.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from dhkd.data.runs.measured import caption_of, common_top1_name
from dhkd.data.runs.read import Run
from dhkd.pipeline.report.arrays import CORRELATION, TSNE, read_correlation, read_tsne
from dhkd.pipeline.report.comparison import Comparison
from dhkd.pipeline.report.panels import accuracy_values, conflict_panels, curves_of, etf_panels, views_panels
from dhkd.pipeline.report.rows import ConflictRow, EtfRow, ViewsRow, read_rows
from dhkd.stages.report.charts import legend_of, line_charts, matrix_charts, point_charts, value_charts
from dhkd.stages.report.figures import Panel
from dhkd.stages.report.page import Chart
from dhkd.stages.report.text import bytes_text, duration_text, spread_text

# What a band or a bar is, for the charts' explanations.
BARS = (
    "with their 95 % intervals, or with the range of both seeds where there are two (an interval of two values would be"
    " 12.7 times as wide)"
)


def accuracy_charts(runs: Sequence[Run], compared: Comparison) -> list[Chart]:
    """Draw the compared accuracies; there is no chart before a run is finished."""
    if not compared.rows:
        return []
    values = accuracy_values(runs, compared)
    says = f"After the last epoch: the mean over seeds, {BARS}. Each open circle is a seed."
    says += " A cross is the paper's accuracy, with its own schedule and data." if values.marks else ""
    spoken = "; ".join(f"{row.name}: {spread_text(row.last_top1)}" for row in compared.rows)
    return [Chart("Accuracy", says, spoken, value_charts([values]))]


def curve_charts(runs: Sequence[Run], order: Sequence[str]) -> list[Chart]:
    """Draw accuracy and losses over training; there is no chart before an epoch has ended."""
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if not trained:
        return []
    rows, panels = curves_of(trained)
    says = (
        f"After every epoch: means over seeds, {BARS}. Each method's loss is a sum of its own terms, so only"
        " the shape of these curves can be compared between methods. Cross-entropy is the same term for all of them."
    )
    last, settings = {row.runs: row.top1 for row in rows}, [run.settings for run in trained]
    spoken = "; ".join(f"{name} ends at {top1:.1f} %" for name, top1 in last.items())
    return [_line_chart("Over training", says, f"{caption_of(common_top1_name(settings))}: {spoken}", panels, order)]


def analysis_charts(folder: Path, order: Sequence[str]) -> tuple[list[Chart], list[str]]:
    """Draw the charts of the analyses in `folder`; also return a warning for each file that cannot be used."""
    charts_of: Mapping[str, Callable[[Path, Sequence[str]], list[Chart]]] = {
        "views.csv": _views,
        "conflict.csv": _conflict,
        CORRELATION: _correlation,
        TSNE: _tsne,
        "etf.csv": _etf,
    }
    charts, warnings = [], []
    for name, make in charts_of.items():
        path = folder / name
        try:
            charts += make(path, order)
        # The file may have been edited, and then csv, numpy and the code of the figures can raise anything.
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            remedy = f"make it again with 'dhkd report {path.stem}'"
            warnings.append(f"{folder.name}/{name}: expected an analysis's figures, found others ({what}); {remedy}")
    return charts, warnings


def _views(path: Path, order: Sequence[str]) -> list[Chart]:
    rows = read_rows(path, ViewsRow)
    if not rows:
        return []
    costs = "; ".join(
        f"{row.views}: {bytes_text(row.cache_bytes or 0)}"
        + (f" and {duration_text(row.teacher_hours)} of the teacher" if row.teacher_hours else "")
        for row in {row.views: row for row in rows}.values()
    )
    says = (
        f"Test accuracy against the number of cached views, means over seeds, {BARS}. The cost of each number of views:"
        f" {costs}."
    )
    spoken = "; ".join(f"{row.runs}, {row.views} views: {row.top1:.1f} %" for row in rows)
    return [_line_chart("How many views are enough", says, spoken, views_panels(rows), order)]


def _conflict(path: Path, order: Sequence[str]) -> list[Chart]:
    panels = conflict_panels(read_rows(path, ConflictRow))
    if not panels:
        return []
    says = (
        "The cosine between the gradients of cross-entropy and BinaryKL, on the classifier's rows and on the features"
        " that it is given: means over seeds. Below 0, the losses pull in opposite directions. A student with a head"
        " for each loss is in the second panel only, because its classifier serves one loss."
    )
    spoken = "; ".join(
        f"{panel.ylabel} of {name}, from {line.y[0]:.2f} to {line.y[-1]:.2f}"
        for panel in panels
        for name, line in panel.lines.items()
    )
    return [_line_chart("Where the losses conflict", says, spoken, panels, order)]


def _correlation(path: Path, order: Sequence[str]) -> list[Chart]:
    differences = read_correlation(path, order)
    if not differences.by_name:
        return []
    says = (
        "How the logits of every two classes correlate: the teacher's correlation less the student's, for the first"
        " seed. The paler, the more alike."
    )
    spoken = "; ".join(
        f"{name}: mean absolute difference {np.abs(matrix).mean():.3f}" for name, matrix in differences.by_name.items()
    )
    return [Chart("Correlation of logits", says, spoken, matrix_charts(differences), small=True)]


def _tsne(path: Path, order: Sequence[str]) -> list[Chart]:
    points = read_tsne(path, order)
    if not points.by_name:
        return []
    says = (
        "t-SNE of the penultimate features of test images, for the first seed, coloured by class. Distances between"
        " groups mean little."
    )
    spoken = f"Scattered points of {', '.join(points.by_name)}"
    return [Chart("Features in the plane", says, spoken, point_charts(points), small=True)]


def _etf(path: Path, order: Sequence[str]) -> list[Chart]:
    rows = read_rows(path, EtfRow)
    if not rows:
        return []
    panels = etf_panels(rows)
    says = (
        "How far test features and classifier are from a simplex equiangular tight frame, where every measure is 0:"
        f" means over seeds, {BARS}."
    )
    spoken = "; ".join(
        f"{panel.label}: " + ", ".join(f"{name} {np.mean(values):.2f}" for name, values in panel.of_seeds.items())
        for panel in panels
    )
    return [Chart("Neural collapse", says, spoken, value_charts(panels, order))]


def _line_chart(title: str, says: str, spoken: str, panels: Sequence[Panel], order: Sequence[str]) -> Chart:
    return Chart(title, says, spoken, line_charts(panels, order), legend_of(panels, order))
