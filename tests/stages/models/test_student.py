"""The student: its heads, and one forward for both."""

import pytest
import torch
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.models.student import AuxiliaryHead, SeededDropout, Student, auxiliary_head
from torch import nn

from tests.stages.models.networks import CLASSES, images_of_size


def test_the_nonlinear_head_is_that_of_the_paper() -> None:
    head = auxiliary_head("nonlinear", build_network("resnet8", 5), CLASSES)
    assert isinstance(head, nn.Sequential)
    linear, dropout, norm, relu, last = head
    assert [type(layer) for layer in head] == [nn.Linear, SeededDropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (linear.in_features, linear.out_features, last.in_features, last.out_features) == (64, 200, 200, CLASSES)
    assert linear.bias is not None
    assert last.bias is not None
    assert dropout.p == 0.1
    assert norm.num_features == 200
    assert not list(relu.parameters())


def test_the_linear_head_is_one_layer() -> None:
    head = auxiliary_head("linear", build_network("resnet8", 5), CLASSES)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features, head.bias is not None) == (64, CLASSES, True)


def test_a_student_with_a_single_head_gives_the_same_tensor_twice() -> None:
    backbone = build_network("resnet8", 5)
    student = Student(backbone, None).eval()
    images_BCHW = images_of_size(8)
    outputs = student(images_BCHW)
    assert outputs.task is outputs.distill
    assert torch.equal(outputs.task, backbone(images_BCHW))
    assert count_parameters(student) == count_parameters(backbone)


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_a_students_second_head_sees_the_pooled_feature(kind: AuxiliaryHead) -> None:
    torch.manual_seed(0)
    backbone = build_network("resnet8x4", 5)
    head = auxiliary_head(kind, backbone, 5)
    student = Student(backbone, head).eval()
    images_BCHW = images_of_size(8)
    outputs = student(images_BCHW)
    assert torch.equal(outputs.task, backbone(images_BCHW))
    assert torch.equal(outputs.distill, head(backbone.outputs(images_BCHW).embedding))
    assert not torch.equal(outputs.task, outputs.distill)
    assert count_parameters(student) == count_parameters(backbone) + count_parameters(head)
    # A loss of the second head trains the body and this head, and leaves the task's classifier alone.
    outputs.distill.sum().backward()
    assert backbone.get_parameter("conv1.weight").grad is not None
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert backbone.get_parameter("fc.weight").grad is None


def test_the_body_runs_once_for_both_heads() -> None:
    backbone = build_network("resnet8", 5)
    student = Student(backbone, auxiliary_head("nonlinear", backbone, 5)).train()
    student(images_of_size(8))
    steps = {name: int(t) for name, t in student.state_dict().items() if name.endswith("num_batches_tracked")}
    assert set(steps.values()) == {1}
    assert "auxiliary.2.num_batches_tracked" in steps
    assert "backbone.bn1.num_batches_tracked" in steps


def standard_deviation(weight: torch.Tensor) -> float:
    return (weight.double() - weight.double().mean()).square().mean().sqrt().item()


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize(
    ("network", "spread", "has_bias"),
    [
        # The DHKD authors' `_initialize_weights`: every linear layer N(0, 0.01²), bias 0.
        *(("vgg8", 0.01, False), ("MobileNetV2", 0.01, False)),
        # Theirs of wide ResNets: bias 0, weights as torch draws them, uniform within 1/√width.
        *(("wrn_16_2", None, False), ("wrn_40_1", None, False)),
        # All others: as torch draws them.
        *(("resnet8x4", None, True), ("ShuffleV1", None, True), ("ShuffleV2", None, True), ("MobileNetV1", None, True)),
        ("torchvision:resnet18", None, True),
    ],
)
def test_both_heads_start_as_in_the_published_code(
    network: str, spread: float | None, has_bias: bool, kind: AuxiliaryHead
) -> None:
    torch.manual_seed(0)
    backbone = build_network(network, CLASSES)
    layers = [layer for layer in auxiliary_head(kind, backbone, CLASSES).modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == (1 if kind == "linear" else 2)
    for layer in [backbone.head, *layers]:
        assert isinstance(layer, nn.Linear)
        uniform = (1 / (3 * layer.in_features)) ** 0.5  # of U(−1/√width, 1/√width)
        assert standard_deviation(layer.weight) == pytest.approx(spread or uniform, rel=0.05)
        assert bool(layer.bias.any()) == has_bias
