"""The example data set of docs/extending.md works with the whole program once it has a line in `SOURCES`."""

from pathlib import Path

import numpy as np
import pytest
from dhkd.data.sources import SOURCES

from tests.e2e.command_line import assert_one_line, dhkd, done
from tests.extending.examples import example
from tests.samples import make_images

WORDS = ["--set", "data=numpy-files", "--set", "teacher=resnet8", "--set", "teacher.epochs=1", "--cpu"]
WORDS += ["--set", "teacher.batch_size=20"]  # of 60 images


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of both splits."""
    monkeypatch.setitem(SOURCES, "numpy-files", example("A data set")["SOURCE"])
    for seed, split in enumerate(("train", "test")):
        images = make_images(60, seed=seed)
        np.save(tmp_path / f"{split}-images.npy", images.images_NCHW.numpy())
        np.save(tmp_path / f"{split}-labels.npy", images.labels_N.numpy())
    return tmp_path


def test_a_teacher_is_trained_on_it(root: Path) -> None:
    words = ["train-teacher", "digits", *WORDS, "--data-root", root, "--out", root / "teacher", "--json"]
    assert done(*words).result["epochs"] == 1
    evaluated = done("evaluate", root / "teacher", "--data-root", root, "--cpu", "--json").result
    assert evaluated["samples"] == 60


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "numpy-files: expected the folder of its files; name it with --data-root"),
        (["--data-root", "nowhere"], 1, "numpy-files: nowhere/train-images.npy: No such file or directory"),
        (["--set", "data.num_classes=5"], 2, "data.num_classes: numpy-files has its own; leave it out"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], code: int, line: str, root: Path) -> None:
    assert_one_line(dhkd("train-teacher", "digits", *WORDS, *words, "--out", root / "never"), code, [line])
