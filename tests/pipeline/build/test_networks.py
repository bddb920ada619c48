"""Weights: which file a path means, which network they belong to, and what it was trained with."""

import json
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import WeightsError
from dhkd.pipeline.build.networks import architecture_of, trained_network, weights_file
from dhkd.stages.models import build_network
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.weights import save_weights

MEAN_STD = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def saved(path: Path, **metadata: str) -> Path:
    save_weights(path, build_network("resnet8", 10), metadata)
    return path


def test_a_file_is_itself(tmp_path: Path) -> None:
    assert weights_file(tmp_path / "w.pth", "teacher") == tmp_path / "w.pth", "whether or not it exists"


def test_a_run_holds_one_network(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected a finished run, found no student.safetensors; .* --resume"):
        weights_file(tmp_path, "student")
    teacher = saved(tmp_path / "teacher.safetensors")
    assert weights_file(tmp_path, "student") == teacher, "a teacher serves as a student where there is no other"
    student = saved(tmp_path / "student.safetensors")
    assert weights_file(tmp_path, "student") == student
    assert weights_file(tmp_path, "teacher") == teacher


@pytest.mark.parametrize(
    ("recorded", "architecture"),
    [
        ("simkd:resnet8+resnet14:8x8", "simkd:resnet8+resnet14:8x8"),
        ("simkd:resnet80+resnet14:8x8", "resnet8"),  # of another preset: `trained_network` says how it differs
        ("resnet14", "resnet8"),
    ],
)
def test_the_network_that_simkd_made_is_named_by_the_file(recorded: str, architecture: str, tmp_path: Path) -> None:
    saved(tmp_path / "student.safetensors", architecture=recorded)
    assert architecture_of(tmp_path, "student", Architecture("resnet8")).name == architecture


def test_other_files_do_not_name_their_network(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth", tmp_path / "none.safetensors", Path("packaged:v1")):
        assert architecture_of(path, "student", Architecture("resnet8")) == Architecture("resnet8")


def test_a_network_comes_with_the_normalisation_that_it_was_trained_with(tmp_path: Path) -> None:
    mean, std = map(json.dumps, MEAN_STD)
    file = saved(tmp_path / "w.safetensors", mean=mean, std=std)
    trained = trained_network("resnet8", 10, file, "teacher")
    assert (trained.origin, trained.mean_std) == (str(file), MEAN_STD)
    assert not trained.network.training
    assert trained_network("resnet8", 10, saved(tmp_path / "half.safetensors", mean=mean), "teacher").mean_std is None
    torch.save(trained.network.state_dict(), tmp_path / "w.pth")
    other = trained_network("resnet8", 10, tmp_path / "w.pth", "teacher")
    assert other.mean_std is None
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="are of another architecture"):
        trained_network("resnet14", 10, saved(tmp_path / "w.safetensors"), "teacher")
