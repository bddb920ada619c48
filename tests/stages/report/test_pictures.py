"""Pictures show the figures that they are given, and names look the same everywhere."""

import os
from pathlib import Path

import numpy as np
import pytest
from dhkd.stages.report.figures import Line, Matrices, Panel, Points, Values
from dhkd.stages.report.looks import COLOURS, looks_of
from dhkd.stages.report.pictures import draw_lines, draw_matrices, draw_points, draw_values
from PIL import Image

UP, DOWN = Line([1, 2, 3], [1.0, 2.0, 3.0]), Line([1, 2, 3], [3.0, 2.0, 1.0])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def strokes(svg: str, colour: str) -> int:
    """How many lines of this colour are drawn, those in the legend included."""
    return svg.count(f"stroke: {colour}; stroke-width: 1.5")


def test_a_picture_is_written_as_png_and_svg(tmp_path: Path) -> None:
    files = draw_lines([Panel({"ce": UP}, "x", "y")], "title", tmp_path / "new" / "lr=0.1")
    assert files == [str(tmp_path / "new" / f"lr=0.1.{kind}") for kind in ("png", "svg")]
    assert sorted(os.listdir(tmp_path / "new")) == ["lr=0.1.png", "lr=0.1.svg"]
    height, width, _ = pixels(Path(files[0])).shape
    assert (height, width) == (630, 924), "150 dots an inch"
    assert "<!-- title -->" in Path(files[1]).read_text()


def test_every_value_is_drawn(tmp_path: Path) -> None:
    """Any change of what is given changes the picture, and the same values give the same picture."""
    line = Line([1, 2, 3], [10.0, 30.0, 35.0])
    given = [
        Panel({"ce": line}, "epoch", "top-1"),
        Panel({"ce": Line([1, 2, 3], [10.0, 31.0, 35.0])}, "epoch", "top-1"),
        Panel({"ce": Line([1, 2, 3], [10.0, 30.0, 35.0], [None, 2.0, 2.0])}, "epoch", "top-1"),
        Panel({"ce": Line([1, 2, 3], [10.0, 30.0, 35.0], [1.0, 2.0, 2.0])}, "epoch", "top-1"),
        Panel({"ce": line, "kd": line}, "epoch", "top-1"),
        Panel({"ce": line}, "epoch", "top-5"),
        Panel({"ce": line}, "epoch", "top-1", log_x=True),
        Panel({"ce": line}, "epoch", "top-1", log_y=True),
        Panel({"ce": line}, "epoch", "top-1", levels={"teacher": 55.0}),
        Panel({"ce": line}, "epoch", "top-1", levels={"teacher": 50.0}),
    ]
    drawn = []
    for number, panel in enumerate([*given, given[0]]):
        draw_lines([panel], "title", tmp_path / str(number))
        drawn.append(pixels(tmp_path / f"{number}.png").tobytes())
    assert drawn[-1] == drawn[0]
    assert len(set(drawn)) == len(given)


def test_a_level_is_a_dashed_line_with_an_entry_in_the_legend(tmp_path: Path) -> None:
    panel = Panel({"ce": UP}, "epoch", "top-1", levels={"teacher": 2.5})
    draw_lines([panel, panel], "title", tmp_path / "p")
    svg = (tmp_path / "p.svg").read_text()
    assert svg.count("<!-- teacher -->") == 1
    dashed = [line for line in svg.splitlines() if "stroke-dasharray" in line and "stroke: #808080" in line]
    assert len(dashed) == 3, "one in each panel, and one in the legend"


def test_a_single_line_has_no_legend(tmp_path: Path) -> None:
    draw_lines([Panel({"ce": UP}, "x", "y")], "title", tmp_path / "one")
    assert "<!-- ce -->" not in (tmp_path / "one.svg").read_text()


