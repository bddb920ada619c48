"""The page of results: one HTML file that needs no network, made of plain values and plotly's figures."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from dhkd.stages.report.charts import Figure


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by: "" is last."""

    text: str
    value: str | float = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns, of which the first `left` are text and the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Figures under a heading; `says` is what to see in them, `alternative` what is read to who can't.

    `legend` has name, colour and dash of what the figures have in common; `small` ones stand many in a row.
    """

    title: str
    says: str
    alternative: str
    figures: Sequence[Figure]
    legend: Sequence[tuple[str, str, str]] = ()
    small: bool = False


@dataclass(frozen=True)
class RunPart:
    """What opens with a run's name."""

    columns: Sequence[str]
    epochs: Sequence[Sequence[str]]
    settings: Sequence[tuple[str, str]]
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Page:
    """Everything on it; `version` is there of a page that is served, and says when to load it anew."""

    title: str
    summary: str
    warnings: Sequence[str]
    comparison: Table
    charts: Sequence[Chart]
    runs: Table
    parts: Mapping[str, RunPart]
    cost: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    version: str | None = None


def html_of(page: Page) -> str:
    """The page as one file. Text is escaped, wherever it comes from."""
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
            # In a script element, "<" could end it.
            data=json.dumps(data).replace("<", "\\u003c"),
        )
    )
