"""The page of results: one HTML file that needs no network, from tables, facts and plotly's figures."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dhkd.stages.report.charts import Figure, LegendEntry

Fact = tuple[str, str]  # a name and its value


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and the value by which its column is sorted; "" comes last."""

    text: str
    value: str | float = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns. The first `left` columns are text, the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Figures under a heading. `says` explains them; `alternative` is read to people who can't see them.

    `legend` is shared by all figures. `small` figures are placed many in a row.
    """

    title: str
    says: str
    alternative: str
    figures: Sequence[Figure]
    legend: Sequence[LegendEntry] = ()
    small: bool = False


@dataclass(frozen=True)
class RunPart:
    """The details of a run, which open with a click on its name."""

    columns: Sequence[str]
    epochs: Sequence[Sequence[str]]
    settings: Sequence[Fact]
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Page:
    """Everything on the page. A page that is served has a `version`, which changes when it must be reloaded."""

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
    """The page as one HTML file. All text is escaped, whatever its origin."""
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
            # "<" could end the script element that holds the data.
            data=json.dumps(data).replace("<", "\\u003c"),
        )
    )
