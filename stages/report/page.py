"""The page of results: one HTML file that needs no network, made of plain values; charts are plotly's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from dhkd.stages.report.pictures import Line, Panel

MOST_BANDS = 8  # lines above which bands would hide one another


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
    """A chart under a heading; `says` is what to see in it, `alternative` what is read to who can't."""

    title: str
    says: str
    alternative: str
    figure: Mapping[str, Any]


@dataclass(frozen=True)
class RunPart:
    """What opens with a run's name."""

    columns: Sequence[str]
    epochs: Sequence[Sequence[str]]
    settings: Sequence[tuple[str, str]]
    figure: Mapping[str, Any]


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
    charts = {f"chart-{number}": chart for number, chart in enumerate(page.charts)}
    data = {
        "charts": {name: chart.figure for name, chart in charts.items()},
        "runs": {
            name: {"columns": part.columns, "epochs": part.epochs, "settings": part.settings, "chart": part.figure}
            for name, part in page.parts.items()
        },
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


def line_chart(panels: Sequence[Panel]) -> Mapping[str, Any]:
    """Panels side by side as plotly's data and layout; a band for each line that has intervals."""
    from plotly import graph_objects
    from plotly.colors import DEFAULT_PLOTLY_COLORS
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.12)
    figure.layout.template = None
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for column, panel in enumerate(panels, start=1):
        for name, line in panel.lines.items():
            colour = DEFAULT_PLOTLY_COLORS[names.index(name) % len(DEFAULT_PLOTLY_COLORS)]
            look = {"legendgroup": name, "line_color": colour, "mode": "lines+markers"}
            shown = graph_objects.Scatter(x=list(line.x), y=list(line.y), name=name, showlegend=column == 1, **look)
            figure.add_trace(shown, row=1, col=column)
            band = _band(line) if len(names) <= MOST_BANDS else None
            if band is not None:
                x, y = band
                fill = colour.replace("rgb", "rgba").replace(")", ", 0.15)")
                area = graph_objects.Scatter(
                    x=x, y=y, fill="toself", fillcolor=fill, line_width=0, hoverinfo="skip", mode="lines",
                    legendgroup=name, showlegend=False,
                )  # fmt: skip
                figure.add_trace(area, row=1, col=column)
        figure.update_xaxes(title_text=panel.xlabel, row=1, col=column)
        if panel.log_x:
            every = sorted({x for line in panel.lines.values() for x in line.x})
            figure.update_xaxes(type="log", tickvals=every, row=1, col=column)
        figure.update_yaxes(title_text=panel.ylabel, row=1, col=column)
    figure.update_layout(margin={"l": 60, "r": 10, "t": 20, "b": 50}, legend={"orientation": "h", "y": -0.2})
    figure.update_layout(showlegend=max(len(panel.lines) for panel in panels) > 1)
    return _plain(figure)


def matrix_chart(matrices: Mapping[str, Any]) -> Mapping[str, Any]:
    """Square matrices (K, K) side by side, in one scale of colours that is symmetric about 0."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(matrices), subplot_titles=list(matrices))
    figure.layout.template = None
    for column, matrix in enumerate(matrices.values(), start=1):
        figure.add_trace(graph_objects.Heatmap(z=matrix.round(3).tolist(), coloraxis="coloraxis"), row=1, col=column)
    limit = max(float(abs(matrix).max()) for matrix in matrices.values())
    figure.update_layout(coloraxis={"colorscale": "RdBu", "reversescale": True, "cmin": -limit, "cmax": limit})
    figure.update_layout(margin={"l": 40, "r": 10, "t": 40, "b": 40})
    figure.update_yaxes(autorange="reversed")
    return _plain(figure)


def point_chart(points: Mapping[str, Any], labels_N: Any) -> Mapping[str, Any]:
    """Points (N, 2) of each name in a panel of its own, coloured by label."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(points), subplot_titles=list(points))
    figure.layout.template = None
    for column, points_N2 in enumerate(points.values(), start=1):
        marker = {"color": labels_N.tolist(), "colorscale": "Rainbow", "size": 4}
        x, y = (points_N2[:, axis].round(2).tolist() for axis in (0, 1))
        scatter = graph_objects.Scatter(x=x, y=y, mode="markers", marker=marker, text=labels_N.tolist())
        figure.add_trace(scatter, row=1, col=column)
    figure.update_layout(showlegend=False, margin={"l": 30, "r": 10, "t": 40, "b": 30})
    figure.update_xaxes(showticklabels=False)
    figure.update_yaxes(showticklabels=False)
    return _plain(figure)


def _band(line: Line) -> tuple[list[float], list[float]] | None:
    points = [(x, y, half) for x, y, half in zip(line.x, line.y, line.half, strict=False) if half is not None]
    if not points:
        return None
    there = [(x, y + half) for x, y, half in points]
    back = [(x, y - half) for x, y, half in reversed(points)]
    return [x for x, _ in there + back], [y for _, y in there + back]


def _plain(figure: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = json.loads(figure.to_json())
    return plain
