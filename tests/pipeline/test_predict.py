"""Prediction: the classes of files and of splits, by a run and by every kind of file."""

import json
from pathlib import Path

import numpy as np
import pytest
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.recipes.preparation import Preparation
from dhkd.data.sources.base import Place
from dhkd.data.sources.digits import load
from dhkd.pipeline.build.described import PREPARATION
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.evaluation import evaluate_network
from dhkd.pipeline.export import export
from dhkd.pipeline.predict import Wanted, predict
from dhkd.pipeline.results import Predicted
from dhkd.pipeline.training import train_student
from dhkd.stages.models import build_network
from dhkd.stages.models.weights import read_metadata, save_weights
from PIL import Image

from tests.e2e.command_line import assert_one_line, dhkd
from tests.pipeline.conftest import experiment_of

TEST = Wanted(split="test")


def classes_of(result: Predicted) -> list[list[tuple[int, float]]]:
    return [[(one.number, round(one.probability, 5)) for one in of_image.classes] for of_image in result.predictions]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits, which has learned something."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    experiment = experiment_of("objective=ce", "data.limit=400", "student.ema=0.5", "student.lr=0.02")
    train_student(experiment, None, out, data=DataOptions(), track=["none"], cpu=True)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test images as files: some in a folder inside, and one in another mode and size."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "inside").mkdir()
    for index, pixels_CHW in enumerate(load("test", Place()).images_NCHW[:4]):
        place = folder / "inside" if index > 1 else folder
        Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy()).save(place / f"{index}.png")
    Image.fromarray(np.full((11, 30), 200, np.uint8)).convert("P").save(folder / "wide.gif")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_accuracy_on_a_split_is_the_one_of_evaluate(run: Path) -> None:
    evaluated = evaluate_network(experiment_of("objective=ce"), run, "student", data=DataOptions(), cpu=True)
    predicted = predict(run, TEST, cpu=True)
    assert predicted.top1 == evaluated.top1 > 20
    assert (len(predicted.predictions), predicted.unreadable) == (20, {})
    assert predict(run, TEST, ema=True, cpu=True).predictions != predicted.predictions


def test_files_are_predicted_as_the_test_images_that_they_are(run: Path, pictures: Path) -> None:
    of_split = classes_of(predict(run, TEST, cpu=True))[:4]
    of_files = predict(run, Wanted([pictures]), cpu=True, batch=2)
    names = [Path(one.image).name for one in of_files.predictions]
    assert names == ["0.png", "1.png", "wide.gif", "2.png", "3.png"]
    by_name = dict(zip(names, classes_of(of_files), strict=True))
    assert [by_name[f"{index}.png"] for index in range(4)] == of_split
    assert of_files.predictions[0].classes[0].name == str(of_files.predictions[0].classes[0].number)


def test_a_file_of_weights_predicts_what_its_run_does(run: Path, pictures: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "s.safetensors")
    wanted = Wanted([pictures / "inside", str(pictures / "*.gif")])
    assert classes_of(predict(tmp_path / "s.safetensors", wanted, cpu=True)) == classes_of(
        predict(run, wanted, cpu=True)
    )
    everything = predict(tmp_path / "s.safetensors", Wanted(split="test", source="digits"), cpu=True)
    assert len(everything.predictions) == 360


