"""Model cards: what they say of a run, in the form that hubs read, and the settings from which it can be repeated."""

import re
from pathlib import Path

import pytest
import yaml
from dhkd.configs.load import load_experiment
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import WeightsError
from dhkd.data.runs.names import CLASSES, CONFIG, RESULT
from dhkd.pipeline.card import model_card
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.sweep import sweep
from huggingface_hub import ModelCard

from tests.pipeline.conftest import experiment_of


@pytest.fixture(scope="module")
def swept(reader: LogitReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two seeds, and of another method with one."""
    out = tmp_path_factory.mktemp("runs") / "sweep"
    experiments = {f"kd-{seed}": experiment_of("objective=kd", f"seed={seed}") for seed in range(2)}
    experiments["ce-0"] = experiment_of("objective=ce", "student.ema=0.5")
    sweep(experiments, reader.location, out, command="", data=DataOptions(), together=3, track=["none"], cpu=True)
    return out


def front_matter(card: str) -> dict[str, object]:
    tree = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(tree, dict)
    return tree


def test_a_hub_reads_the_accuracy(swept: Path) -> None:
    card = ModelCard(model_card(swept / "kd-0", name="tiny"), ignore_metadata_errors=False)
    assert (card.data.model_name, card.data.pipeline_tag) == ("tiny", "image-classification")
    assert card.data.eval_results is not None
    top1, top5 = card.data.eval_results
    result = yaml.safe_load((swept / "kd-0" / RESULT).read_text())
    assert (top1.dataset_name, top1.dataset_split, top1.metric_type) == ("digits", "test", "accuracy")
    assert (top1.metric_value, top5.metric_value) == (round(result["last_top1"], 2), round(result["last_top5"], 2))


def test_it_says_what_was_trained_on_what_and_how_good_it_is(swept: Path, reader: LogitReader) -> None:
    result = yaml.safe_load((swept / "kd-0" / RESULT).read_text())
    card = model_card(swept / "kd-0", files=["s.onnx", "a b.pt2"])
    assert re.search(rf"Top-1 accuracy \| {result['last_top1']:.2f} % \| [\d.]+ to [\d.]+ % \|", card)
    assert "the 20 images on which the network was tested" in card
    assert "| Mean of 2 runs that differ only in their seed |" in card
    assert "The teacher's top-1 accuracy" in card
    assert f"identity `{result['cache']['digest']}`" in card
    assert "dhkd predict 'a b.pt2' photo.jpg" in card
    assert "dhkd cache-teacher settings.yaml --teacher TEACHER --views 2 --out caches/teacher.zarr" in card
    assert "dhkd train-student settings.yaml --cache caches/teacher.zarr --out runs/student" in card
    assert str(Path(reader.location).parent) not in card, "a path of this machine"
    assert front_matter(card)["tags"] == ["image-classification", "pytorch", "knowledge-distillation"]
    assert "Mean of" not in model_card(swept / "ce-0")


def test_its_settings_are_those_of_the_run(swept: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", model_card(swept / "kd-1"), re.DOTALL)
    (tmp_path / "settings.yaml").write_text(blocks[0])
    assert load_experiment(str(tmp_path / "settings.yaml")) == load_experiment(str(swept / "kd-1"))


def test_the_average_has_its_own_figures(swept: Path) -> None:
    result = yaml.safe_load((swept / "ce-0" / RESULT).read_text())
    card = model_card(swept / "ce-0", ema=True)
    assert f"| Top-1 accuracy | {result['last_ema_top1']:.2f} % |" in card
    assert result["ema_sha256"] in card
    with pytest.raises(WeightsError, match="expected an average of the weights, the run kept none"):
        model_card(swept / "kd-0", ema=True)


def test_names_of_strangers_stay_text(swept: Path, tmp_path: Path) -> None:
    """Neither YAML, nor HTML, nor a table's cells, nor the fences around them."""
    for name in (CONFIG, RESULT):
        text = (swept / "kd-0" / name).read_text()
        forged = text.replace("digits.zarr", "x").replace('"objective": "kd"', '"objective": "a|`<b>\\n---\\nkd"')
        (tmp_path / name).write_text(forged.replace("objective: kd", 'objective: "```\\n# kd"'))
    (tmp_path / CLASSES).write_text("```\n<script>\nc\n")
    card = model_card(tmp_path, name=None)
    assert "`a¦'<b>\\n---\\nkd`" in card
    assert card.count("````\n```\n<script>\nc\n````") == 1
    assert "\n# kd" not in card.replace("\n  # kd", "")
    assert front_matter(card)["library_name"] == "dhkd"


def test_only_finished_runs_have_cards(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected a finished run with config.yaml and result.json, found none"):
        model_card(tmp_path)
    (tmp_path / CONFIG).write_bytes((swept / "kd-0" / CONFIG).read_bytes())
    with pytest.raises(WeightsError, match="finish it first"):
        model_card(tmp_path)
