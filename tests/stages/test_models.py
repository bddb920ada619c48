"""The networks are the published ones: counts and names, an independent forward from the state's names, the heads."""

import pytest
import torch
import torch.nn.functional as F
from dhkd.data.errors import ConfigError
from dhkd.stages.models import NETWORKS, build_network, count_parameters
from dhkd.stages.models.resnet import BasicBlock
from dhkd.stages.models.student import AuxiliaryHead, Student, auxiliary_head
from torch import Tensor, nn

CLASSES = 100

# Parameters, + linear head, + nonlinear head, pooled width, tensors in the state, million multiply-adds at 32×32.
PUBLISHED = {
    "resnet20": (278_324, 6_500, 33_500, 64, 128, 40.82),
    "resnet32": (472_756, 6_500, 33_500, 64, 200, 69.13),
    "resnet56": (861_620, 6_500, 33_500, 64, 344, 125.75),
    "resnet110": (1_736_564, 6_500, 33_500, 64, 668, 253.16),
    "resnet8x4": (1_233_540, 25_700, 71_900, 256, 62, 177.07),
    "resnet32x4": (7_433_860, 25_700, 71_900, 256, 206, 1083.04),
}
# Not published here, so extrapolated: each block more in every stage adds 97,216 parameters and 36 tensors.
EXTRAPOLATED = {
    f"resnet{depth}": (278_324 + (depth - 20) // 6 * 97_216, 128 + (depth - 20) // 6 * 36) for depth in (8, 14, 44)
}
TOP_LEVEL = ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]


