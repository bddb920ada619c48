"""The analyses of runs, each a table (CSV) or arrays (npz) and a picture.

How many views are enough, whether heads collapse, where losses conflict, what networks' outputs and features look like.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.disk.csv_table import write_csv
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.folder import kept_weights
from dhkd.data.runs.read import Run
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.report.comparison import groups_of
from dhkd.pipeline.report.networks import forces_over_training, outputs_of_runs
from dhkd.pipeline.report.table import axes_of
from dhkd.stages.report.geometry import embedded, logit_correlation, neural_collapse
from dhkd.stages.report.pictures import Line, Panel, Values, draw_lines, draw_matrices, draw_points, draw_values
from dhkd.stages.report.statistics import Spread, spread

TSNE_SEED = 0
TEACHER = "teacher"


def report_comparison(runs: Sequence[Run], compared: Mapping[str, Any], out: Path) -> list[str]:
    """Write what `compare` found of these runs as a table and a picture; the files."""
    axes = compared["axes"]
    figures = ("mean", "deviation", "half")
    header = [*axes, "seeds", *(f"{name}_{figure}" for name in ("last_top1", "best_top1") for figure in figures)]
    header += ["baseline", "difference", "difference_half", "verdict", "published", "seconds"]
    rows = []
    for row in compared["rows"]:
        differs = row["difference"] or {}
        rows.append(
            [
                *(row["values"][axis] for axis in axes),
                len(row["seeds"]),
                *(row[name][figure] for name in ("last_top1", "best_top1") for figure in figures),
                compared["baseline"],
                *(differs.get(name) for name in ("mean", "half", "verdict")),
                row["published"],
                row["seconds"],
            ]
        )
    write_csv(table := out / "comparison.csv", header, rows)
    return [str(table), *draw_values([accuracy_values(runs, compared)], "After the last epoch", out / "comparison")]


def accuracy_values(runs: Sequence[Run], compared: Mapping[str, Any]) -> Values:
    """Test accuracy of every seed by what was compared, with the paper's figures where short runs come near them."""
    of_run = {run.name: float(run.result["last_top1"]) for run in runs if run.result is not None}
    of_seeds = {row["name"]: [of_run[name] for name in row["runs"]] for row in compared["rows"]}
    every = [top1 for values in of_seeds.values() for top1 in values]
    low, high = min(every), max(every)
    near = max(high - low, 1.0)  # points; a figure far away would leave no room for the differences
    published = {
        row["name"]: row["published"]
        for row in compared["rows"]
        if row["published"] is not None and low - near <= row["published"] <= high + near
    }
    return Values(of_seeds, "test top-1 (%)", published, "published" if published else "")


def report_views(runs: Sequence[Run], out: Path, *, teacher_rate: float | None = None) -> dict[str, Any]:
    """Accuracy against how many views students trained on, with what the cache costs.

    In bytes, in forwards of the teacher and, where its `teacher_rate` in rows/s is given, in hours.
    """
    finished = [run for run in runs if run.state == "finished" and run.settings.get("run.views")]
    if len({run.settings["run.views"] for run in finished}) < 2:
        raise RunMismatch(
            "report views: expected finished runs that differ in how many views they saw; make them with"
            " 'dhkd sweep … --grid student.views=1,3,10'"
        )
    axes = {short: key for short, key in axes_of(finished).items() if key not in ("run.views", "run.cache")}
    rows = []
    for name, group in groups_of(finished, axes).items():
        for of in groups_of(group, {"views": "run.views"}).values():
            number, cache = int(of[0].settings["run.views"]), of[0].result["cache"] if of[0].result else None
            found = spread([float(run.result["last_top1"]) for run in of if run.result])
            forwards = number * cache["samples"] if cache else None
            hours = forwards / teacher_rate / 3600 if forwards and teacher_rate else None
            bytes_ = forwards * cache["row_bytes"] if forwards and cache and cache.get("row_bytes") else None
            rows.append([name, number, found.count, found.mean, found.deviation, found.half, forwards, hours, bytes_])
    header = ["runs", "views", "seeds", "top1", "deviation", "half_interval"]
    header += ["teacher_forwards", "teacher_hours", "cache_bytes"]
    write_csv(table := out / "views.csv", header, rows)
    picture = draw_lines(views_panels(_as_dicts(header, rows)), "How many views", out / "views")
    return {"rows": _as_dicts(header, rows), "files": [str(table), *picture]}