def test_a_name_has_one_look_in_every_panel_and_one_entry_in_the_legend(tmp_path: Path) -> None:
    """Also in a panel that lacks the names before it."""
    panels = [Panel({"ce": UP}, "x", "y"), Panel({"dhkd": UP, "ce": DOWN}, "x", "y")]
    draw_lines(panels, "two", tmp_path / "two")
    svg = (tmp_path / "two.svg").read_text()
    # matplotlib writes text as paths, with the text itself in a comment.
    assert [svg.count(f"<!-- {name} -->") for name in ("ce", "dhkd")] == [1, 1]
    assert strokes(svg, "#1f77b4") == 3, "ce: in both panels and in the legend"
    assert strokes(svg, "#ff7f0e") == 2, "dhkd: in one panel and in the legend"


def test_thirty_names_have_thirty_looks() -> None:
    looks = looks_of([f"run {number}" for number in range(30)])
    assert len({(look.colour, look.dash) for look in looks.values()}) == 30
    assert [looks["run 0"].dash, looks["run 10"].dash, looks["run 20"].dash] == ["solid", "dashed", "dotted"]
    assert looks["run 10"].colour == looks["run 0"].colour == COLOURS[0]


def test_a_look_is_that_of_a_names_first_place() -> None:
    assert looks_of(["ce", "kd", "ce", "dkd"]) == looks_of(["ce", "kd", "dkd"])


def test_rows_show_seeds_means_and_marks(tmp_path: Path) -> None:
    given = [
        Values({"ce": [1.0, 2.0], "kd": [3.0, 4.0]}, "top-1"),
        Values({"ce": [1.0, 2.0], "kd": [3.0, 4.5]}, "top-1"),
        Values({"ce": [1.0], "kd": [3.0, 4.0]}, "top-1"),
        Values({"ce": [1.0, 2.0], "kd": [3.0, 4.0]}, "top-1", {"ce": 5.0}, "published"),
        Values({"ce": [1.0, 2.0], "kd": [3.0, 4.0]}, "top-1", {"ce": 6.0}, "published"),
    ]
    drawn = []
    for number, values in enumerate([*given, given[0]]):
        draw_values([values], "rows", tmp_path / str(number))
        drawn.append(pixels(tmp_path / f"{number}.png").tobytes())
    assert drawn[-1] == drawn[0]
    assert len(set(drawn)) == len(given)
    assert "<!-- × published -->" in (tmp_path / "3.svg").read_text()
    assert "published" not in (tmp_path / "0.svg").read_text()


def test_matrices_share_a_scale_that_is_symmetric(tmp_path: Path) -> None:
    small, large = np.array([[0.0, 0.1], [0.1, 0.0]]), np.array([[0.0, -0.8], [0.2, 0.0]])
    matrices = Matrices({"small": small, "large": large})
    assert matrices.limit == pytest.approx(0.8)
    draw_matrices(matrices, "both", tmp_path / "both")
    draw_matrices(Matrices({"small": small, "large": small}), "both", tmp_path / "scaled")
    svg = (tmp_path / "both.svg").read_text()
    assert [svg.count(f"<!-- {name} -->") for name in ("small", "large", "both")] == [1, 1, 1]
    left = slice(0, pixels(tmp_path / "both.png").shape[1] // 3)
    assert (pixels(tmp_path / "both.png")[:, left] != pixels(tmp_path / "scaled.png")[:, left]).any()


def test_five_names_take_two_rows(tmp_path: Path) -> None:
    labels_N, points_N2 = np.array([0, 1, 2]), np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    sizes = []
    for count in (4, 5):
        points = Points({f"run {number}": points_N2 for number in range(count)}, labels_N)
        draw_points(points, "points", tmp_path / str(count))
        sizes.append(pixels(tmp_path / f"{count}.png").shape[:2])
    (four_high, four_wide), (five_high, five_wide) = sizes
    assert five_wide == four_wide
    assert five_high > 1.5 * four_high


def test_points_are_coloured_by_label(tmp_path: Path) -> None:
    points_N2 = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    for name, labels in (("all", [0, 1, 2]), ("two", [0, 0, 2])):
        draw_points(Points({"run": points_N2}, np.array(labels)), "points", tmp_path / name)
    assert (pixels(tmp_path / "all.png") != pixels(tmp_path / "two.png")).any()
