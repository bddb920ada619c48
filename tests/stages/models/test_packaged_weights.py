"""Weights that come with torchvision and timm."""

import socket
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.stages.models import build_network
from dhkd.stages.models.libraries import packaged_weights
from dhkd.stages.models.weights import fit_weights

from tests.stages.models.weight_files import CreatesAFolder, assert_state, copy_of, trained


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No host can be reached; the folder, still missing, in which torch looks for downloaded files."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nin this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_the_error_without_a_connection_is_one_line(offline: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        packaged_weights("torchvision:resnet50", None)
    assert str(caught.value) == (
        "packaged weights of torchvision:resnet50 could not be fetched (<urlopen error no network in this test>);"
        " give a file with --teacher FILE"
    )
    assert not any(offline.iterdir())


def test_packaged_weights_on_disk_need_no_connection(offline: Path) -> None:
    original = trained("torchvision:mobilenet_v3_small", num_classes=1000)
    offline.mkdir(parents=True)
    torch.save(copy_of(original), offline / "mobilenet_v3_small-047dcff4.pth")
    state, colours = packaged_weights("torchvision:mobilenet_v3_small", None)
    assert colours == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = build_network("torchvision:mobilenet_v3_small", 1000)
    fit_weights(network, state, "torchvision:mobilenet_v3_small")
    assert_state(network, copy_of(original))


def test_a_tag_chooses_among_packaged_weights(offline: Path) -> None:
    offline.mkdir(parents=True)
    for number, name in ((1, "mobilenet_v2-b0353104.pth"), (2, "mobilenet_v2-7ebf99e0.pth")):
        torch.save({"number": torch.tensor(number)}, offline / name)
    for tag, number in (("IMAGENET1K_V1", 1), ("IMAGENET1K_V2", 2), (None, 2)):
        assert packaged_weights("torchvision:mobilenet_v2", tag)[0] == {"number": torch.tensor(number)}


def test_code_in_packaged_weights_is_refused_and_not_run(offline: Path, tmp_path: Path) -> None:
    offline.mkdir(parents=True)
    torch.save(CreatesAFolder(tmp_path / "created"), offline / "mobilenet_v3_small-047dcff4.pth")
    with pytest.raises(
        WeightsError, match=r"^packaged weights of torchvision:mobilenet_v3_small could not be fetched"
    ) as caught:
        packaged_weights("torchvision:mobilenet_v3_small", None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("name", "tag", "text"),
    [
        (
            "resnet56",
            None,
            "network resnet56 has no packaged weights: expected torchvision:NAME or timm:NAME;"
            " give a file with --teacher FILE",
        ),
        (
            "torchvision:resnet18",
            "IMAGENET1K_V2",
            "unknown tag of torchvision:resnet18 'IMAGENET1K_V2': did you mean 'IMAGENET1K_V1'?"
            " valid are DEFAULT, IMAGENET1K_V1",
        ),
    ],
)
def test_the_error_for_weights_that_are_not_packaged(name: str, tag: str | None, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        packaged_weights(name, tag)
    assert str(caught.value) == text


def test_the_error_for_weights_of_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown network 'torchvision:resnet19': did you mean"):
        packaged_weights("torchvision:resnet19", None)


def test_networks_of_timm_unweighted_or_of_another_tag() -> None:
    timm = pytest.importorskip("timm", reason="timm is optional")
    unweighted = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(WeightsError) as caught:
        packaged_weights(f"timm:{unweighted}", None)
    assert str(caught.value) == f"packaged weights of timm:{unweighted}: timm has none; give a file with --teacher FILE"
    with pytest.raises(ConfigError, match=r"^unknown tag of timm:resnet18 'a1_in2k': did you mean 'a1_in1k'\?"):
        packaged_weights("timm:resnet18", "a1_in2k")
