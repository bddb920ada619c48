"""`dhkd report DIR --html` and `dhkd serve DIR`: from runs and the analyses beside them to the page of results."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.runs.read import FIGURES, Run, State
from dhkd.pipeline.report.analyses import TEACHER, accuracy_values, conflict_panels, curves_of, etf_panels, views_panels
from dhkd.pipeline.report.comparison import compare
from dhkd.pipeline.report.table import axes_of
from dhkd.pipeline.sweep import SWEEP
from dhkd.stages.report.charts import legend_of, line_charts, matrix_charts, point_charts, value_charts
from dhkd.stages.report.page import Cell, Chart, Page, RunPart, Table, html_of
from dhkd.stages.report.pictures import Line, Panel
from dhkd.stages.report.tables import difference_text, spread_text
from dhkd.stages.report.text import bytes_text, duration_text


def write_page(runs: Sequence[Run], folder: Path, path: Path, baseline: str | None) -> None:
    """Write the page of `folder`'s runs as one HTML file."""
    text = page_of(runs, folder, baseline)
    write_atomically(path, lambda stream: stream.write(text.encode()))


def page_of(runs: Sequence[Run], folder: Path, baseline: str | None = None, version: str | None = None) -> str:
    """The page's HTML; with a `version` it loads itself anew when that changes."""
    compared = compare(runs, baseline)
    planned = _sweep(folder)
    states = {state: sum(run.state == state for run in runs) for state in get_args(State)}
    waiting = len(set(planned["runs"]) - {run.name for run in runs})
    counts = [f"{count} {state}" for state, count in states.items() if count]
    counts += [f"{waiting} not begun"] if waiting else []
    order = [row["name"] for row in compared["rows"]]  # what has one colour in every chart
    analyses, unreadable = _analyses(folder / "report", order)
    page = Page(
        title=folder.resolve().name,
        summary=f"Students of a cached teacher: {', '.join(counts) or 'no run yet'}.{_left(runs, waiting)}",
        warnings=[*compared["warnings"], *unreadable],
        comparison=_comparison(compared),
        charts=[*_accuracy(runs, compared), *_curves(runs, order), *analyses],
        runs=_runs(runs),
        parts={run.name: _part(run) for run in runs},
        cost=_cost(compared["cost"], runs),
        provenance=_provenance(runs, planned),
        version=version,
    )
    return html_of(page)


def _left(runs: Sequence[Run], waiting: int) -> str:
    """How long the others will take, if they take as long as those that are finished, by who trains some now."""
    seconds = [float(run.result["seconds"]) for run in runs if run.state == "finished" and run.result is not None]
    begun = [run for run in runs if run.state == "unfinished"]
    if not (seconds and begun):
        return ""
    done = sum(len(run.metrics) / int(run.settings["experiment.student.epochs"]) for run in begun)
    minutes = fmean(seconds) * (len(begun) + waiting - done) / len(begun) / 60
    return f" About {minutes:,.1f} min of training left."


