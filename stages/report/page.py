"""The results page: one HTML file that needs no network access, built from tables, facts and plotly figures."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dhkd.stages.report.charts import Figure, LegendEntry

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
    """The details of a run, which open when the run's name is clicked."""

    columns: Sequence[str]
    epochs: Sequence[Sequence[str]]
    settings: Sequence[Fact]
    figures: Sequence[Figure]


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


def html_of(page: Page) -> str:
    """Render the page as one HTML file. All text is escaped, whatever its origin."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    folder = files("dhkd.stages.report")
    template, css, js = (folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    charts = {re.sub(r"\W+", "-", chart.title.lower()): chart for chart in page.charts}
    data = {
        "charts": {name: {"figures": chart.figures, "legend": chart.legend} for name, chart in charts.items()},
        "runs": {name: vars(part) for name, part in page.parts.items()},
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
            css=css,
            js=js,
            plotly=get_plotlyjs(),
            # A "<" in the data could end the script element that holds the data.
            data=json.dumps(data).replace("<", "\\u003c"),
        )
    )
