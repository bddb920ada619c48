"""Build the results page of `dhkd report DIR --html` and `dhkd serve DIR` from runs and their saved analyses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from dhkd.data.disk.atomic import write_atomically
from dhkd.data.runs.measured import caption_of, common_top1_name
from dhkd.data.runs.names import EPOCHS_KEY
from dhkd.data.runs.read import Run, State, SweepRecord, finished_of, read_sweep_record
from dhkd.data.shown import printable_line
from dhkd.pipeline.report.comparison import ComparedRow, Comparison, Cost, compare
from dhkd.pipeline.report.page_charts import accuracy_charts, analysis_charts, curve_charts
from dhkd.pipeline.report.panels import run_panels
from dhkd.pipeline.report.table import axes_of, keeps_average
from dhkd.stages.report.page import Cell, Fact, Page, RunPart, Table, html_of
from dhkd.stages.report.text import difference_text, spread_text

NOTE = (
    "Mean ± half of the 95 % interval over seeds (standard deviation). Differences are taken seed by seed; one whose"
    " interval contains 0 is within noise. Intervals are not corrected for multiple comparisons: of twenty differences"
    " that are only noise, one is expected to be called higher or lower."
)


def write_page(runs: Sequence[Run], folder: Path, path: Path, baseline: str | None) -> None:
    """Write the page of `folder`'s runs as one HTML file."""
    text = page_of(runs, folder, baseline)
    write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def page_of(runs: Sequence[Run], folder: Path, baseline: str | None = None, version: str | None = None) -> str:
    """Build the page as HTML. A page with a `version` polls its server and reloads when that version changes."""
    compared = compare(runs, baseline)
    record = read_sweep_record(folder)
    order = [row.name for row in compared.rows]  # so that each kind of run has the same colour in every chart
    analyses, warnings = analysis_charts(folder / "report", order)
    page = Page(
        title=printable_line(folder.resolve().name),
        summary=_summary(runs, record),
        warnings=[*compared.warnings, *warnings],
        comparison=_comparison(compared),
        charts=[*accuracy_charts(runs, compared), *curve_charts(runs, order), *analyses],
        runs=_runs(runs),
        parts={run.name: _part(run) for run in runs},
        cost=_cost(compared.cost, runs),
        provenance=_provenance(runs, record),
        version=version,
    )
    return html_of(page)


def _summary(runs: Sequence[Run], record: SweepRecord) -> str:
    waiting = len(set(record.runs) - {run.name for run in runs})
    counts = {state: sum(run.state == state for run in runs) for state in get_args(State)}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    parts += [f"{waiting} not begun"] if waiting else []
    return f"Students of a cached teacher: {', '.join(parts) or 'no run yet'}.{_time_left(runs, waiting)}"


def _time_left(runs: Sequence[Run], waiting: int) -> str:
    """Estimate the training time left, as a sentence; return "" if it can't be estimated.

    Assumes that runs take as long as the finished runs did, and that the runs unfinished now train in parallel.
    """
    seconds = [run.finished_result.seconds for run in finished_of(runs)]
    begun = [run for run in runs if run.state == "unfinished"]
    if not (seconds and begun):
        return ""
    done = sum(len(run.metrics) / int(run.settings[EPOCHS_KEY]) for run in begun)
    minutes = fmean(seconds) * (len(begun) + waiting - done) / len(begun) / 60
    return f" About {minutes:,.1f} min of training left."


def _comparison(compared: Comparison) -> Table:
    published = any(row.published is not None for row in compared.rows)
    return Table(
        [
            *(compared.axes or ["runs"]),
            *("seeds", f"{compared.top1} %", "best %"),
            *(["ema %"] if compared.has_average else []),
            *([f"against {compared.baseline}"] if compared.baseline else []),
            *(["published %"] if published else []),
            "seconds",
        ],
        [_compared_row(row, compared, published) for row in compared.rows],
        left=max(1, len(compared.axes)),
        caption=f"{caption_of(compared.top1)} after the last epoch, and the best one; runs that differ only in their"
        " seed are one row",
        note=NOTE,
    )


def _compared_row(row: ComparedRow, compared: Comparison, published: bool) -> list[Cell]:
    cells = [_setting(row.values[axis]) for axis in compared.axes] or [Cell("all", "all")]
    cells.append(Cell(str(len(row.seeds)), len(row.seeds)))
    cells += [Cell(spread_text(top1), top1.mean) for top1 in (row.last_top1, row.best_top1)]
    if compared.has_average:
        average = row.last_ema_top1
        cells.append(Cell("") if average is None else Cell(spread_text(average), average.mean))
    if compared.baseline:
        cells.append(Cell(difference_text(row.difference), "" if row.difference is None else row.difference.mean))
    if published:
        cells.append(_number(row.published, 2))
    return [*cells, _number(row.seconds, 1)]


