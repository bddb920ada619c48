"""Rows and arrays of analyses are read from their files as they were written."""

import math
from pathlib import Path

import numpy as np
import pytest
from dhkd.pipeline.report.arrays import read_correlation, read_tsne, write_arrays
from dhkd.pipeline.report.rows import (
    Analysis,
    ConflictRow,
    EpochRow,
    EtfRow,
    PointsRow,
    Row,
    ViewsRow,
    analysis_json,
    read_rows,
    write_rows,
)

ROWS: list[Row] = [
    ViewsRow("kd, lr=0.1", 3, 2, 61.25, 0.1, 1 / 3, 450, 1e-9, 9000),
    ViewsRow("kd", 1, 1, 61.0, None, None, None, None, None),
    EpochRow("kd", 1, 1, 61.0, None, 2.5, None, None, None),
    ConflictRow("dhkd", 1, 10, "features", -0.25, 0.75, 1.0, 2.0, None, None),
    EtfRow("teacher", None, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_are_read_as_they_were_written(row: Row, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", type(row), [row, row])
    assert read_rows(tmp_path / "rows.csv", type(row)) == [row, row]


def test_a_number_that_is_none_stays_so(tmp_path: Path) -> None:
    """A cosine is NaN if one of the losses acts on no row; that is not an empty field."""
    row = ConflictRow("kd", 0, 0, "classifier", math.nan, math.nan, None, None, None, None)
    write_rows(tmp_path / "rows.csv", ConflictRow, [row])
    (read,) = read_rows(tmp_path / "rows.csv", ConflictRow)
    assert math.isnan(read.cosine)
    assert read.ce_pull is None


def test_a_file_names_its_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", EtfRow, [EtfRow("teacher", None, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
    assert (tmp_path / "rows.csv").read_text() == (
        "runs,seed,within_class,features_etf,classifier_etf,norms,angles,duality\nteacher,,1.0,2.0,3.0,4.0,5.0,6.0\n"
    )


def test_without_a_file_there_are_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "rows.csv", EtfRow) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("runs,views\nkd,1\n", KeyError),
        ("runs,points\nkd,many\n", ValueError),
        ("runs,points\nkd,\n", ValueError),
        ("runs,points\nkd\n", TypeError),
    ],
    ids=["other columns", "no number", "empty", "short"],
)
def test_a_file_that_was_edited_is_refused(text: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(error):
        read_rows(tmp_path / "rows.csv", PointsRow)


def test_an_analysis_as_json() -> None:
    analysis = Analysis([PointsRow("kd", 60)], ["tsne.npz"])
    assert analysis_json(analysis) == {"rows": [{"runs": "kd", "points": 60}], "files": ["tsne.npz"]}


def test_differences_of_correlation_are_read_in_the_order_of_the_comparison(tmp_path: Path) -> None:
    arrays = {"teacher": np.eye(2), "ce": np.zeros((2, 2)), "kd": np.ones((2, 2)), "gone": np.full((2, 2), 2.0)}
    write_arrays(tmp_path / "c.npz", arrays)
    matrices = read_correlation(tmp_path / "c.npz", ["kd", "absent", "ce"]).by_name
    assert list(matrices) == ["kd", "ce", "gone"], "the teacher's is no difference"
    np.testing.assert_array_equal(matrices["kd"], np.ones((2, 2)))
    assert read_correlation(tmp_path / "none.npz", ["kd"]).by_name == {}


def test_points_are_read_with_the_teacher_first(tmp_path: Path) -> None:
    points_N2 = np.array([[0.0, 1.0], [2.0, 3.0]])
    write_arrays(tmp_path / "t.npz", {"ce": points_N2, "teacher": -points_N2, "labels": np.array([7, 8])})
    points = read_tsne(tmp_path / "t.npz", ["ce"])
    assert list(points.by_name) == ["teacher", "ce"]
    np.testing.assert_array_equal(points.by_name["teacher"], -points_N2)
    assert points.labels_N.tolist() == [7, 8]
    assert read_tsne(tmp_path / "none.npz", ["ce"]).by_name == {}