def _sweep(folder: Path) -> Mapping[str, Any]:
    try:
        planned: Mapping[str, Any] = json.loads((folder / SWEEP).read_bytes())
        return {"commands": list(planned["commands"]), "runs": list(planned["runs"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"commands": [], "runs": []}


def _comparison(compared: Mapping[str, Any]) -> Table:
    axes, baseline = compared["axes"], compared["baseline"]
    published = any(row["published"] is not None for row in compared["rows"])
    rows = []
    for row in compared["rows"]:
        last, best, differs = row["last_top1"], row["best_top1"], row["difference"]
        cells = [_value(row["values"][axis]) for axis in axes] or [Cell("all", "all")]
        cells.append(Cell(str(len(row["seeds"])), len(row["seeds"])))
        cells += [Cell(spread_text(found), found["mean"]) for found in (last, best)]
        cells += [Cell(difference_text(differs), "" if differs is None else differs["mean"])] if baseline else []
        cells += [_number(row["published"], 2)] if published else []
        rows.append([*cells, _number(row["seconds"], 1)])
    columns = [*(axes or ["runs"]), "seeds", "top-1 %", "best %", *([f"against {baseline}"] if baseline else [])]
    return Table(
        [*columns, *(["published %"] if published else []), "seconds"],
        rows,
        left=max(1, len(axes)),
        caption="Runs that differ in their seed alone are one row; test accuracy after the last epoch, and the best",
        note="Mean ± half of the 95 % interval over seeds (standard deviation). A difference is that of the same seeds;"
        " one whose interval holds 0 is within noise, and of twenty that are nothing but noise one is not.",
    )


def _runs(runs: Sequence[Run]) -> Table:
    axes = axes_of(runs)
    shown = ("last_top1", "best_top1", "last_top5", "epochs", "seconds")
    rows = []
    for run in runs:
        result = run.result if run.state == "finished" and run.result is not None else {}
        values = [_value(run.settings.get(key)) for key in axes.values()]
        digits = {"epochs": 0, "seconds": 1}
        rows.append(
            [
                Cell(run.name, run.name),
                *values,
                Cell(run.state, run.state),
                *(_number(result.get(name), digits.get(name, 2)) for name in shown),
            ]
        )
    columns = ["run", *axes, "state", "top-1 %", "best %", "top-5 %", "epochs", "seconds"]
    return Table(columns, rows, left=2 + len(axes))


def _part(run: Run) -> RunPart:
    columns = list(run.metrics[0]) if run.metrics else []
    epochs = [[f"{line.get(column, float('nan')):.4g}" for column in columns] for line in run.metrics]
    facts = [(name, str(run.result.get(name))) for name in (*FIGURES, "hardware", "sha256")] if run.result else []
    facts += [("failure", run.failure)] if run.failure else []
    facts += [("damage", run.damage)] if run.damage else []
    x = list(range(1, len(run.metrics) + 1))
    panels = [
        Panel({label: Line(x, [line[name] for line in run.metrics])}, "epoch", label)
        for name, label in (("top1", "test top-1 (%)"), ("loss", "training loss"))
        if all(name in line for line in run.metrics)
    ]
    settings = [(key, json.dumps(value)) for key, value in run.settings.items()]
    return RunPart(columns, epochs, [*facts, *settings], line_charts(panels))


def _accuracy(runs: Sequence[Run], compared: Mapping[str, Any]) -> list[Chart]:
    """Who is ahead, and by more than the noise?"""
    rows = compared["rows"]
    if not rows:
        return []
    values = accuracy_values(runs, compared)
    says = "After the last epoch, the mean over seeds with its 95 % interval; an open circle is a seed."
    says += " A cross is the paper's figure, of its own schedule and data." if values.marks else ""
    spoken = "; ".join(f"{row['name']}: {spread_text(row['last_top1'])}" for row in rows)
    return [Chart("Accuracy", says, spoken, value_charts([values]))]


def _analyses(found: Path, order: Sequence[str]) -> tuple[list[Chart], list[str]]:
    """What analyses have left in a folder, and a line for each file that is none of theirs."""
    shows: Mapping[str, Callable[[Any, Sequence[str]], list[Chart]]] = {
        "views.csv": _views,
        "conflict.csv": _conflict,
        "correlation.npz": _correlation,
        "tsne.npz": _tsne,
        "etf.csv": _etf,
    }
    charts, unreadable = [], []
    for name, show in shows.items():
        path = found / name
        try:
            charts += show(_table(path) if path.suffix == ".csv" else _arrays(path), order)
        # Whatever csv, numpy and the figures' own arithmetic make of bytes that someone else wrote.
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            remedy = f"make it again with 'dhkd report {path.stem}'"
            unreadable.append(
                f"{path.parent.name}/{name}: expected an analysis's figures, found others ({what}); {remedy}"
            )
    return charts, unreadable


def _curves(runs: Sequence[Run], order: Sequence[str]) -> list[Chart]:
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if not trained:
        return []
    rows, panels = curves_of(trained)
    says = (
        "After every epoch, means over seeds with 95 % intervals. Losses of different methods are sums of different"
        " terms, of which only the course can be compared; cross-entropy is the same one for all."
    )
    last = {row[0]: row[3] for row in rows}
    spoken = "; ".join(f"{name} ends at {top1:.1f} %" for name, top1 in last.items())
    figures, legend = line_charts(panels, order), legend_of(panels, order)
    return [Chart("Over training", says, f"Test accuracy: {spoken}", figures, legend)]


def _views(rows: Sequence[Mapping[str, str]], order: Sequence[str]) -> list[Chart]:
    if not rows:
        return []
    costs = "; ".join(
        f"{row['views']}: {bytes_text(float(row['cache_bytes'] or 0))}"
        + (f" and {duration_text(float(row['teacher_hours']))} of the teacher" if row["teacher_hours"] else "")
        for row in {row["views"]: row for row in rows}.values()
    )
    says = f"Test accuracy against the number of cached views, with 95 % intervals over seeds. What they cost: {costs}."
    spoken = "; ".join(f"{row['runs']}, {row['views']} views: {float(row['top1']):.1f} %" for row in rows)
    panels = views_panels(rows)
    return [Chart("How many views are enough", says, spoken, line_charts(panels, order), legend_of(panels, order))]


def _conflict(rows: Sequence[Mapping[str, str]], order: Sequence[str]) -> list[Chart]:
    panels = conflict_panels(rows) if rows else []
    says = (
        "The cosine between cross-entropy's gradient and BinaryKL's, on the classifier's rows and on the features"
        " before it, means over seeds; below 0 they pull apart. A student with a head for each loss has no row in"
        " common."
    )
    spoken = "; ".join(
        f"{panel.ylabel} of {name}, from {line.y[0]:.2f} to {line.y[-1]:.2f}"
        for panel in panels
        for name, line in panel.lines.items()
    )
    figures, legend = line_charts(panels, order), legend_of(panels, order)
    return [Chart("Where the losses conflict", says, spoken, figures, legend)] if panels else []


def _correlation(arrays: Mapping[str, Any], order: Sequence[str]) -> list[Chart]:
    differences = {
        name: arrays[name] for name in dict.fromkeys([*order, *arrays]) if name in arrays and name != TEACHER
    }
    says = (
        "The teacher's correlation of every two classes' logits less the student's, of the first seed: the paler, the"
        " more alike."
    )
    spoken = "; ".join(f"{name}: mean absolute difference {np.abs(of).mean():.3f}" for name, of in differences.items())
    charts = matrix_charts(differences) if differences else []
    return [Chart("Correlation of logits", says, spoken, charts, small=True)] if charts else []


def _tsne(arrays: Mapping[str, Any], order: Sequence[str]) -> list[Chart]:
    names = dict.fromkeys([TEACHER, *order, *arrays])
    points = {name: arrays[name] for name in names if name in arrays and name != "labels"}
    says = (
        "t-SNE of penultimate features of test images, of the first seed, coloured by class; distances between groups"
        " mean little."
    )
    spoken = f"Scattered points of {', '.join(points)}"
    charts = point_charts(points, arrays["labels"]) if points else []
    return [Chart("Features in the plane", says, spoken, charts, small=True)] if charts else []


def _etf(rows: Sequence[Mapping[str, str]], order: Sequence[str]) -> list[Chart]:
    panels = etf_panels(rows) if rows else []
    says = (
        "Distances of test features and classifier from a simplex equiangular tight frame, where each measure is 0;"
        " means over seeds with 95 % intervals."
    )
    spoken = "; ".join(
        f"{panel.label}: " + ", ".join(f"{name} {np.mean(values):.2f}" for name, values in panel.of_seeds.items())
        for panel in panels
    )
    return [Chart("Neural collapse", says, spoken, value_charts(panels, order))] if panels else []


def _cost(cost: Mapping[str, Any], runs: Sequence[Run]) -> list[tuple[str, str]]:
    caches = {
        run.result["cache"]["digest"]: run.result["cache"] for run in runs if run.result and run.result.get("cache")
    }
    stored = sum(cache["views"] * cache["samples"] * cache.get("row_bytes", 0) for cache in caches.values())
    cached, live = cost["teacher_forwards_cached"], cost["teacher_forwards_live"]
    return [
        ("Teacher's forwards into caches", f"{cached:,}"),
        ("which live teachers would have made", f"{live:,}"),
        ("Caches hold", f"{stored / 1e6:,.1f} MB" if stored else "unknown"),
        ("Students trained for", f"{cost['seconds']:,.0f} s"),
    ]


def _provenance(runs: Sequence[Run], planned: Mapping[str, Any]) -> list[tuple[str, str]]:
    results = [run.result for run in runs if run.state == "finished" and run.result is not None]
    facts: dict[str, list[str]] = {name: [] for name in ("Command", "Cache", "Teacher", "Hardware", "Versions")}
    facts["Command"] += planned["commands"]
    for result in results:
        cache = result.get("cache")
        if cache:
            facts["Cache"].append(f"{cache['digest']} ({cache['views']} views of {cache['samples']:,} samples)")
            facts["Teacher"].append(f"{cache['teacher']} ({cache['teacher_sha256']})")
        facts["Hardware"].append(str(result.get("hardware")))
        facts["Versions"].append(", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items()))
    return [(name, "; ".join(dict.fromkeys(values))) for name, values in facts.items() if values]


def _table(path: Path) -> list[dict[str, str]]:
    """An analysis's rows; none where it was not made."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def _value(value: Any) -> Cell:
    """A setting, which a run of another method may not have."""
    return Cell("–") if value is None else Cell(str(value), str(value))


def _number(value: float | None, digits: int) -> Cell:
    return Cell("") if value is None else Cell(f"{value:,.{digits}f}", float(value))