def test_weights_that_record_no_preparation_take_it_from_their_run(run: Path, pictures: Path, tmp_path: Path) -> None:
    """As those of earlier versions."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    metadata = read_metadata(run / "student.safetensors")
    assert json.loads(metadata.pop(PREPARATION)) == Preparation(8, 8, 3).plain()
    network = build_network("resnet8", 10)
    save_weights(old / "student.safetensors", network, metadata)
    assert len(predict(old, Wanted([pictures]), cpu=True).predictions) == 5
    with pytest.raises(WeightsError, match="expected to read how images are prepared, found nothing"):
        predict(old / "student.safetensors", Wanted([pictures]), cpu=True)


def test_each_image_that_cannot_be_read_is_told_and_the_others_are_predicted(
    run: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    named = [tmp_path / "cut.png", tmp_path / "empty", pictures / "0.png", "no.png", "no/*.png", pictures / "notes.txt"]
    result = predict(run, Wanted(named), cpu=True, batch=1)
    assert [Path(one.image).name for one in result.predictions] == ["0.png"]
    assert {Path(name).name: reason.partition(" (")[0] for name, reason in result.unreadable.items()} == {
        "cut.png": "a damaged image",
        "empty": "a folder without images",
        "no.png": "no such file",
        "*.png": "a pattern that matches no image",
        "notes.txt": "no image in a known format",
    }
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert lines == [f"{name}: expected an image, got: {reason}" for name, reason in result.unreadable.items()]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, r"expected files, or the split of a data set \(--split test\), got neither"),
        ({"files": ["a.png"], "split": "test"}, "got both"),
        ({"files": ["a.png"], "source": "digits"}, "--source digits: expected --split beside it, got none"),
    ],
)
def test_images_are_of_one_kind(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wanted(**wanted)  # type: ignore[arg-type]


def test_files_without_what_a_prediction_needs(run: Path, tmp_path: Path) -> None:
    file, network = tmp_path / "w.safetensors", build_network("resnet8", 10)
    metadata = read_metadata(run / "student.safetensors")
    for changes, message in (
        ({"architecture": None}, "does not say its architecture"),
        ({"mean": None}, "does not say its mean and std"),
        ({"std": "[0, 1, 1]"}, "expected a finite mean and a positive std"),
        ({"mean": "[NaN, 0, 0]"}, "expected a finite mean and a positive std"),
        ({"resizing": '{"size": 1e9}'}, "expected a size and an interpolation as resizing"),
        (
            {PREPARATION: '{"height": 8, "width": 8, "channels": 3, "resize": 4, "interpolation": "bilinear"}'},
            "nothing",
        ),
        ({PREPARATION: "[["}, "found nothing"),
    ):
        kept = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
        save_weights(file, network, kept)
        with pytest.raises(WeightsError, match=message):
            predict(file, Wanted(["x.png"]), cpu=True)
    with pytest.raises(ConfigError, match="expected --source beside --split"):
        predict(run / "student.safetensors", TEST, cpu=True)
    with pytest.raises(ConfigError, match="expected a network of 100 classes, as glyphs has, got one of 10"):
        predict(run / "student.safetensors", Wanted(split="test", source="glyphs"), cpu=True)


def test_programs_of_strangers(tmp_path: Path) -> None:
    (tmp_path / "p.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ConfigError, match="runs code that they may hold; expected --allow-code"):
        predict(tmp_path / "p.pt2", Wanted(["x.png"]), cpu=True)
    with pytest.raises(WeightsError, match=r"expected a file of torch.export, got:"):
        predict(tmp_path / "p.pt2", Wanted(["x.png"]), cpu=True, allow_code=True)
    with pytest.raises(WeightsError, match=r"q.onnx: expected a file, found none"):
        predict(tmp_path / "q.onnx", Wanted(["x.png"]), cpu=True)


def test_the_command_predicts_what_it_can_and_exits_with_1(run: Path, pictures: Path) -> None:
    outcome = dhkd("predict", run, pictures / "notes.txt", pictures / "inside", "--top", 2, "--cpu")
    lines = outcome.out.splitlines()
    assert (outcome.code, len(lines), lines[0].split()) == (1, 3, ["image", "class", "then"])
    assert f"{pictures / 'notes.txt'}: expected an image, got: no image in a known format" in outcome.err
    assert "error: 1 of 3 images could not be read; the lines above say why" in outcome.err
    outcome = dhkd("predict", run, "--split", "test", "--json", "--cpu")
    tree = json.loads(outcome.out)
    assert (outcome.code, tree["unreadable"], len(tree["predictions"])) == (0, {}, 20)
    assert tree["top1"] == predict(run, TEST, cpu=True).top1
    assert_one_line(dhkd("predict", run, "--cpu"), 2, ["expected files, or the split of a data set", "got neither"])
