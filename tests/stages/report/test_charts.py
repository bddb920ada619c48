"""The page's figures, as plotly's plain values: what is in them, and that looks are those of files."""

import json
import math
from typing import Any

import numpy as np
import pytest
from dhkd.stages.report.charts import (
    all_rounded,
    legend_of,
    line_charts,
    matrix_charts,
    point_charts,
    rounded,
    value_charts,
)
from dhkd.stages.report.figures import Line, Matrices, Panel, Points, Values
from dhkd.stages.report.statistics import spread

BLUE, ORANGE = "rgb(31, 119, 180)", "rgb(255, 127, 14)"


def lines_in(figure: Any) -> dict[str, Any]:
    """The traces that have a name."""
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def test_a_line_has_its_points_and_a_band() -> None:
    (figure,) = line_charts([Panel({"ce": Line([1, 2, 3], [10.0, 20.0, 30.0], [None, 1.0, 2.0])}, "epoch", "top-1")])
    line, band = figure["data"]
    assert (line["x0"], line["dx"], line["y"], line["line"]["color"]) == (1, 1, [10.0, 20.0, 30.0], BLUE)
    # Along the upper ends and back along the lower ones; the first epoch has no interval.
    assert (band["x"], band["y"]) == ([2, 3, 3, 2], [21.0, 32.0, 28.0, 19.0])
    assert band["legendgroup"] == line["legendgroup"] == "ce"
    assert (figure["layout"]["xaxis"]["title"]["text"], figure["layout"]["yaxis"]["title"]["text"]) == (
        "epoch", "top-1"
    )  # fmt: skip


def test_many_lines_have_no_bands() -> None:
    for count, traces in ((8, 16), (9, 9)):
        lines = {f"run {number}": Line([1, 2], [1.0, 2.0], [0.5, 0.5]) for number in range(count)}
        (figure,) = line_charts([Panel(lines, "x", "y")])
        assert len(figure["data"]) == traces


def test_a_level_is_a_horizontal_line_with_its_name() -> None:
    (figure,) = line_charts([Panel({"ce": Line([1], [1.0])}, "x", "y", levels={"teacher": 55.0})])
    (shape,) = figure["layout"]["shapes"]
    assert (shape["y0"], shape["y1"], shape["line"]["dash"]) == (55.0, 55.0, "dash")
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["teacher"]


def test_logarithmic_axes() -> None:
    panel = Panel({"a": Line([10, 1], [1.0, 2.0]), "b": Line([3], [1.0])}, "views", "top-1", log_x=True, log_y=True)
    (figure,) = line_charts([panel])
    assert (figure["layout"]["xaxis"]["type"], figure["layout"]["yaxis"]["type"]) == ("log", "log")
    assert (figure["layout"]["xaxis"]["tickvals"], figure["layout"]["xaxis"]["ticktext"]) == (
        [1, 3, 10],
        ["1", "3", "10"],
    )


def test_the_order_gives_a_name_its_colour_in_every_chart() -> None:
    line = Line([1], [1.0])
    (figure,) = line_charts([Panel({"kd": line, "ce": line}, "x", "y")], ["ce", "kd"])
    (values,) = value_charts([Values({"kd": [1.0]}, "top-1")], ["ce", "kd"])
    assert {name: trace["line"]["color"] for name, trace in lines_in(figure).items()} == {"ce": BLUE, "kd": ORANGE}
    assert lines_in(values)["kd"]["marker"]["color"] == ORANGE


def test_the_legend_names_each_line_once_in_the_order() -> None:
    line = Line([1], [1.0])
    panels = [Panel({"kd": line, "ce": line}, "x", "y"), Panel({"ce": line}, "x", "y")]
    assert legend_of(panels, ["ce", "absent", "kd"]) == [("ce", BLUE, "solid"), ("kd", "rgb(44, 160, 44)", "solid")]
    assert legend_of([Panel({"ce": line}, "x", "y")]) == [], "a single line needs none"
    many = Panel({f"run {number}": line for number in range(11)}, "x", "y")
    assert legend_of([many])[10] == ("run 10", BLUE, "dashed"), "the colour comes again, as CSS draws another line"
    assert lines_in(line_charts([many])[0])["run 10"]["line"]["dash"] == "dash", "as plotly draws another line"


def test_a_row_shows_mean_interval_seeds_and_mark() -> None:
    panel = Values({"ce": [1.0, 3.0], "kd": [5.0]}, "top-1", {"kd": 6.0}, "published")
    (figure,) = value_charts([panel])
    traces = lines_in(figure)
    assert list(traces) == ["ce", "ce, a seed", "kd", "published"]
    assert (traces["ce"]["x"], traces["ce"]["y"]) == ([2.0], ["ce"])
    assert traces["ce"]["error_x"]["array"] == traces["ce"]["error_x"]["arrayminus"] == [1.0], "from seed to seed"
    assert (traces["ce, a seed"]["x"], traces["ce, a seed"]["y"]) == ([1.0, 3.0], ["ce", "ce"])
    assert "error_x" not in traces["kd"]
    assert (traces["published"]["x"], traces["published"]["y"]) == ([6.0], ["kd"])


