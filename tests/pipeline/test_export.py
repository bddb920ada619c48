"""Export: one file with the network of a run, in every format, for every family of networks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.images.channels import grey_of
from dhkd.data.images.resizing import Resizing
from dhkd.data.render import Normalization
from dhkd.pipeline import export as exporting
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.export import export
from dhkd.pipeline.predict import Wanted, predict
from dhkd.pipeline.training import train_student
from dhkd.stages.models import NETWORKS, build_network
from dhkd.stages.models.network import Network
from dhkd.stages.models.onnx_file import open_onnx, write_onnx
from dhkd.stages.models.pixels import OnPixels
from dhkd.stages.models.program_file import open_program, write_program
from dhkd.stages.models.weights import read_metadata, save_weights
from torch import Tensor, nn

from tests.few import few
from tests.pipeline.conftest import experiment_of

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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits, on 20 test images."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    train_student(experiment_of("objective=ce"), None, out, data=DataOptions(), track=["none"], cpu=True)
    return out


@pytest.mark.parametrize("name", few(["s.onnx", "s.pt2"], ["s.onnx"]))
def test_a_program_predicts_what_its_run_does(name: str, run: Path, tmp_path: Path) -> None:
    """The one of onnxruntime and that of torch.export, which normalise pixels themselves."""
    result = export(run, tmp_path / name, card=True)
    assert result.compared is not None
    assert (result.compared.samples, result.compared.images, result.compared.top1_changed) == (20, "test images", 0)
    assert result.compared.largest_difference < 1e-4
    assert f"dhkd predict {name} photo.jpg" in (tmp_path / "README.md").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["README.md", name])
    of_run = predict(run, Wanted(split="test"), cpu=True)
    of_file = predict(tmp_path / name, Wanted(split="test", source="digits"), cpu=True, allow_code=True)
    assert [one.classes[0].name for one in of_file.predictions[:20]] == [
        one.classes[0].name for one in of_run.predictions
    ]
    for ours, theirs in zip(of_run.predictions, of_file.predictions, strict=False):
        assert [one.probability for one in ours.classes] == pytest.approx(
            [one.probability for one in theirs.classes], abs=1e-5
        )


def test_a_file_that_computes_something_else_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here an exporter that writes other weights takes the place of torch's."""

    def write(path: Path, network: nn.Module, example_BCHW: Tensor, metadata: Mapping[str, str]) -> None:
        path.write_text("a program")

    def open_file(path: Path) -> Callable[[Tensor], Tensor]:
        assert path.read_text() == "a program"
        return lambda pixels_BCHW: torch.full((len(pixels_BCHW), 10), float("nan"))

    monkeypatch.setattr(exporting, "_FORMATS", {".onnx": (write, open_file)})
    with pytest.raises(WeightsError, match=r"s.onnx: expected the network's logits for 20 test images up to .*, got"):
        export(run, tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_to_check_it_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    weights = tmp_path / "run" / "student.safetensors"
    weights.write_bytes((run / "student.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="got a file; check it on random images with --without-data"):
        export(weights, tmp_path / "s.onnx")
    with pytest.raises(ConfigError, match=r"--card: expected a run's folder, whose results a card shows"):
        export(weights, tmp_path / "s.safetensors", card=True)
    save_weights(weights, build_network("resnet8", 10), {**METADATA, "std": "[1, 1, 1]"})
    with pytest.raises(ConfigError, match="expected the size of its images in its metadata, found none"):
        export(weights, tmp_path / "s.pt2", without_data=True)
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize(
    ("channels", "mean", "resizing"),
    [
        (3, (0.4, 0.5, 0.6), None),
        (3, (0.4,), None),
        (1, (0.4, 0.4, 0.4), None),
        (3, (0.4, 0.5, 0.6), Resizing(20, "bicubic")),
    ],
)
def test_pixels_are_normalised_to_the_bit(channels: int, mean: tuple[float, ...], resizing: Resizing | None) -> None:
    """Colours become grey, and grey is repeated, as for a run's network."""
    pixels = torch.randint(256, (8, channels, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0] = 255  # the largest sum of weighted colours
    std = tuple(0.2 + 0.01 * position for position in range(len(mean)))
    network = _Shows()
    shown = OnPixels(network, mean, std, channels, resizing)(pixels)
    assert torch.equal(shown, Normalization(mean, std, resizing)(pixels).flatten(1))
    if channels > len(mean):
        grey = OnPixels(network, (0.0,), (1 / 255,), channels)(pixels).view(8, 1, 12, 12)
        assert torch.equal(grey.round().to(torch.uint8), grey_of(pixels))


class _Shows(Network):
    """A network whose logits are its input."""

    embedding_dim, head_name = None, None

    def logits_of(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1)

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> object:  # type: ignore[override]
        raise NotImplementedError

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        raise NotImplementedError


FAMILIES = [
    *NETWORKS,
    "simkd:resnet8+resnet14",
    *(f"torchvision:{name}" for name in ("resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5")),
    *(f"torchvision:{name}" for name in ("efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t", "googlenet")),
    *(f"timm:{name}" for name in ("resnet10t", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050")),
]


@pytest.mark.parametrize("name", few(FAMILIES, []))
def test_every_family_can_be_written_for_other_programs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(name, 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    size = 224 if ":" in name and not name.startswith("simkd") else 32
    module = OnPixels(network, (0.5, 0.45, 0.4), (0.25, 0.26, 0.27), 3).eval()
    pixels = torch.randint(256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BK = torch.cat([module(pixels), module(pixels[:1])])
    write_onnx(tmp_path / "n.onnx", module, pixels[:2], {"a": "é"})
    write_program(tmp_path / "n.pt2", module, pixels[:2], {"a": "é"})
    for metadata, logits_of in (
        open_onnx(tmp_path / "n.onnx"),
        open_program(tmp_path / "n.pt2", torch.device("cpu"), allow_code=True),
    ):
        assert metadata == {"a": "é"}
        found_BK = torch.cat([logits_of(pixels), logits_of(pixels[:1])])
        assert torch.allclose(found_BK, expected_BK, rtol=1e-4, atol=1e-5 * float(expected_BK.abs().max()))


class _Counts(_Shows):
    """A network that depends on values of its input in a way that no graph has."""

    def logits_of(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1) * float(images_BCHW.sum())


def test_a_network_that_cannot_be_written_says_so_in_a_line(tmp_path: Path) -> None:
    network = OnPixels(_Counts(), (0.5,), (0.25,), 1)
    pixels = torch.zeros((2, 1, 4, 4), dtype=torch.uint8)
    with pytest.raises(
        WeightsError, match=r"torch.export can't write this network \(.*\); write .safetensors"
    ) as error:
        write_program(tmp_path / "n.pt2", network, pixels, {})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(b"\x08\x07 nothing")
    with pytest.raises(WeightsError, match=r"n.onnx: expected an ONNX file, got: ") as error:
        open_onnx(tmp_path / "n.onnx")
    assert "\n" not in str(error.value)
