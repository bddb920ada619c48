"""Pictures show the figures that they are given."""

import os
from pathlib import Path

import numpy as np
from dhkd.stages.report.pictures import Line, Panel, Values, accuracy_curves, draw_lines, draw_values
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_curves_are_a_readable_picture(tmp_path: Path) -> None:
    path = tmp_path / "new" / "accuracy.png"
    accuracy_curves({"ce": [10.0, 30.0, 35.0], "dhkd": [12.0, 40.0, 47.5]}, 55.0, "resnet20 → resnet8", path)
    assert os.listdir(path.parent) == ["accuracy.png"]
    assert pixels(path).shape == (675, 1050, 3)


def test_curves_show_every_run_and_the_teacher(tmp_path: Path) -> None:
    """Any change of what is given changes the picture, and the same values give the same one."""
    given: list[tuple[dict[str, list[float]], float, str]] = [
        ({"ce": [10.0, 30.0]}, 55.0, "title"),
        ({"ce": [10.0, 31.0]}, 55.0, "title"),
        ({"kd": [10.0, 30.0]}, 55.0, "title"),
        ({"ce": [10.0, 30.0]}, 50.0, "title"),
    ]
    pictures = []
    for number, (curves, teacher_top1, title) in enumerate([*given, given[0]]):
        accuracy_curves(curves, teacher_top1, title, tmp_path / f"{number}.png")
        pictures.append(pixels(tmp_path / f"{number}.png").tobytes())
    assert pictures[-1] == pictures[0]
    assert len(set(pictures)) == len(given)


def test_more_runs_than_markers_and_a_single_epoch(tmp_path: Path) -> None:
    accuracy_curves({f"run {n}": [float(n)] for n in range(9)}, 55.0, "many", tmp_path / "p.png")
    few = {f"run {n}": [float(n)] for n in range(8)}
    accuracy_curves(few, 55.0, "many", tmp_path / "q.png")
    assert (pixels(tmp_path / "p.png") != pixels(tmp_path / "q.png")).any()


def test_a_name_has_one_look_in_every_panel_and_one_entry_in_the_legend(tmp_path: Path) -> None:
    """Also where a panel lacks it."""
    line = Line([1, 2, 3], [1.0, 2.0, 3.0])
    panels = [Panel({"ce": line}, "x", "y"), Panel({"dhkd": line, "ce": Line([1, 2, 3], [3.0, 2.0, 1.0])}, "x", "y")]
    draw_lines(panels, "two", tmp_path / "two")
    written = (tmp_path / "two.svg").read_text()
    # matplotlib writes text as paths, with the text itself in a comment.
    assert [written.count(f"<!-- {name} -->") for name in ("ce", "dhkd")] == [1, 1]
    blue, orange = (written.count(f"stroke: {colour}; stroke-width: 1.5") for colour in ("#1f77b4", "#ff7f0e"))
    assert (blue, orange) == (3, 2), "ce's two lines and dhkd's one, and each once in the legend"


def test_rows_show_seeds_and_marks(tmp_path: Path) -> None:
    drawn = []
    for number, values in enumerate(
        (
            Values({"ce": [1.0, 2.0], "kd": [3.0, 4.0]}, "top-1"),
            Values({"ce": [1.0, 2.0], "kd": [3.0, 4.5]}, "top-1"),
            Values({"ce": [1.0, 2.0], "kd": [3.0, 4.0]}, "top-1", {"ce": 5.0}, "published"),
        )
    ):
        draw_values([values], "rows", tmp_path / str(number))
        drawn.append(pixels(tmp_path / f"{number}.png").tobytes())
    assert len(set(drawn)) == 3
    assert "<!-- × published -->" in (tmp_path / "2.svg").read_text()
