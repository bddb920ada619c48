"""Export: one file with the network of a run."""

from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.pipeline.export import export
from dhkd.stages.models import build_network
from dhkd.stages.models.weights import read_metadata, save_weights

METADATA = {"architecture": "resnet8", "num_classes": "10", "mean": "[0.5, 0.5, 0.5]"}


def test_a_file_keeps_what_it_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "student.safetensors", build_network("resnet8", 10), METADATA)
    result = export(tmp_path / "run", tmp_path / "s.safetensors")
    assert (result.file, result.metadata) == (str(tmp_path / "s.safetensors"), METADATA)
    assert read_metadata(tmp_path / "s.safetensors") == METADATA
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "run" / "student.safetensors").read_bytes()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_text("precious")
    with pytest.raises(ConfigError, match=r"--out .*: expected a new file, it exists"):
        export(tmp_path, tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").read_text() == "precious"


def test_weights_that_do_not_name_their_network(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, build_network("resnet8", 10), {"architecture": "resnet8"})
    with pytest.raises(WeightsError, match="expected weights written by dhkd, it does not say its num_classes"):
        export(file, tmp_path / "s.safetensors")
    save_weights(file, build_network("resnet8", 10), {})
    with pytest.raises(WeightsError, match="does not say its architecture and num_classes"):
        export(file, tmp_path / "s.safetensors")