def test_the_band_of_two_seeds_is_their_range_and_that_of_three_their_interval() -> None:
    assert spread([50.0, 60.0]).reach == pytest.approx(5.0)
    assert spread([50.0, 60.0, 70.0]).reach == spread([50.0, 60.0, 70.0]).half == pytest.approx(24.84, abs=0.01)
    assert spread([50.0]).reach is None


def test_a_band_and_a_bar_end_at_what_can_be() -> None:
    line = Line([1, 2, 3], [2.0, 50.0, 99.0], [30.0, 1.0, 30.0])
    panel = Panel({"kd": line}, "epoch", "top-1", limits=(0.0, 100.0))
    assert panel.band(line) == [(1, 0.0, 32.0), (2, 49.0, 51.0), (3, 69.0, 100.0)]
    on_log = Panel({"kd": line}, "epoch", "loss", log_y=True, limits=(0.0, math.inf))
    assert on_log.band(line)[0] == (1, 2.0, 32.0), "0 has no place on a logarithmic axis"
    values = Values({"kd": [99.0, 97.0, 50.0]}, "top-1", limits=(0.0, 100.0))
    below, above = values.bar(spread(values.of_seeds["kd"])) or (0, 0)
    assert (below, above) == (pytest.approx(68.8, abs=0.1), 18.0)


def test_plotly_takes_every_kind_of_figure() -> None:
    from plotly.graph_objects import Figure

    lines = {"a": Line([1, 3], [1.0, math.nan], [0.5, 0.5]), "<b>x</b>": Line(range(1, 100), [1.0] * 99)}
    charts = [
        *line_charts([Panel(lines, "views", "top-1", log_x=True, log_y=True, levels={"teacher": 1.0})]),
        *value_charts([Values({"a": [1.0, 2.0], "<i>": [3.0]}, "top-1", {"a": 1.0}, "published")]),
        *matrix_charts(Matrices({"a": np.eye(2)})),
        *point_charts(Points({"a": np.zeros((2, 2))}, np.array([0, 1]))),
    ]
    for chart in charts:
        json.dumps(chart, allow_nan=False)
        Figure(dict(chart))  # it refuses unknown keys and values
        assert chart["layout"]["margin"]["t"] >= 35, "room for the buttons above the axes"


def test_a_name_is_never_markup_for_plotly() -> None:
    (lines,) = line_charts([Panel({"<b>a</b>": Line([1], [1.0])}, "x", "y", levels={"<i>t": 1.0})])
    assert lines["data"][0]["name"] == "&lt;b&gt;a&lt;/b&gt;"
    assert lines["layout"]["annotations"][0]["text"] == "&lt;i&gt;t"
    assert lines["data"][0]["legendgroup"] == "<b>a</b>", "the page's legend finds it by this"
    (values,) = value_charts([Values({"<b>": [1.0]}, "top-1")])
    assert values["data"][0]["y"] == ["&lt;b&gt;"]


def test_matrices_share_a_scale_that_is_symmetric() -> None:
    matrices = Matrices({"a": np.array([[0.0, 0.1234]]), "b": np.array([[-0.5, 0.2]])})
    a, b = (figure["data"][0] for figure in matrix_charts(matrices))
    assert (a["zmin"], a["zmax"]) == (b["zmin"], b["zmax"]) == (-0.5, 0.5)
    assert a["z"] == [[0.0, 0.123]]


def test_points_are_coloured_by_label() -> None:
    points = Points({"teacher": np.array([[0.0, 1.239], [2.0, 3.0]])}, np.array([7, 8]))
    (figure,) = point_charts(points)
    (trace,) = figure["data"]
    assert (trace["x"], trace["y"]) == ([0.0, 2.0], [1.24, 3.0])
    assert (trace["marker"]["color"], trace["text"]) == ([7, 8], ["7", "8"])
    assert figure["layout"]["title"]["text"] == "teacher"


@pytest.mark.parametrize("digits", [4, 5])
def test_many_values_are_rounded_as_each_is(digits: int, rng: np.random.Generator) -> None:
    values = [*(rng.normal(size=200) * 10.0 ** rng.integers(-12, 12, 200)).tolist(), 0.0, -0.0, 1.0, 7, 1e300, 5e-324]
    assert all_rounded(values, digits) == [rounded(value, digits) for value in values]
    values += [float("nan"), float("inf")]
    assert all_rounded(values, digits)[-2:] == [None, None]
    assert all_rounded([], digits) == []
