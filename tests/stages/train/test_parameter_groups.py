"""Groups of parameters: which decay, and how fast each layer learns."""

from collections.abc import Iterable

import pytest
import torch
from dhkd.data import own_code
from dhkd.data.errors import OwnCodeError
from dhkd.data.own_code import offer
from dhkd.stages.models import NETWORKS, build_network
from dhkd.stages.models.student import Student, auxiliary_head
from dhkd.stages.train.optimizers import Rates
from dhkd.stages.train.parameter_groups import SCALE, Decay, layers_of, parameter_groups
from torch import nn

needs_timm = pytest.mark.skipif("not __import__('importlib').util.find_spec('timm')", reason="timm is not installed")


@pytest.fixture(autouse=True)
def nothing_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "_known", own_code._Known())


def student_of(name: str) -> Student:
    backbone = build_network(name, 10)
    return Student(backbone, auxiliary_head("nonlinear", backbone, 10) if backbone.embedding_dim else None)


def factors(student: nn.Module, decay: Decay) -> dict[str, tuple[float, float]]:
    """Return the weight decay and the factor of the rate of each parameter, by name."""
    of = {
        id(parameter): (group["weight_decay"], group[SCALE])
        for group in parameter_groups(student, decay)
        for parameter in group["params"]  # type: ignore[attr-defined]  # a list
    }
    return {name: of[id(parameter)] for name, parameter in student.named_parameters()}  # type: ignore[misc]


def test_a_plain_decay_is_one_group_of_all() -> None:
    student = student_of("resnet8")
    (group,) = parameter_groups(student, Decay(0.1))
    assert group.keys() == {"params"}
    assert [id(one) for one in group["params"]] == [id(one) for one in student.parameters()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["resnet8", "MobileNetV2", "vgg8", "torchvision:resnet18"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    student = student_of(name)
    norms = {
        f"{path}.{one}"
        for path, module in student.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
        for one, _ in module.named_parameters()
    }
    decays = {path: weight for path, (weight, _) in factors(student, Decay(0.1, spares=True)).items()}
    assert {path for path, weight in decays.items() if weight == 0} == norms | {p for p in decays if p.endswith("bias")}
    assert set(decays.values()) == {0.0, 0.1}


@needs_timm
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_timms_networks_are_grouped_as_timm_does(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    student = Student(build_network(f"timm:{name}", 10), None)
    inner = student.backbone.inner
    listed = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(inner, 0.1, no_weight_decay_list=listed, layer_decay=0.75)
    expected = {id(one): (group["weight_decay"], group["lr_scale"]) for group in theirs for one in group["params"]}
    ours = factors(student, Decay(0.1, spares=True, layer=0.75))
    assert {path: expected[id(one)] for path, one in student.named_parameters()} == ours
    assert len({scale for _, scale in ours.values()}) > 5
    if name.startswith("vit"):
        assert ours["backbone.inner.pos_embed"][0] == 0.0


def names_of(layer: Iterable[nn.Module], network: nn.Module) -> list[str]:
    paths = {id(module): path for path, module in network.named_modules()}
    return [paths[id(module)] for module in layer]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet14", [["conv1", "bn1"], *[[f"layer{s}.{b}"] for s in (1, 2, 3) for b in (0, 1)], ["fc"]]),
        ("vgg8", [*[[f"block{stage}"] for stage in range(5)], ["classifier"]]),
    ],
)
def test_layers_of_our_networks(name: str, layers: list[list[str]]) -> None:
    network = build_network(name, 10)
    found = [names_of(layer, network) for layer in layers_of(network)]
    assert [[path for path in layer if "pool" not in path] for layer in found] == layers


@pytest.mark.parametrize("name", [*NETWORKS, "torchvision:vit_b_32", "torchvision:densenet121"])
def test_each_parameter_is_in_one_layer_and_the_classifier_in_the_last(name: str) -> None:
    network = build_network(name, 10)
    inner = getattr(network, "inner", network)
    layers = layers_of(inner)
    counted = [id(one) for layer in layers for module in layer for one in module.parameters()]
    assert len(counted) == len(set(counted))
    outside = {path for path, one in inner.named_parameters() if id(one) not in set(counted)}
    assert outside <= {"class_token", "encoder.pos_embedding"}
    assert {id(one) for one in network.head.parameters()} <= {id(o) for m in layers[-1] for o in m.parameters()}
    assert len(layers) >= (6 if name == "vgg8" or name.startswith("ResNet") else 5)
    if name.startswith("torchvision:vit"):
        assert len(layers) == 14, "the patches, twelve blocks with the last norm, the classifier"


def test_the_rate_falls_from_layer_to_layer() -> None:
    student = student_of("resnet8")
    scales = {path: scale for path, (_, scale) in factors(student, Decay(0.1, layer=0.5)).items()}
    assert scales["backbone.fc.weight"] == scales["auxiliary.0.weight"] == 1
    assert scales["backbone.layer3.0.conv1.weight"] == 0.5
    assert scales["backbone.layer1.0.bn1.bias"] == 0.125
    assert scales["backbone.conv1.weight"] == scales["backbone.bn1.weight"] == 0.0625


def test_rates_are_the_schedules_times_the_factor() -> None:
    student = student_of("resnet8")
    optimizer = torch.optim.SGD(parameter_groups(student, Decay(0.1, layer=0.5)), lr=1.0)
    rates = Rates(optimizer, torch.device("cpu"))
    rates.set(0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3 * group[SCALE] for group in optimizer.param_groups]
    rates.set_on_device(0.4)
    tensors = [group["lr"] for group in optimizer.param_groups]
    rates.set_on_device(0.1)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    assert [float(t) for t in tensors] == pytest.approx([0.1 * group[SCALE] for group in optimizer.param_groups])


def test_frozen_parameters_are_in_no_group() -> None:
    student = student_of("resnet8")
    student.backbone.conv1.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(student, Decay(0.1, spares=True)) for p in group["params"]}  # type: ignore[attr-defined]
    assert grouped == {id(parameter) for parameter in student.parameters() if parameter.requires_grad}


class Listing(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, 3))
        self.fc = nn.Linear(3, num_classes)

    def no_weight_decay(self) -> set[str]:
        return {"tab*"}


class Failing(Listing):
    def no_weight_decay(self) -> set[str]:
        raise KeyError("table")


def test_a_network_lists_what_must_not_decay() -> None:
    offer("listing", Listing)
    offer("failing", Failing)
    decay = Decay(0.1, spares=True)
    assert factors(student_of("listing"), decay)["backbone.inner.table"][0] == 0.0
    with pytest.raises(OwnCodeError, match="network Failing: no_weight_decay: KeyError"):
        parameter_groups(student_of("failing"), decay)
