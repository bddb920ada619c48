"""The page's charts: what is to be seen, as plotly's data and layout. Panels are figures of their own, so that the page
places them as its width allows; what belongs to one name has its legend group, in which the page's legend finds it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dhkd.stages.report.pictures import Line, Panel, Values
from dhkd.stages.report.statistics import spread

Figure = Mapping[str, Any]

MOST_BANDS = 8  # lines above which bands would hide one another
MARGIN = {"l": 60, "r": 10, "t": 10, "b": 45}
DASHES = ("solid", "dash", "dot")


def line_charts(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[Figure]:
    """A figure for each panel; a band for each line that has intervals, where there are few.

    Names in `order` have their place's look, so that it is the same in every chart.
    """
    from plotly import graph_objects

    looks = _looks([*order, *(name for panel in panels for name in panel.lines)])
    few = len({name for panel in panels for name in panel.lines}) <= MOST_BANDS
    figures = []
    for panel in panels:
        figure = _empty(xaxis_title_text=panel.xlabel, yaxis_title_text=panel.ylabel)
        for name, line in panel.lines.items():
            colour, dash = looks[name]
            shown = {"legendgroup": name, "mode": "lines+markers", "line": {"color": colour, "dash": dash}}
            figure.add_trace(graph_objects.Scatter(x=list(line.x), y=list(line.y), name=name, **shown))
            band = _band(line) if few else None
            if band is not None:
                area = {"fill": "toself", "fillcolor": _pale(colour), "line_width": 0, "mode": "lines"}
                figure.add_trace(
                    graph_objects.Scatter(x=band[0], y=band[1], legendgroup=name, hoverinfo="skip", **area)
                )
        if panel.log_x:
            every = sorted({x for line in panel.lines.values() for x in line.x})
            figure.update_xaxes(type="log", tickvals=every, ticktext=[f"{x:g}" for x in every])
        if panel.log_y:
            figure.update_yaxes(type="log", dtick=1)
        figures.append(_plain(figure))
    return figures


def legend_of(panels: Sequence[Panel], order: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """Name, colour and dash of every line, in order; none where there is one alone."""
    names = [name for panel in panels for name in panel.lines]
    looks = {name: look for name, look in _looks([*order, *names]).items() if name in names}
    return [(name, *look) for name, look in looks.items()] if len(looks) > 1 else []


def value_charts(panels: Sequence[Values], order: Sequence[str] = ()) -> list[Figure]:
    """A figure for each panel: a row for each name, with its seeds' values, their mean and its interval."""
    from plotly import graph_objects

    looks = _looks([*order, *(name for panel in panels for name in panel.of_seeds)])
    figures = []
    for panel in panels:
        figure = _empty(xaxis_title_text=panel.label, height=90 + 26 * len(panel.of_seeds))
        # Names are values of an axis, which plotly would fill from below.
        figure.update_yaxes(autorange="reversed", type="category", automargin=True)
        for name in (name for name in looks if name in panel.of_seeds):
            values = panel.of_seeds[name]
            found = spread(values)
            mean = {"x": [found.mean], "y": [name], "mode": "markers", "marker": {"color": looks[name][0], "size": 10}}
            interval = {"error_x": {"type": "data", "array": [found.half]}} if found.half is not None else {}
            figure.add_trace(graph_objects.Scatter(name=name, hovertemplate="%{x:.4g}", **mean, **interval))
            if len(values) > 1:
                seeds = {"color": looks[name][0], "size": 6, "symbol": "circle-open"}
                dots = {"x": list(values), "y": [name] * len(values), "mode": "markers", "marker": seeds}
                figure.add_trace(graph_objects.Scatter(name=f"{name}, a seed", hovertemplate="%{x:.4g}", **dots))
            if name in panel.marks:
                mark = {"color": looks[name][0], "size": 12, "symbol": "x-thin-open"}
                point = {"x": [panel.marks[name]], "y": [name], "mode": "markers", "marker": mark}
                figure.add_trace(graph_objects.Scatter(name=panel.marked, hovertemplate="%{x:.4g}", **point))
        figures.append(_plain(figure))
    return figures


def matrix_charts(matrices: Mapping[str, Any]) -> list[Figure]:
    """A figure for each matrix (K, K), all in one scale of colours that is symmetric about 0."""
    from plotly import graph_objects

    limit = max(float(abs(matrix).max()) for matrix in matrices.values())
    figures = []
    for name, matrix in matrices.items():
        figure = _empty(title={"text": name, "font_size": 13}, margin={"l": 30, "r": 10, "t": 35, "b": 30})
        colours = {"colorscale": "RdBu", "reversescale": True, "zmin": -limit, "zmax": limit}
        figure.add_trace(graph_objects.Heatmap(z=matrix.round(3).tolist(), **colours))
        figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain")
        figure.update_xaxes(constrain="domain")
        figures.append(_plain(figure))
    return figures


def point_charts(points: Mapping[str, Any], labels_N: Any) -> list[Figure]:
    """A figure for each name's points (N, 2), coloured by label."""
    from plotly import graph_objects

    figures = []
    for name, points_N2 in points.items():
        figure = _empty(title={"text": name, "font_size": 13}, margin={"l": 10, "r": 10, "t": 35, "b": 10})
        marker = {"color": labels_N.tolist(), "colorscale": "Rainbow", "size": 4}
        x, y = (points_N2[:, axis].round(2).tolist() for axis in (0, 1))
        figure.add_trace(graph_objects.Scatter(x=x, y=y, mode="markers", marker=marker, text=labels_N.tolist()))
        figure.update_xaxes(showticklabels=False)
        figure.update_yaxes(showticklabels=False)
        figures.append(_plain(figure))
    return figures


def _empty(**layout: Any) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure(layout={"margin": MARGIN, **layout, "showlegend": False})
    figure.layout.template = None
    return figure


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each name: colours first, then another dash."""
    from plotly.colors import DEFAULT_PLOTLY_COLORS as COLOURS

    different = dict.fromkeys(names)
    return {
        name: (COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])
        for number, name in enumerate(different)
    }


def _band(line: Line) -> tuple[list[float], list[float]] | None:
    points = [(x, y, half) for x, y, half in zip(line.x, line.y, line.half, strict=False) if half is not None]
    if not points:
        return None
    there = [(x, y + half) for x, y, half in points]
    back = [(x, y - half) for x, y, half in reversed(points)]
    return [x for x, _ in there + back], [y for _, y in there + back]


def _pale(colour: str) -> str:
    return colour.replace("rgb", "rgba").replace(")", ", 0.15)")


def _plain(figure: Any) -> Figure:
    plain: Figure = json.loads(figure.to_json())
    return plain