def views_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Accuracy against views; of rows of views.csv."""
    lines = {}
    for name in dict.fromkeys(row["runs"] for row in rows):
        mine = [row for row in rows if row["runs"] == name]
        halves = [None if row["half_interval"] in ("", None) else float(row["half_interval"]) for row in mine]
        lines[name] = Line([int(row["views"]) for row in mine], [float(row["top1"]) for row in mine], halves)
    return [Panel(lines, "cached views", "test top-1 accuracy (%)", log_x=True)]


def report_collapse(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    """Accuracy and training losses over epochs of every kind of run, means over seeds."""
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if not trained:
        raise RunMismatch("report collapse: expected runs with at least one finished epoch, found none")
    rows, panels = curves_of(trained)
    header = ["runs", "epoch", "seeds", *(column for name in CURVES for column in (name, f"{name}_deviation"))]
    write_csv(table := out / "collapse.csv", header, rows)
    files = [str(table), *draw_lines(panels, "Accuracy and loss over training", out / "collapse")]
    last = [row for row, following in zip(rows, [*rows[1:], None], strict=True) if not following or following[1] == 1]
    return {"rows": _as_dicts(header, last), "files": files}


# What metrics.jsonl holds of every run. Losses of different methods are sums of different terms, cross-entropy alone
# is the same one everywhere that it is computed, whatever its weight.
CURVES = {"top1": "test top-1 accuracy (%)", "loss": "training loss", "ce": "cross-entropy in training"}


def curves_of(trained: Sequence[Run]) -> tuple[list[list[Any]], list[Panel]]:
    """Rows (name, epoch, seeds, then mean and deviation of each of `CURVES`), and a panel of each; over seeds."""
    rows = []
    lines: dict[str, dict[str, Line]] = {curve: {} for curve in CURVES}
    for name, group in groups_of(trained, axes_of(trained)).items():
        points: dict[str, dict[int, Spread]] = {curve: {} for curve in CURVES}
        for epoch in range(1, max(len(run.metrics) for run in group) + 1):
            there = [run.metrics[epoch - 1] for run in group if len(run.metrics) >= epoch]
            row: list[Any] = [name, epoch, len(there)]
            for curve in CURVES:
                values = [line[curve] for line in there if curve in line]
                if values:
                    points[curve][epoch] = spread(values)
                row += [points[curve][epoch].mean, points[curve][epoch].deviation] if values else [None, None]
            rows.append(row)
        for curve, found in points.items():
            if found:
                lines[curve][name] = _line(found)
    panels = [
        Panel(lines[curve], "epoch", label, log_y=curve == "loss") for curve, label in CURVES.items() if lines[curve]
    ]
    return rows, panels


def report_conflict(
    runs: Sequence[Run], cache: str, out: Path, *, samples: int, temperature: float, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """Where cross-entropy and BinaryKL pull classifier and features, over training, of runs that kept their weights.

    Of the first `samples` training samples in view 0, in evaluation mode.
    """
    kept = [run for run in runs if run.state == "finished" and kept_weights(run.path)]
    if not kept:
        raise RunMismatch(
            "report conflict: expected finished runs that kept weights over training; make them with"
            " 'dhkd sweep … --set student.keep_every=10'"
        )
    group_of = _group_of(kept)
    rows = [
        {"runs": group_of[run.name], "seed": run.seed, "epochs": epochs, **row}
        for run, epochs, row in forces_over_training(kept, cache, samples, temperature, data, cpu)
    ]
    write_csv(table := out / "conflict.csv", list(rows[0]), [list(row.values()) for row in rows])
    picture = draw_lines(conflict_panels(rows), "Cross-entropy's gradient and BinaryKL's", out / "conflict")
    return {"rows": rows, "files": [str(table), *picture]}


def conflict_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Cosines over training, means over seeds, on classifier and features; `rows` are those of conflict.csv."""
    panels = []
    for on in ("classifier", "features"):
        lines: dict[str, Line] = {}
        for name in dict.fromkeys(row["runs"] for row in rows):
            mine = [row for row in rows if (row["runs"], row["on"]) == (name, on)]
            # A cosine is not a number where one of the two losses acts on no row.
            cosines = [(int(row["epochs"]), value) for row in mine if not math.isnan(value := float(row["cosine"]))]
            found = {epochs: spread([value for at, value in cosines if at == epochs]) for epochs, _ in cosines}
            if found:
                lines[name] = _line(found)
        panels += [Panel(lines, "epochs", f"mean cosine on {on}")] if lines else []
    return panels