def images_of_size(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def used_network(name: str, num_classes: int = 7) -> nn.Module:
    """As after training: batch norm's statistics and factors are no longer 0 and 1."""
    torch.manual_seed(0)
    network = build_network(name, num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return network.eval()


def batch_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return weight * (x - mean) / torch.sqrt(var + 1e-5) + bias


def block(state: dict[str, Tensor], name: str, x: Tensor, stride: int) -> Tensor:
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        kernel = state[f"{name}.downsample.0.weight"][:, :, 0, 0]
        shortcut = torch.einsum("oi,bihw->bohw", kernel, x[:, :, ::stride, ::stride])
        shortcut = batch_norm(state, f"{name}.downsample.1", shortcut)
    x = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    x = batch_norm(state, f"{name}.bn1", x).clamp(min=0)
    x = F.conv2d(x, state[f"{name}.conv2.weight"], padding=1)
    return (batch_norm(state, f"{name}.bn2", x) + shortcut).clamp(min=0)


def reference(state: dict[str, Tensor], x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Pooled feature and logits, from the published names alone."""
    x = batch_norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        for number in range(blocks):
            x = block(state, f"layer{stage}.{number}", x, stride=2 if stage > 1 and number == 0 else 1)
    pooled_BD = x.flatten(2).mean(2)
    return pooled_BD, pooled_BD @ state["fc.weight"].T + state["fc.bias"]


def test_every_network_is_tested_here() -> None:
    assert set(NETWORKS) == set(PUBLISHED) | set(EXTRAPOLATED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    parameters, linear, nonlinear, width, tensors, mega_macs = PUBLISHED[name]
    network = build_network(name, CLASSES)
    assert count_parameters(network) == parameters
    assert network.embedding_dim == network.fc.in_features == width
    assert len(network.state_dict()) == tensors
    assert count_parameters(auxiliary_head("linear", width, CLASSES)) == linear
    assert count_parameters(auxiliary_head("nonlinear", width, CLASSES)) == nonlinear
    assert round(macs_at_32(network) / 1e6, 2) == mega_macs


@pytest.mark.parametrize("name", EXTRAPOLATED)
def test_counts_of_the_other_depths_follow_from_the_construction(name: str) -> None:
    network = build_network(name, CLASSES)
    assert (count_parameters(network), len(network.state_dict())) == EXTRAPOLATED[name]
    assert network.embedding_dim == 64


def macs_at_32(network: nn.Module) -> int:
    """Multiply-adds of convolutions and the classifier for one 32×32 image."""
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        counts.append(out[0].numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(images_of_size(32, batch=1))
    return sum(counts)


@pytest.mark.parametrize("name", NETWORKS)
def test_top_level_names_are_those_of_published_files(name: str) -> None:
    network = build_network(name, CLASSES)
    assert [child for child, _ in network.named_children()] == TOP_LEVEL
    assert list(dict.fromkeys(key.split(".")[0] for key in network.state_dict())) == TOP_LEVEL


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_at_any_size_come_from_the_pooled_feature(name: str) -> None:
    network = build_network(name, 7).eval()
    for size in (8, 16, 32):
        images_BCHW = images_of_size(size)
        features_BD = network.features(images_BCHW)
        assert features_BD.shape == (2, network.embedding_dim)
        logits_BK = network(images_BCHW)
        assert logits_BK.shape == (2, 7)
        assert torch.equal(network.classify(features_BD), logits_BK)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 13, 32])
@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet14", 2), ("resnet8x4", 1)])
def test_the_forward_is_the_one_that_the_names_spell(name: str, blocks: int, size: int) -> None:
    network = used_network(name).double()
    images_BCHW = images_of_size(size).double()
    pooled_BD, logits_BK = reference(network.state_dict(), images_BCHW, blocks)
    torch.testing.assert_close(network.features(images_BCHW), pooled_BD, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network(images_BCHW), logits_BK, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("in_channels", "channels", "stride"), [(4, 6, 2), (4, 4, 2), (4, 6, 1)])
def test_the_shortcut_of_a_changed_shape_is_a_strided_pointwise_convolution(
    in_channels: int, channels: int, stride: int
) -> None:
    torch.manual_seed(1)
    changing = BasicBlock(in_channels, channels, stride)
    nn.init.zeros_(changing.bn2.weight)  # silences the other path
    x = torch.randn(3, in_channels, 6, 6)
    kernel_OI = changing.state_dict()["downsample.0.weight"][:, :, 0, 0]
    projected = torch.einsum("oi,bihw->bohw", kernel_OI, x[:, :, ::stride, ::stride])
    # In training, batch norm takes the batch's own mean and variance.
    mean, var = projected.mean((0, 2, 3), keepdim=True), projected.var((0, 2, 3), correction=0, keepdim=True)
    expected = ((projected - mean) / torch.sqrt(var + 1e-5)).clamp(min=0)
    torch.testing.assert_close(changing(x), expected, rtol=1e-4, atol=1e-5)


def test_an_unchanged_shape_has_no_parameters_in_its_shortcut() -> None:
    assert not [name for name in BasicBlock(4, 4, 1).state_dict() if "downsample" in name]


def test_convolutions_start_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    for name, module in build_network("resnet32x4", CLASSES).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_initialisation_is_a_function_of_torchs_seed() -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(build_network("resnet8", 5).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet20", "resnet8x4"])
def test_channels_last_changes_the_layout_alone(name: str) -> None:
    images_BCHW = images_of_size(16, batch=4)
    expected = used_network(name)(images_BCHW)
    strided = used_network(name).to(memory_format=torch.channels_last)
    assert strided.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    for images in (images_BCHW, images_BCHW.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(strided(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet8x5", "did you mean 'resnet8x4'? "), ("ResNet56", "did you mean 'resnet56'? "), ("transformer", "")],
)
def test_an_unknown_network_is_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, CLASSES)
    assert str(caught.value) == f"unknown network '{name}': {hint}valid are {', '.join(sorted(NETWORKS))}"


def test_count_parameters_leaves_buffers_and_frozen_ones_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert count_parameters(module) == 12 + 4 + 8
    module[0].requires_grad_(False)
    assert count_parameters(module) == 8


def test_the_nonlinear_head_is_the_papers() -> None:
    head = auxiliary_head("nonlinear", 64, CLASSES)
    assert isinstance(head, nn.Sequential)
    linear, dropout, norm, relu, last = head
    assert [type(layer) for layer in head] == [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
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
    logits = student(images_BCHW)
    assert logits.task is logits.distill
    assert torch.equal(logits.task, backbone(images_BCHW))
    assert count_parameters(student) == count_parameters(backbone)


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_a_students_second_head_sees_the_pooled_feature(kind: AuxiliaryHead) -> None:
    torch.manual_seed(0)
    backbone, head = build_network("resnet8x4", 5), auxiliary_head(kind, 256, 5)
    student = Student(backbone, head).eval()
    images_BCHW = images_of_size(8)
    logits = student(images_BCHW)
    assert torch.equal(logits.task, backbone(images_BCHW))
    assert torch.equal(logits.distill, head(backbone.features(images_BCHW)))
    assert not torch.equal(logits.task, logits.distill)
    assert count_parameters(student) == count_parameters(backbone) + count_parameters(head)
    # Its loss reaches the body and itself, and not the task's classifier.
    logits.distill.sum().backward()
    assert backbone.get_parameter("conv1.weight").grad is not None
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert backbone.get_parameter("fc.weight").grad is None


def test_in_training_the_body_runs_once_for_both_heads() -> None:
    student = Student(build_network("resnet8", 5), auxiliary_head("nonlinear", 64, 5)).train()
    student(images_of_size(8))
    steps = {name: int(t) for name, t in student.state_dict().items() if name.endswith("num_batches_tracked")}
    assert set(steps.values()) == {1}
    assert "auxiliary.2.num_batches_tracked" in steps
    assert "backbone.bn1.num_batches_tracked" in steps
