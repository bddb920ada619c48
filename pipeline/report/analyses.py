"""The analyses of runs. Each analysis writes a table (CSV) or arrays (npz), and a picture.

The analyses answer how many views are enough, whether heads collapse, where losses conflict, and how the outputs and
features of networks compare. A view is one augmentation draw of the whole data set. A kind of run is all runs that
differ only in their seed. The functions that compare networks import torch when they are called, so that a comparison
of runs needn't wait for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from dhkd.data.disk.csv_table import write_csv
from dhkd.data.errors import RunMismatch
from dhkd.data.extras import require
from dhkd.data.runs.names import EPOCHS_KEY, LIVE_KEY, VIEWS_KEY
from dhkd.data.runs.read import Run, finished_of, kept_weights, why_unusable
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.arrays import CORRELATION, LABELS, TSNE, write_arrays
from dhkd.pipeline.report.comparison import OF_CACHE, Comparison, compared_axes, kind_by_run, kinds_of
from dhkd.pipeline.report.panels import (
    TEACHER,
    accuracy_values,
    conflict_panels,
    curves_of,
    etf_panels,
    top1_label,
    views_panels,
)
from dhkd.pipeline.report.rows import (
    Analysis,
    ConflictRow,
    CorrelationRow,
    EpochRow,
    EtfRow,
    PointsRow,
    ViewsRow,
    write_rows,
)
from dhkd.pipeline.report.table import axes_of
from dhkd.stages.report.figures import Float, Matrices, Points
from dhkd.stages.report.geometry import embedded, logit_correlation, neural_collapse
from dhkd.stages.report.pictures import draw_lines, draw_matrices, draw_points, draw_values
from dhkd.stages.report.statistics import spread

LIVE_SETTING = "experiment.teacher.live"
TSNE_SEED = 0
MOST_ROWS = 50  # of a picture, which is then as high as a page; the table and the results page have all


def report_comparison(runs: Sequence[Run], compared: Comparison, out: Path) -> list[str]:
    """Write the comparison of these runs as a table and a picture; return the file names."""
    figures = ("mean", "deviation", "half")
    names = ("last_top1", "best_top1", *(["last_ema_top1"] if compared.has_average else []))
    header = [*compared.axes, "seeds", *(f"{name}_{figure}" for name in names for figure in figures)]
    header += ["baseline", "difference", "difference_half", "verdict", "published", "seconds"]
    lines = []
    for row in compared.rows:
        difference = row.difference
        lines.append(
            [
                *(row.values[axis] for axis in compared.axes),
                len(row.seeds),
                *(getattr(getattr(row, name), figure, None) for name in names for figure in figures),
                compared.baseline,
                *([difference.mean, difference.half, difference.verdict] if difference else [None] * 3),
                row.published,
                row.seconds,
            ]
        )
    write_csv(table := out / "comparison.csv", header, lines)
    title, drawn = "After the last epoch", compared
    if len(compared.rows) > MOST_ROWS:
        best = sorted(compared.rows, key=lambda row: row.last_top1.mean, reverse=True)[:MOST_ROWS]
        drawn = replace(compared, rows=[row for row in compared.rows if row in best])
        title += f": the {MOST_ROWS} best of {len(compared.rows)}"
    return [str(table), *draw_values([accuracy_values(runs, drawn)], title, out / "comparison")]


def report_views(runs: Sequence[Run], out: Path, *, teacher_rate: float | None = None) -> Analysis:
    """Report accuracy against the number of views that students were trained on, and the cost of caching these views.

    The cost is in bytes and in teacher forward passes (one per sample and view). If `teacher_rate`, the teacher's speed
    in rows/s, is given, the cost is also in hours. A run with a live teacher saw a new view in every epoch; it shows
    what more views could bring, and has no cost of a cache.
    """
    finished = [run for run in finished_of(runs) if _views_seen(run)]
    if len({_views_seen(run) for run in finished}) < 2:
        raise RunMismatch(
            f"report views: expected finished runs that differ in how many views they saw, found"
            f" {_found(runs, finished)}; make them with 'dhkd sweep … --grid student.views=1,3,10'"
        )
    axes = {short: key for short, key in compared_axes(finished).items() if key not in (VIEWS_KEY, LIVE_SETTING)}
    rows = [
        _views_row(name, of_views, teacher_rate)
        for name, kind in kinds_of([run for run in finished if run.settings.get(VIEWS_KEY)], axes).items()
        for of_views in kinds_of(kind, {"views": VIEWS_KEY}).values()
    ]
    axes = {short: key for short, key in axes.items() if key not in OF_CACHE}
    for kind, of_kind in kinds_of([run for run in finished if not run.settings.get(VIEWS_KEY)], axes).items():
        name = "live teacher" if kind == "all" else f"{kind}, live teacher"
        rows += [_views_row(name, of_views, teacher_rate) for of_views in _by_epochs(of_kind)]
    write_rows(table := out / "views.csv", ViewsRow, rows)
    panels = views_panels(rows, *top1_label(finished).values())
    return Analysis(rows, [str(table), *draw_lines(panels, "How many views", out / "views")])


def _views_seen(run: Run) -> int | None:
    """Return how many views of a sample the run was trained on; None if it had no teacher."""
    views = run.settings.get(VIEWS_KEY) or (run.settings.get(f"{LIVE_KEY}.sha256") and run.settings.get(EPOCHS_KEY))
    return None if views is None else int(views)


def _by_epochs(runs: Sequence[Run]) -> Iterable[list[Run]]:
    return kinds_of(runs, {"epochs": EPOCHS_KEY}).values()


def _views_row(name: str, runs: Sequence[Run], teacher_rate: float | None) -> ViewsRow:
    # If two runs have the same seed, the last run counts, as in a comparison.
    top1 = spread(list({run.seed: run.finished_result.last_top1 for run in runs}.values()))
    views, cache = _views_seen(runs[0]) or 0, runs[0].finished_result.cache
    forwards = views * cache.samples if cache else None
    return ViewsRow(
        name,
        views,
        top1.count,
        top1.mean,
        top1.deviation,
        top1.half,
        teacher_forwards=forwards,
        teacher_hours=forwards / teacher_rate / 3600 if forwards and teacher_rate else None,
        cache_bytes=forwards * cache.row_bytes if forwards and cache and cache.row_bytes else None,
    )


def report_collapse(runs: Sequence[Run], out: Path) -> Analysis:
    """Report accuracy and training losses over epochs for each kind of run, as means over seeds.

    The file holds every epoch; the returned analysis holds only the last epoch of each kind.
    """
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if not trained:
        raise RunMismatch(
            f"report collapse: expected runs with at least one finished epoch, found {why_unusable(runs)}"
        )
    rows, panels = curves_of(trained)
    write_rows(table := out / "collapse.csv", EpochRow, rows)
    files = [str(table), *draw_lines(panels, "Accuracy and loss over training", out / "collapse")]
    return Analysis(list({row.runs: row for row in rows}.values()), files)


def report_conflict(
    runs: Sequence[Run], cache: str, out: Path, *, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> Analysis:
    """Report how cross-entropy and BinaryKL act on classifier and features, for runs that kept weights over training.

    The forces, i.e. negative gradients, are computed for the first `samples` training samples in view 0, in evaluation
    mode. The teacher's logits are read from `cache`.
    """
    kept = [run for run in finished_of(runs) if kept_weights(run.path)]
    if not kept:
        raise RunMismatch(
            f"report conflict: expected finished runs that kept weights over training, found"
            f" {_found(runs, finished_of(runs))}; make them with 'dhkd sweep … --set student.keep_every=10'"
        )
    from dhkd.pipeline.report.networks import forces_over_training

    rows = list(forces_over_training(kept, kind_by_run(kept), cache, samples, temperature, data, cpu))
    write_rows(table := out / "conflict.csv", ConflictRow, rows)
    picture = draw_lines(conflict_panels(rows), "Cross-entropy's gradient and BinaryKL's", out / "conflict")
    return Analysis(rows, [str(table), *picture])


def report_correlation(runs: Sequence[Run], teacher: Path, out: Path, *, data: DataOptions, cpu: bool) -> Analysis:
    """Report how far each student's logit correlation is from the teacher's, on the test set.

    A logit correlation (K, K) holds the correlation between the logits of every two of the K classes. The table holds
    all runs; the arrays and the picture show teacher minus student for the first seed of each kind.
    """
    from dhkd.pipeline.report.networks import outputs_of_runs

    finished = _finished(runs)
    kind_of = kind_by_run(finished)
    of_teacher: Float = np.zeros((0, 0))
    rows, shown = [], dict[str, Float]()
    for run, outputs in outputs_of_runs(finished, teacher, None, data, cpu):
        correlation = logit_correlation(outputs.logits_NK)
        if run is None:
            of_teacher = correlation
            continue
        difference = of_teacher - correlation
        rows.append(CorrelationRow(kind_of[run.name], run.seed, float(np.abs(difference).mean())))
        shown.setdefault(kind_of[run.name], difference)
    arrays = write_arrays(out / CORRELATION, {TEACHER: of_teacher, **shown})
    write_rows(table := out / "correlation.csv", CorrelationRow, rows)
    title = "Teacher's correlation of logits less the student's"
    return Analysis(rows, [str(table), arrays, *draw_matrices(Matrices(shown), title, out / "correlation")])


def report_tsne(
    runs: Sequence[Run], teacher: Path, out: Path, *, samples: int, data: DataOptions, cpu: bool
) -> Analysis:
    """Embed the penultimate features of the first `samples` test images in the plane by t-SNE, with a fixed seed.

    This is done for the teacher and for the first seed of each kind of student.
    """
    from dhkd.pipeline.report.networks import outputs_of_runs

    require("sklearn", "report tsne")
    finished = _finished(runs)
    kind_of = kind_by_run(finished)
    first = {kind_of[run.name]: run for run in reversed(finished)}
    shown = [run for run in finished if run in first.values()]
    by_name, labels_N = dict[str, Float](), np.zeros(0, dtype=np.int64)
    for run, outputs in outputs_of_runs(shown, teacher, samples, data, cpu):
        by_name[TEACHER if run is None else kind_of[run.name]] = embedded(outputs.features_ND, TSNE_SEED)
        labels_N = outputs.labels_N
    arrays = write_arrays(out / TSNE, {**by_name, LABELS: labels_N})
    picture = draw_points(Points(by_name, labels_N), "t-SNE of penultimate features", out / "tsne")
    rows = [PointsRow(name, len(points_N2)) for name, points_N2 in by_name.items()]
    return Analysis(rows, [arrays, *picture])


def report_etf(runs: Sequence[Run], teacher: Path | None, out: Path, *, data: DataOptions, cpu: bool) -> Analysis:
    """Measure how far features and classifiers are from a simplex equiangular tight frame, on the test set.

    If `teacher` is None, only the students are measured.
    """
    from dhkd.pipeline.report.networks import outputs_of_runs

    finished = _finished(runs)
    kind_of, rows = kind_by_run(finished), []
    for run, outputs in outputs_of_runs(finished, teacher, None, data, cpu):
        measures = neural_collapse(outputs.features_ND, outputs.labels_N, outputs.classifier_KD)
        kind, seed = (TEACHER, None) if run is None else (kind_of[run.name], run.seed)
        rows.append(EtfRow(kind, seed, *astuple(measures)))
    write_rows(table := out / "etf.csv", EtfRow, rows)
    return Analysis(rows, [str(table), *draw_values(etf_panels(rows), "Distance from a simplex ETF", out / "etf")])


def _finished(runs: Sequence[Run]) -> list[Run]:
    """Return the finished runs in the order of a comparison; raise `RunMismatch` if there are none."""
    finished = finished_of(runs)
    if not finished:
        raise RunMismatch(f"expected finished runs, found {why_unusable(runs)}")
    return [run for kind in kinds_of(finished, axes_of(finished)).values() for run in kind]


def _found(runs: Sequence[Run], usable: Sequence[Run]) -> str:
    """Describe runs of which none serves an analysis: the finished ones by number, if there are any, or why none is."""
    return f"{len(usable)} finished that do not" if usable else why_unusable(runs)