def report_correlation(
    runs: Sequence[Run], teacher: Path, out: Path, *, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """The teacher's correlation of logits less that of students, on the test set.

    The table is of all runs, arrays and picture of the first seed of each kind.
    """
    finished = _finished(runs)
    group_of, rows = _group_of(finished), []
    of_teacher, shown = np.zeros((0, 0)), dict[str, np.ndarray[Any, np.dtype[np.float64]]]()
    for run, outputs in outputs_of_runs(finished, teacher, None, data, cpu):
        correlation = logit_correlation(outputs.logits_NK)
        if run is None:
            of_teacher = correlation
            continue
        difference, name = of_teacher - correlation, group_of[run.name]
        rows.append([name, run.seed, float(np.abs(difference).mean())])
        shown.setdefault(name, difference)
    arrays = _write_npz(out / "correlation.npz", {TEACHER: of_teacher, **shown})
    header = ["runs", "seed", "mean_absolute_difference"]
    write_csv(table := out / "correlation.csv", header, rows)
    picture = draw_matrices(shown, "Teacher's correlation of logits less the student's", out / "correlation")
    return {"rows": _as_dicts(header, rows), "files": [str(table), arrays, *picture]}


def report_tsne(
    runs: Sequence[Run], teacher: Path, out: Path, *, samples: int, data: DataOptions, cpu: bool
) -> dict[str, Any]:
    """t-SNE of penultimate features of the first `samples` test images, one fixed seed.

    Of the teacher, and of the first seed of each kind of student.
    """
    finished = _finished(runs)
    group_of = _group_of(finished)
    first = {group_of[run.name]: run for run in reversed(finished)}
    points, labels_N = {}, np.zeros(0, dtype=np.int64)
    for run, outputs in outputs_of_runs(
        [run for run in finished if run in first.values()], teacher, samples, data, cpu
    ):
        points[TEACHER if run is None else group_of[run.name]] = embedded(outputs.features_ND, TSNE_SEED)
        labels_N = outputs.labels_N
    arrays = _write_npz(out / "tsne.npz", {**points, "labels": labels_N})
    picture = draw_points(points, labels_N, "t-SNE of penultimate features", out / "tsne")
    header = ["runs", "points"]
    return {"rows": _as_dicts(header, [[name, len(of)] for name, of in points.items()]), "files": [arrays, *picture]}


def report_etf(runs: Sequence[Run], teacher: Path | None, out: Path, *, data: DataOptions, cpu: bool) -> dict[str, Any]:
    """How far features and classifiers are from a simplex equiangular tight frame, on the test set."""
    finished = _finished(runs)
    group_of, rows, header = _group_of(finished), [], []
    for run, outputs in outputs_of_runs(finished, teacher, None, data, cpu):
        measures = neural_collapse(outputs.features_ND, outputs.labels_N, outputs.classifier_KD)
        header = ["runs", "seed", *measures]
        rows.append([*((TEACHER, None) if run is None else (group_of[run.name], run.seed)), *measures.values()])
    write_csv(table := out / "etf.csv", header, rows)
    picture = draw_values(etf_panels(_as_dicts(header, rows)), "Distance from a simplex ETF", out / "etf")
    return {"rows": _as_dicts(header, rows), "files": [str(table), *picture]}


def etf_panels(rows: Sequence[Mapping[str, Any]]) -> list[Values]:
    """A panel of each measure of neural collapse; of rows of etf.csv."""
    names = sorted(dict.fromkeys(row["runs"] for row in rows), key=TEACHER.__eq__)  # the teacher's last
    return [
        Values(
            {name: [float(row[measure]) for row in rows if row["runs"] == name] for name in names},
            measure.replace("_", " "),
        )
        for measure in rows[0]
        if measure not in ("runs", "seed")
    ]


def _finished(runs: Sequence[Run]) -> list[Run]:
    """The finished runs, sorted as they are compared."""
    finished = [run for run in runs if run.state == "finished"]
    if not finished:
        raise RunMismatch("expected finished runs, found none")
    return [run for group in groups_of(finished, axes_of(finished)).values() for run in group]


def _group_of(runs: Sequence[Run]) -> dict[str, str]:
    """By run, the name of what it is, but for its seed."""
    return {run.name: name for name, group in groups_of(runs, axes_of(runs)).items() for run in group}


def _line(found: Mapping[int, Spread]) -> Line:
    return Line(list(found), [each.mean for each in found.values()], [each.half for each in found.values()])


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> str:
    write_atomically(path, lambda stream: np.savez_compressed(stream, **arrays))
    return str(path)


def _as_dicts(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(header, row, strict=True)) for row in rows]
