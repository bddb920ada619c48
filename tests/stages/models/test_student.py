"""The student: its heads, and one forward for both."""

import pytest
import torch
from dhkd.stages.models import build_network, count_parameters
from dhkd.stages.models.student import AuxiliaryHead, SeededDropout, Student, auxiliary_head
from torch import nn

from tests.stages.models.networks import CLASSES, images_of_size


def test_the_nonlinear_head_is_that_of_the_paper() -> None:
    head = auxiliary_head("nonlinear", 64, CLASSES)
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
    head = auxiliary_head("linear", 64, CLASSES)
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
    backbone, head = build_network("resnet8x4", 5), auxiliary_head(kind, 256, 5)
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
    student = Student(build_network("resnet8", 5), auxiliary_head("nonlinear", 64, 5)).train()
    student(images_of_size(8))
    steps = {name: int(t) for name, t in student.state_dict().items() if name.endswith("num_batches_tracked")}
    assert set(steps.values()) == {1}
    assert "auxiliary.2.num_batches_tracked" in steps
    assert "backbone.bn1.num_batches_tracked" in steps