def _runs(runs: Sequence[Run]) -> Table:
    axes = axes_of(runs)
    top1 = common_top1_name([run.settings for run in runs])
    digits = {"last_top1": 2, "best_top1": 2, "last_top5": 2, "epochs": 0, "seconds": 1}
    names = [f"{top1} %", "best %", "top-5 %", "epochs", "seconds"]
    if keeps_average(runs):
        digits |= {"last_ema_top1": 2, "best_ema_top1": 2}
        names += [f"ema {top1} %", "ema best %"]
    columns = ["run", *axes, "state", *names]
    return Table(columns, [_run_row(run, list(axes.values()), digits) for run in runs], left=2 + len(axes))


def _run_row(run: Run, keys: Sequence[str], digits: Mapping[str, int]) -> list[Cell]:
    figures = {} if run.result is None else run.result.figures | run.result.figures_of_average
    return [
        Cell(run.name, run.name),
        *(_setting(run.settings.get(key)) for key in keys),
        Cell(run.state, run.state),
        *(_number(figures.get(name), places) for name, places in digits.items()),
    ]


def _part(run: Run) -> RunPart:
    """Collect the details of a run, which open when the run's name is clicked: epochs, result and settings."""
    columns = list(run.metrics[0].values) if run.metrics else []
    epochs = [epoch.values for epoch in run.metrics]
    curves = {label: line.y for panel in run_panels(run) for label, line in panel.lines.items()}
    facts: list[Fact] = []
    if run.result is not None:
        figures = run.result.figures | run.result.figures_of_average
        facts += [(name, str(value)) for name, value in figures.items()]
        if run.result.planned_epochs is not None:
            facts.append(("stopped early", f"after {run.result.epochs} of {run.result.planned_epochs} epochs"))
        facts += [("hardware", str(run.result.hardware)), ("sha256", str(run.result.sha256))]
    facts += [("failure", run.failure)] if run.failure else []
    facts += [("damage", run.damage)] if run.damage else []
    settings = [(key, json.dumps(value)) for key, value in run.settings.items()]
    return RunPart(columns, epochs, [*facts, *settings], curves)


def _cost(cost: Cost, runs: Sequence[Run]) -> list[Fact]:
    caches = [run.result.cache for run in runs if run.result and run.result.cache]
    # The last of these entries counts for a cache, and it is the largest: the cache may have been extended.
    sizes = {cache.digest: cache.forwards * cache.row_bytes for cache in sorted(caches, key=lambda one: one.views)}
    stored = sum(sizes.values())
    return [
        ("Forward passes of the teacher for the caches", f"{cost.teacher_forwards_cached:,}"),
        ("Forward passes that live teachers would have made", f"{cost.teacher_forwards_live:,}"),
        ("Size of the caches", f"{stored / 1e6:,.1f} MB" if stored else "unknown"),
        ("Training time of all students", f"{cost.seconds:,.0f} s"),
    ]


def _provenance(runs: Sequence[Run], record: SweepRecord) -> list[Fact]:
    facts: dict[str, list[str]] = {name: [] for name in ("Command", "Cache", "Teacher", "Hardware", "Versions")}
    facts["Command"] += record.commands
    for run in finished_of(runs):
        result = run.finished_result
        if result.cache:
            cache = result.cache
            facts["Cache"].append(f"{cache.digest} ({cache.views} views of {cache.samples:,} samples)")
            if cache.teacher is not None:  # it is None for the mean of several teachers
                facts["Teacher"].append(f"{cache.teacher} ({cache.teacher_sha256})")
        facts["Hardware"].append(str(result.hardware))
        facts["Versions"].append(", ".join(f"{name} {version}" for name, version in result.versions.items()))
    return [(name, "; ".join(dict.fromkeys(values))) for name, values in facts.items() if values]


def _setting(value: Any) -> Cell:
    """Return a cell with a setting's value, or a dash for a run without that setting."""
    return Cell("–") if value is None else Cell(printable_line(str(value)), printable_line(str(value)))


def _number(value: float | None, digits: int) -> Cell:
    return Cell("") if value is None else Cell(f"{value:,.{digits}f}", float(value))
