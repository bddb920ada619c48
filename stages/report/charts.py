"""Interactive figures of the page: plotly's data and layout as plain values, drawn in the browser.

Every panel is a separate figure, so that the page can place panels side by side or one below the other. Everything
drawn for a name is in one legend group, which the page's legend can hide or show.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dhkd.stages.report.figures import Line, Matrices, Panel, Points, Values, names_of
from dhkd.stages.report.looks import Look, looks_of
from dhkd.stages.report.statistics import spread

# Any: plotly's JSON, which only plotly reads.
Figure = Mapping[str, Any]
LegendEntry = tuple[str, str, str]  # a name, its colour and its dash, both as CSS values

MOST_BANDS = 8  # if there are more lines, bands would hide one another
MARGIN = {"l": 60, "r": 10, "t": 10, "b": 45}
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
SYMBOLS = dict(
    zip(
        "osD^v<>PX",
        (
            "circle",
            "square",
            "diamond",
            "triangle-up",
            "triangle-down",
            "triangle-left",
            "triangle-right",
            "cross",
            "x",
        ),
        strict=True,
    )
)


def line_charts(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[Figure]:
    """Draw a figure for each panel.

    A line's intervals are shaded as a band, unless the panels have more than `MOST_BANDS` names. Looks (colour, dash,
    marker) are assigned to the names in `order` first, then to the other names of the panels; the same order gives the
    same looks.
    """
    names = names_of(panels)
    looks = looks_of([*order, *names])
    return [_line_chart(panel, looks, bands=len(names) <= MOST_BANDS) for panel in panels]


def legend_of(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[LegendEntry]:
    """Return the entries of the legend that a chart's panels share; for a single line, return none."""
    names = names_of(panels)
    looks = {name: look for name, look in looks_of([*order, *names]).items() if name in names}
    return [(name, _colour(look), look.dash) for name, look in looks.items()] if len(looks) > 1 else []


def value_charts(panels: Sequence[Values], order: Sequence[str] = ()) -> list[Figure]:
    """Draw a figure for each panel; each name has a row with its seeds' values, their mean and the mean's interval."""
    looks = looks_of([*order, *(name for panel in panels for name in panel.of_seeds)])
    return [_value_chart(panel, looks) for panel in panels]


def matrix_charts(matrices: Matrices) -> list[Figure]:
    """Draw a figure for each matrix, with a colour scale that is symmetric about 0."""
    from plotly import graph_objects

    limit = matrices.limit
    figures = []
    for name, matrix in matrices.by_name.items():
        figure = _empty(title={"text": name, "font_size": 13}, margin={"l": 30, "r": 10, "t": 35, "b": 30})
        colours = {"colorscale": "RdBu", "reversescale": True, "zmin": -limit, "zmax": limit}
        figure.add_trace(graph_objects.Heatmap(z=matrix.round(3).tolist(), **colours))
        figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
        figure.update_xaxes(constrain="domain")
        figures.append(_plain(figure))
    return figures


def point_charts(points: Points) -> list[Figure]:
    """Draw a figure for each name's points, coloured by label."""
    from plotly import graph_objects

    labels = points.labels_N.tolist()
    figures = []
    for name, points_N2 in points.by_name.items():
        figure = _empty(title={"text": name, "font_size": 13}, margin={"l": 10, "r": 10, "t": 35, "b": 10})
        marker = {"color": labels, "colorscale": "Rainbow", "size": 4}
        x, y = (points_N2[:, axis].round(2).tolist() for axis in (0, 1))
        figure.add_trace(graph_objects.Scatter(x=x, y=y, mode="markers", marker=marker, text=labels))
        figure.update_xaxes(showticklabels=False)
        figure.update_yaxes(showticklabels=False)
        figures.append(_plain(figure))
    return figures


def _line_chart(panel: Panel, looks: Mapping[str, Look], *, bands: bool) -> Figure:
    from plotly import graph_objects

    figure = _empty(xaxis_title_text=panel.xlabel, yaxis_title_text=panel.ylabel)
    for name, line in panel.lines.items():
        look, group = looks[name], {"legendgroup": name}
        drawn = {"line": {"color": _colour(look), "dash": DASHES[look.dash]}, "marker_symbol": SYMBOLS[look.marker]}
        figure.add_trace(
            graph_objects.Scatter(x=list(line.x), y=list(line.y), name=name, mode="lines+markers", **group, **drawn)
        )
        band = _band(line) if bands else None
        if band is not None:
            area = {"fill": "toself", "fillcolor": _pale(look), "line_width": 0, "mode": "lines"}
            figure.add_trace(graph_objects.Scatter(x=band[0], y=band[1], hoverinfo="skip", **group, **area))
    for name, level in panel.levels.items():
        figure.add_hline(level, line_color="grey", line_dash=DASHES["dashed"], annotation_text=name)
    if panel.log_x:
        figure.update_xaxes(type="log", tickvals=panel.every_x, ticktext=[f"{x:g}" for x in panel.every_x])
    if panel.log_y:
        figure.update_yaxes(type="log", dtick=1)
    return _plain(figure)


def _value_chart(panel: Values, looks: Mapping[str, Look]) -> Figure:
    from plotly import graph_objects

    figure = _empty(xaxis_title_text=panel.label, height=90 + 26 * len(panel.of_seeds))
    # Reversed, because plotly puts the first name at the bottom.
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)

    def add(name: str, x: Sequence[float], row: str, marker: Mapping[str, Any], **more: Any) -> None:
        y = [row] * len(x)
        figure.add_trace(
            graph_objects.Scatter(
                name=name, x=list(x), y=y, mode="markers", marker=marker, hovertemplate="%{x:.4g}", **more
            )
        )

    for name in (name for name in looks if name in panel.of_seeds):
        values, colour = panel.of_seeds[name], _colour(looks[name])
        over_seeds = spread(values)
        interval = {} if over_seeds.half is None else {"error_x": {"type": "data", "array": [over_seeds.half]}}
        add(name, [over_seeds.mean], name, {"color": colour, "size": 10}, **interval)
        if len(values) > 1:
            add(f"{name}, a seed", values, name, {"color": colour, "size": 6, "symbol": "circle-open"})
        if name in panel.marks:
            add(panel.marked, [panel.marks[name]], name, {"color": colour, "size": 12, "symbol": "x-thin-open"})
    return _plain(figure)


def _empty(**layout: Any) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure(layout={"margin": MARGIN, **layout, "showlegend": False})
    figure.layout.template = None
    return figure


def _band(line: Line) -> tuple[list[float], list[float]] | None:
    """Return the outline of the intervals: forward along their upper ends, then back along their lower ends."""
    points = [(x, y, half) for x, y, half in zip(line.x, line.y, line.half, strict=False) if half is not None]
    if not points:
        return None
    upper = [(x, y + half) for x, y, half in points]
    lower = [(x, y - half) for x, y, half in reversed(points)]
    return [x for x, _ in upper + lower], [y for _, y in upper + lower]


def _colour(look: Look) -> str:
    red, green, blue = look.colour
    return f"rgb({red}, {green}, {blue})"


def _pale(look: Look) -> str:
    red, green, blue = look.colour
    return f"rgba({red}, {green}, {blue}, 0.15)"


def _plain(figure: Any) -> Figure:
    plain: Figure = json.loads(figure.to_json())
    return plain
