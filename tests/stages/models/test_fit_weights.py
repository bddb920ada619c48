"""Weights that don't fit a network are refused as a whole, and the error lists what differs."""

import re

import pytest
import torch
from dhkd.data.errors import WeightsError
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.weights import fit_weights, weights_sha256
from torch import Tensor, nn

from tests.stages.models.weight_files import CLASSES, assert_state, copy_of, trained


def test_entries_of_auxiliary_classifiers_are_left_out() -> None:
    googlenet = build_network("torchvision:googlenet", CLASSES)
    state = copy_of(googlenet)
    fit_weights(googlenet, {"aux1.fc1.weight": torch.zeros(3), **state, "aux2.conv.bn.bias": torch.zeros(2)}, "w")
    assert "aux3.fc1.weight expected nothing, got 3" in unfit(googlenet, {**state, "aux3.fc1.weight": torch.zeros(3)})


def test_published_densenets_have_older_names() -> None:
    original, network = (build_network("torchvision:densenet121", CLASSES) for _ in range(2))
    older = {
        re.sub(r"(denselayer[0-9]+[.](norm|conv))(.)[.]", r"\1.\3.", name): tensor
        for name, tensor in copy_of(original).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    fit_weights(network, older, "w")
    assert_state(network, copy_of(original))


def unfit(network: nn.Module, state: dict[str, Tensor]) -> str:
    """The message of `fit_weights`, which must leave the network as it was."""
    before = copy_of(network)
    with pytest.raises(WeightsError) as caught:
        fit_weights(network, state, "teacher.pth")
    assert_state(network, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_classes_are_listed_with_both_shapes(network: Network) -> None:
    assert unfit(trained(num_classes=7), copy_of(network)) == (
        "weights teacher.pth: expected 7 classes, got 5 (fc.weight expected 7×64, got 5×64; fc.bias expected 7, got 5);"
        " name weights that were trained on this data set's classes"
    )


def test_a_deeper_network_lists_the_first_names_that_are_missing(network: Network) -> None:
    text = unfit(trained("resnet14"), copy_of(network))
    assert "layer1.1.conv1.weight expected 16×16×3×3, got nothing; layer1.1.bn1.weight expected 16, got nothing" in text
    # Three blocks with two convolutions and two norms of four tensors each; three tensors are listed.
    assert f"; layer1.1.bn1.bias expected 16, got nothing and {3 * (2 + 2 * 4) - 3} more; check" in text


def test_a_shallower_network_lists_the_names_that_are_too_many(network: Network) -> None:
    text = unfit(trained(), copy_of(trained("resnet14")))
    assert "layer1.1.conv1.weight expected nothing, got 16×16×3×3" in text


def test_a_wide_resnet_of_another_width_lists_the_first_shapes() -> None:
    text = unfit(build_network("wrn_40_2", CLASSES), copy_of(build_network("wrn_40_1", CLASSES)))
    assert text.startswith(
        "weights teacher.pth are of another architecture:"
        " block1.layer.0.conv1.weight expected 32×16×3×3, got 16×16×3×3;"
        " block1.layer.0.bn2.weight expected 32, got 16; block1.layer.0.bn2.bias expected 32, got 16 and "
    )


def test_one_missing_tensor_and_a_scalar_in_place_of_another() -> None:
    state = copy_of(trained(seed=1))
    del state["bn1.running_mean"]
    state["fc.bias"] = torch.tensor(1.0)
    text = unfit(trained(), state)
    assert "bn1.running_mean expected 16, got nothing; fc.bias expected 5, got a scalar; check" in text


@pytest.mark.parametrize("name", ["conv1.weight", "layer3.0.bn2.running_var", "fc.bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    state = copy_of(trained(seed=1))
    state[name].view(-1)[-1] = bad
    assert f"weights teacher.pth: {name} has values that are not finite" in unfit(trained(), state)


def test_a_file_in_half_precision_fits_and_becomes_float32(network: Network) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in copy_of(network).items()}
    other = trained(seed=1)
    fit_weights(other, state, "teacher.pth")
    assert other.get_parameter("conv1.weight").dtype == torch.float32
    assert torch.equal(other.get_parameter("conv1.weight"), state["conv1.weight"].float())


def test_a_counter_of_another_shape_is_refused_or_left_out() -> None:
    network, state = trained(), copy_of(trained(seed=1))
    state["bn1.num_batches_tracked"] = torch.zeros(3, dtype=torch.int64)
    before, expected = weights_sha256(network), weights_sha256(trained(seed=1))
    try:
        fit_weights(network, state, "teacher.pth")
    except WeightsError:
        expected = before
    assert weights_sha256(network) == expected


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((CLASSES,), 1e300, dtype=torch.float64),
        torch.ones(CLASSES, dtype=torch.complex64),
        torch.ones(CLASSES).to_sparse(),
    ],
    ids=["infinite in float32", "complex", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_tensors_that_a_network_cannot_hold_are_refused(tensor: Tensor) -> None:
    state = copy_of(trained(seed=1))
    state["fc.bias"] = tensor
    assert "fc.bias" in unfit(trained(), state)
