"""The results page: one HTML file that needs no network access, built from tables, facts and plotly figures."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dhkd.data.extras import needing
from dhkd.stages.report.charts import Figure, LegendEntry, all_rounded, line_charts
from dhkd.stages.report.figures import Line, Panel

Fact = tuple[str, str]  # a name and its value


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the value by which the column is sorted. The value "" is sorted last."""

    text: str
    value: str | float = ""


@dataclass(frozen=True)
class Table:
    """A table. The first `left` columns are text, the other columns are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Figures under a heading. The text `says` explains the figures; `alternative` is the text for screen readers.

    `legend` is shared by all figures. If `small` is set, many figures are placed in a row.
    """

    title: str
    says: str
    alternative: str
    figures: Sequence[Figure]
    legend: Sequence[LegendEntry] = ()
    small: bool = False


@dataclass(frozen=True)
class RunPart:
    """The details of a run, which open when the run's name is clicked.

    `epochs` has the numbers of each epoch by column, `curves` maps the label of each of the run's charts to its values.
    """

    columns: Sequence[str]
    epochs: Sequence[Mapping[str, float]]
    settings: Sequence[Fact]
    curves: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Page:
    """The contents of the page. `version` changes when a served page must be reloaded; it is None for a saved page."""

    title: str
    summary: str
    warnings: Sequence[str]
    comparison: Table
    charts: Sequence[Chart]
    runs: Table
    parts: Mapping[str, RunPart]
    cost: Sequence[Fact]
    provenance: Sequence[Fact]
    version: str | None = None


# With this many numbers in the tables of all runs' epochs, they take about two megabytes. If there are more, every
# second row is left out, or two of three, and so on; charts keep every epoch.
MOST_NUMBERS = 300_000


def html_of(page: Page) -> str:
    """Render the page as one HTML file. All text is escaped, whatever its origin."""
    from jinja2 import Environment

    with needing("plotly", "the page of results"):
        plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    folder = files("dhkd.stages.report")
    template, css, js = (folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    charts = {re.sub(r"\W+", "-", chart.title.lower()): chart for chart in page.charts}
    every = _every(page.parts.values())
    shared = _shared(page.parts.values())
    labels = dict.fromkeys(label for part in page.parts.values() for label in part.curves)
    data = {
        "charts": {name: {"figures": chart.figures, "legend": chart.legend} for name, chart in charts.items()},
        "runs": {name: _plain(part, every, shared) for name, part in page.parts.items()},
        "shared": shared,
        "runCharts": {label: line_charts([Panel({label: Line([], [])}, "epoch", label)])[0] for label in labels},
        "version": page.version,
    }
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=page.title,
            summary=page.summary,
            warnings=page.warnings,
            comparison=page.comparison,
            charts=[{"id": name, **vars(chart)} for name, chart in charts.items()],
            runs=page.runs,
            cost=page.cost,
            provenance=page.provenance,
            live=page.version is not None,
            every=every,
            css=css,
            js=js,
            plotly=plotly,
            # A "<" in the data could end the script element that holds the data.
            data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        )
    )


def _every(parts: Iterable[RunPart]) -> int:
    """Return 1 if the page shows every epoch in the runs' tables, 2 if it shows every second one, and so on."""
    return max(1, math.ceil(sum(len(part.epochs) * len(part.columns) for part in parts) / MOST_NUMBERS))


def _shared(parts: Collection[RunPart]) -> list[Fact]:
    """Return the settings that all of several runs have; they are on the page once."""
    first, *others = [dict(part.settings) for part in parts] or [{}]
    missing = object()
    return [fact for fact in first.items() if others and all(one.get(fact[0], missing) == fact[1] for one in others)]


def _plain(part: RunPart, every: int, shared: Sequence[Fact]) -> Mapping[str, object]:
    """Return the details as JSON, with every so many epochs counted from the last one."""
    epochs = list(part.epochs)[::-every][::-1]
    common = set(shared)
    return {
        "columns": part.columns,
        "epochs": [all_rounded([epoch.get(column, math.nan) for column in part.columns], 4) for epoch in epochs],
        "settings": [fact for fact in part.settings if fact not in common],
        "curves": {label: all_rounded(values) for label, values in part.curves.items()},
    }
