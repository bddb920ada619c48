"""`dhkd report DIR --html` and `dhkd serve DIR`: from runs and the analyses beside them to the page of results."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from dhkd.data.files import write_atomically
from dhkd.pipeline.analyses import curves_of
from dhkd.pipeline.comparison import compare
from dhkd.pipeline.runs import FIGURES, Run, State, axes_of
from dhkd.pipeline.sweep import SWEEP
from dhkd.stages.report.page import Cell, Chart, Page, RunPart, Table, html_of, line_chart, matrix_chart, point_chart
from dhkd.stages.report.pictures import Line, Panel
from dhkd.stages.report.tables import difference_text, spread_text


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
    page = Page(
        title=folder.resolve().name,
        summary=f"Students that were distilled from a teacher: {', '.join(counts) or 'no run yet'}.",
        warnings=compared["warnings"],
        comparison=_comparison(compared),
        charts=_charts(runs, folder),
        runs=_runs(runs),
        parts={run.name: _part(run) for run in runs},
        cost=_cost(compared["cost"], runs),
        provenance=_provenance(runs, planned),
        version=version,
    )
    return html_of(page)


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
        cells = [Cell(str(row["values"][axis]), str(row["values"][axis])) for axis in axes] or [Cell("all", "all")]
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
        " one whose interval holds 0 is within noise.",
    )


def _runs(runs: Sequence[Run]) -> Table:
    axes = axes_of(runs)
    shown = ("last_top1", "best_top1", "last_top5", "epochs", "seconds")
    rows = []
    for run in runs:
        result = run.result if run.state == "finished" and run.result is not None else {}
        values = [str(run.settings.get(key)) for key in axes.values()]
        digits = {"epochs": 0, "seconds": 1}
        rows.append(
            [
                Cell(run.name, run.name),
                *(Cell(value, value) for value in values),
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
    return RunPart(columns, epochs, [*facts, *settings], line_chart(panels))


def _charts(runs: Sequence[Run], folder: Path) -> list[Chart]:
    """Curves of all runs, then what analyses have left in the folder's `report`."""
    charts = []
    trained = [run for run in runs if run.state != "damaged" and run.metrics]
    if trained:
        rows, panels = curves_of(trained)
        names = list(dict.fromkeys(row[0] for row in rows))
        last = {row[0]: row[3] for row in rows}
        spoken = "; ".join(f"{name} ends at {last[name]:.1f} %" for name in names)
        charts.append(
            Chart(
                "Over training",
                "Test accuracy and training loss after every epoch, means over seeds with 95 % intervals. Losses of"
                " different methods are sums of different terms: only their course can be compared.",
                f"Test accuracy over epochs: {spoken}",
                line_chart(panels),
            )
        )
    found = folder / "report"
    charts += _views(found / "views.csv")
    charts += _conflict(found / "conflict.csv")
    charts += _correlation(found / "correlation.npz")
    charts += _tsne(found / "tsne.npz")
    charts += _etf(found / "etf.csv")
    return charts


def _views(path: Path) -> list[Chart]:
    rows = _table(path)
    lines = {}
    for name in dict.fromkeys(row["runs"] for row in rows):
        mine = [row for row in rows if row["runs"] == name]
        halves = [float(row["half_interval"]) if row["half_interval"] else None for row in mine]
        lines[name] = Line([float(row["views"]) for row in mine], [float(row["top1"]) for row in mine], halves)
    said = "; ".join(f"{row['runs']}, {row['views']} views: {float(row['top1']):.1f} %" for row in rows)
    says = "Test accuracy against the number of cached views, with 95 % intervals over seeds."
    panel = Panel(lines, "cached views", "test top-1 (%)", log_x=True)
    return [Chart("How many views are enough", says, said, line_chart([panel]))] if rows else []


def _conflict(path: Path) -> list[Chart]:
    rows = _table(path)
    panels = []
    for on in ("classifier", "features"):
        of_part = [row for row in rows if row["on"] == on]
        lines = {
            name: Line(
                [float(row["epochs"]) for row in of_part if row["run"] == name],
                [float(row["cosine"]) for row in of_part if row["run"] == name],
            )
            for name in dict.fromkeys(row["run"] for row in of_part)
        }
        panels.append(Panel(lines, "epochs", f"mean cosine on {on}"))
    says = (
        "The cosine between cross-entropy's gradient and BinaryKL's, on the classifier's rows and on the features"
        " before it; below 0 they pull apart. A student with a head for each loss has no row in common."
    )
    said = "Mean cosines over training; the same figures are in conflict.csv"
    return [Chart("Where the losses conflict", says, said, line_chart(panels))] if rows else []


def _correlation(path: Path) -> list[Chart]:
    arrays = {name: array for name, array in _arrays(path).items() if name != "teacher"}
    if not arrays:
        return []
    said = "; ".join(f"{name}: mean absolute difference {np.abs(array).mean():.3f}" for name, array in arrays.items())
    says = "The teacher's correlation of every two classes' logits less the student's; the paler, the more alike."
    return [Chart("Correlation of logits", says, said, matrix_chart(arrays))]


def _tsne(path: Path) -> list[Chart]:
    arrays = _arrays(path)
    labels_N = arrays.pop("labels", None)
    if labels_N is None or not arrays:
        return []
    says = "t-SNE of penultimate features of test images, coloured by class; distances between groups mean little."
    said = f"Scattered points of {', '.join(arrays)}"
    return [Chart("Features in the plane", says, said, point_chart(arrays, labels_N))]


def _etf(path: Path) -> list[Chart]:
    rows = _table(path)
    if not rows:
        return []
    measures = [name for name in rows[0] if name != "run"]
    lines = {row["run"]: Line(list(range(len(measures))), [float(row[name]) for name in measures]) for row in rows}
    named = ", ".join(f"{number} {name.replace('_', ' ')}" for number, name in enumerate(measures))
    said = "; ".join(
        f"{row['run']}: " + ", ".join(f"{name} {float(row[name]):.2f}" for name in measures) for row in rows
    )
    says = f"Distances from a simplex equiangular tight frame, where each is 0: {named}."
    return [Chart("Neural collapse", says, said, line_chart([Panel(lines, "measure", "distance")]))]


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


def _number(value: float | None, digits: int) -> Cell:
    return Cell("") if value is None else Cell(f"{value:,.{digits}f}", float(value))
