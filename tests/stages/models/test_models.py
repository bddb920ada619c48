"""The networks are the published ones: counts and names, an independent forward from the state's names, the heads."""

import copy
import re
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from dhkd.data.errors import ConfigError
from dhkd.stages.models import NETWORKS, Network, build_network, count_parameters
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.network import StageMap
from dhkd.stages.models.resnet import BasicBlock
from dhkd.stages.models.student import AuxiliaryHead, SeededDropout, Student, auxiliary_head
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
    "wrn_16_2": (703_284, 12_900, 46_300, 128, 83, 101.12),
    "wrn_40_1": (569_780, 6_500, 33_500, 64, 226, 83.29),
    "wrn_40_2": (2_255_156, 12_900, 46_300, 128, 227, 327.61),
    "vgg8": (3_965_028, 51_300, 123_100, 512, 37, 96.19),
    "vgg13": (9_462_180, 51_300, 123_100, 512, 72, 284.94),
    "MobileNetV2": (812_836, 128_100, 276_700, 1280, 320, 6.52),
    "ShuffleV1": (949_258, 96_100, 212_700, 960, 296, 38.69),
    "ShuffleV2": (1_355_528, 102_500, 225_500, 1024, 338, 44.50),
    "ResNet50": (23_705_252, 204_900, 430_300, 2048, 320, 1298.01),
}
# Parameters and million multiply-adds at 224×224, for 1000 classes.
PUBLISHED_AT_224 = {
    "MobileNetV1": (4_231_976, 569),
    "torchvision:resnet18": (11_689_512, 1814),
    "torchvision:resnet34": (21_797_672, 3664),
    "torchvision:resnet50": (25_557_032, 4089),
}
# Not published here, so extrapolated: each block more in every stage adds 97,216 parameters, in the narrow networks of
# both kinds, and 36 tensors.
EXTRAPOLATED = {
    **{f"resnet{depth}": (278_324 + (depth - 20) // 6 * 97_216, 128 + (depth - 20) // 6 * 36) for depth in (8, 14, 44)},
    "wrn_16_1": (569_780 - 4 * 97_216, 226 - 4 * 36),
}
# From the paper's table: output channels of every convolution.
VGG_CHANNELS = {
    "vgg11": [64, 128, *[256] * 2, *[512] * 4],
    "vgg16": [*[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6],
    "vgg19": [*[64] * 2, *[128] * 2, *[256] * 4, *[512] * 8],
}
TOP_LEVEL = {
    "resnet": ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"],
    "wrn": ["conv1", "block1", "block2", "block3", "bn1", "fc"],
    "vgg": ["block0", "block1", "block2", "block3", "block4", "classifier"],
    "MobileNetV2": ["conv1", "blocks", "conv2", "classifier"],
    "ShuffleV1": ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"],
    "ShuffleV2": ["conv1", "bn1", "layer1", "layer2", "layer3", "conv2", "bn2", "linear"],
    "ResNet50": ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "linear"],
    "MobileNetV1": ["model", "fc"],
}
# Channels and side of every stage's map at 32×32, for one network of each family.
MAPS_AT_32 = {
    "resnet8": [(16, 32), (16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(32, 32), (64, 32), (128, 16), (256, 8)],
    "wrn_16_2": [(16, 32), (32, 32), (64, 16), (128, 8)],
    "vgg8": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    "MobileNetV2": [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)],
    "ShuffleV1": [(24, 32), (240, 16), (480, 8), (960, 4)],
    "ShuffleV2": [(24, 32), (116, 16), (232, 8), (464, 4)],
    "ResNet50": [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
    "MobileNetV1": [(32, 16), (128, 8), (256, 4), (512, 2), (1024, 1)],
}


def images_of_size(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def use(network: nn.Module) -> None:
    """As training does: batch norm's statistics and factors are no longer 0 and 1."""
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


def used_network(name: str, num_classes: int = 7) -> Network:
    torch.manual_seed(0)
    network = build_network(name, num_classes)
    use(network)
    return network.eval()


State = Mapping[str, Tensor]


class Reading(NamedTuple):
    """What the published names spell."""

    maps: list[tuple[Tensor, Tensor]]
    pooled_BD: Tensor
    logits_BK: Tensor


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return weight * (x - mean) / torch.sqrt(var + 1e-5) + bias


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Odd kernels keep the resolution; a kernel of fewer channels than the input is grouped."""
    weight = state[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[2] // 2, groups=groups)


def pointwise(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    return torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], x[:, :, ::stride, ::stride])


def numbers_in(state: State, prefix: str) -> list[int]:
    return sorted({int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)})


def classified(state: State, maps: list[tuple[Tensor, Tensor]], last: Tensor, head: str) -> Reading:
    pooled_BD = last.flatten(2).mean(2)
    return Reading(maps, pooled_BD, pooled_BD @ state[f"{head}.weight"].T + state[f"{head}.bias"])


def stem(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    before = batch_norm(state, "bn1", conv(state, "conv1", x))
    return before, relu(before)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The first channel of each group, then the second of each, …"""
    width = x.shape[1] // groups
    return x[:, [group * width + place for place in range(width) for group in range(groups)]]


def layered(state: State, x: Tensor, block: Callable[[State, str, Tensor, int], Tensor], strides: list[int]) -> Reading:
    """The stem, then `layer1` and so on, whose first block has the stride; `block` stops before its last activation."""
    maps = [stem(state, x)]
    x = maps[0][1]
    for stage, stride in enumerate(strides, start=1):
        for number in numbers_in(state, f"layer{stage}."):
            before = block(state, f"layer{stage}.{number}", x, stride if number == 0 else 1)
            x = relu(before)
        maps.append((before, x))
    head = next(name for name in ("fc", "linear") if f"{name}.weight" in state)
    if head == "linear" and "conv2.weight" in state:
        x = relu(batch_norm(state, "bn2", conv(state, "conv2", x)))
    return classified(state, maps, x, head)


def basic_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        shortcut = batch_norm(state, f"{name}.downsample.1", pointwise(state, f"{name}.downsample.0", x, stride))
    x = relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)))
    return batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x)) + shortcut


def bottleneck(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    shortcut = x
    if f"{name}.shortcut.0.weight" in state:
        shortcut = batch_norm(state, f"{name}.shortcut.1", pointwise(state, f"{name}.shortcut.0", x, stride))
    x = relu(batch_norm(state, f"{name}.bn1", pointwise(state, f"{name}.conv1", x, 1)))
    x = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x, stride)))
    return batch_norm(state, f"{name}.bn3", pointwise(state, f"{name}.conv3", x, 1)) + shortcut


def shuffle_v1_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    groups = x.shape[1] // state[f"{name}.conv1.weight"].shape[1]
    out = shuffled(relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x))), groups)
    out = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", out, stride)))
    out = batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
    if stride == 1:
        return out + x
    ninths = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
    return torch.cat([out, F.conv2d(x, ninths, stride=2, padding=1, groups=x.shape[1])], dim=1)


def shuffle_v2_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    if stride == 1:
        kept, x = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        x = relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x)))
        x = batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x))
        return shuffled(torch.cat([kept, batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", x))], 1), 2)
    left = batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, 2))
    left = batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", left))
    right = relu(batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", x)))
    right = batch_norm(state, f"{name}.bn4", conv(state, f"{name}.conv4", right, 2))
    right = batch_norm(state, f"{name}.bn5", conv(state, f"{name}.conv5", right))
    return shuffled(torch.cat([left, right], dim=1), 2)


def read_wide_resnet(state: State, x: Tensor) -> Reading:
    maps, x = [], conv(state, "conv1", x)
    for stage in (1, 2, 3):
        for number in numbers_in(state, f"block{stage}.layer."):
            name, stride = f"block{stage}.layer.{number}", 2 if stage > 1 and number == 0 else 1
            before = batch_norm(state, f"{name}.bn1", x)
            if number == 0:
                maps.append((before, relu(before)))
            inner = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", relu(before), stride)))
            if f"{name}.convShortcut.weight" in state:
                x = pointwise(state, f"{name}.convShortcut", relu(before), stride)
            x = x + conv(state, f"{name}.conv2", inner)
    before = batch_norm(state, "bn1", x)
    return classified(state, [*maps, (before, relu(before))], relu(before), "fc")


def read_vgg(state: State, x: Tensor) -> Reading:
    maps, height = [], x.shape[2]
    for stage in range(5):
        # A convolution's number is a multiple of 3; its batch norm follows, and a ReLU after that.
        for number in numbers_in(state, f"block{stage}.")[::2]:
            before = conv(state, f"block{stage}.{number}", x)
            before = batch_norm(state, f"block{stage}.{number + 1}", before)
            x = relu(before)
        maps.append((before, x))
        if stage < 3 or (stage == 3 and height >= 64):
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(3, 5))
    return classified(state, maps, x, "classifier")


def read_mobilenet_v2(state: State, x: Tensor) -> Reading:
    before = batch_norm(state, "conv1.1", conv(state, "conv1.0", x, 2))
    maps, x = [(before, relu(before))], relu(before)
    for group, stride in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for number in numbers_in(state, f"blocks.{group}."):
            name = f"blocks.{group}.{number}.conv"
            out = relu(batch_norm(state, f"{name}.1", conv(state, f"{name}.0", x)))
            out = relu(batch_norm(state, f"{name}.4", conv(state, f"{name}.3", out, stride if number == 0 else 1)))
            out = batch_norm(state, f"{name}.7", conv(state, f"{name}.6", out))
            x = x + out if out.shape == x.shape else out
        if group in (1, 2, 4, 6):
            maps.append((x, x))
    x = relu(batch_norm(state, "conv2.1", conv(state, "conv2.0", x)))
    return classified(state, maps, x, "classifier")


def read_mobilenet_v1(state: State, x: Tensor) -> Reading:
    before = batch_norm(state, "model.0.1", conv(state, "model.0.0", x, 2))
    maps, x = [(before, relu(before))], relu(before)
    for number in range(1, 14):
        name, stride = f"model.{number}", 2 if number in (2, 4, 6, 12) else 1
        x = relu(batch_norm(state, f"{name}.1", conv(state, f"{name}.0", x, stride)))
        before = batch_norm(state, f"{name}.4", conv(state, f"{name}.3", x))
        x = relu(before)
        if number in (3, 5, 11, 13):
            maps.append((before, x))
    return classified(state, maps, x, "fc")


READINGS: dict[str, Callable[[State, Tensor], Reading]] = {
    "resnet": lambda state, x: layered(state, x, basic_block, [1, 2, 2]),
    "wrn": read_wide_resnet,
    "vgg": read_vgg,
    "MobileNetV2": read_mobilenet_v2,
    "ShuffleV1": lambda state, x: layered(state, x, shuffle_v1_block, [2, 2, 2]),
    "ShuffleV2": lambda state, x: layered(state, x, shuffle_v2_block, [2, 2, 2]),
    "ResNet50": lambda state, x: layered(state, x, bottleneck, [1, 2, 2, 2]),
    "MobileNetV1": read_mobilenet_v1,
}


def family(name: str) -> str:
    return next(start for start in READINGS if name.startswith(start))


def test_every_network_is_tested_here() -> None:
    assert set(NETWORKS) == set(PUBLISHED) | set(EXTRAPOLATED) | set(VGG_CHANNELS) | {"MobileNetV1"}
    assert {family(name) for name in NETWORKS} == {family(name) for name in MAPS_AT_32} == set(READINGS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    parameters, linear, nonlinear, width, tensors, mega_macs = PUBLISHED[name]
    network = build_network(name, CLASSES)
    assert isinstance(network.head, nn.Linear)
    assert count_parameters(network) == parameters
    assert network.embedding_dim == network.head.in_features == width
    assert len(network.state_dict()) == tensors
    assert count_parameters(auxiliary_head("linear", width, CLASSES)) == linear
    assert count_parameters(auxiliary_head("nonlinear", width, CLASSES)) == nonlinear
    assert round(macs(network, 32) / 1e6, 2) == mega_macs


@pytest.mark.parametrize("name", PUBLISHED_AT_224)
def test_counts_for_large_images_are_the_published_ones(name: str) -> None:
    parameters, mega_macs = PUBLISHED_AT_224[name]
    with torch.device("meta"):
        network = build_network(name, 1000)
    assert count_parameters(network) == parameters
    assert round(macs(network, 224) / 1e6) == mega_macs


@pytest.mark.parametrize("name", EXTRAPOLATED)
def test_counts_of_the_other_depths_follow_from_the_construction(name: str) -> None:
    network = build_network(name, CLASSES)
    assert (count_parameters(network), len(network.state_dict())) == EXTRAPOLATED[name]
    assert network.embedding_dim == 64


@pytest.mark.parametrize("name", VGG_CHANNELS)
def test_counts_of_the_other_vggs_follow_from_the_papers_table(name: str) -> None:
    network, channels = build_network(name, CLASSES), VGG_CHANNELS[name]
    # Each convolution has a bias, and each batch norm two factors a channel.
    convolutions = sum(9 * before * after + 3 * after for before, after in zip([3, *channels], channels, strict=False))
    assert count_parameters(network) == convolutions + 513 * CLASSES
    assert len(network.state_dict()) == 7 * len(channels) + 2


def macs(network: nn.Module, size: int) -> int:
    """Multiply-adds of convolutions and the classifier for one image."""
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        counts.append(out[0].numel() * module.weight[0].numel())

    network = copy.deepcopy(network).to("meta").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.empty(1, 3, size, size, device="meta"))
    return sum(counts)


@pytest.mark.parametrize("name", NETWORKS)
def test_top_level_names_are_those_of_published_files(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, CLASSES)
    expected = TOP_LEVEL[family(name)]
    assert [child for child, _ in network.named_children()] == expected
    assert list(dict.fromkeys(key.split(".")[0] for key in network.state_dict())) == expected


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_at_any_size_come_from_the_pooled_feature(name: str) -> None:
    network = build_network(name, 7).eval()
    for size in (8, 16):
        images_BCHW = images_of_size(size)
        logits_BK, embedding_BD, maps, final_BDHW = network.outputs(images_BCHW)
        assert embedding_BD.shape == (2, network.embedding_dim)
        assert logits_BK.shape == (2, 7)
        assert maps == ()
        assert torch.equal(final_BDHW.mean((2, 3)), embedding_BD)
        assert torch.equal(network.head(embedding_BD), logits_BK)
        assert torch.equal(network(images_BCHW), logits_BK)
    for size in (32, 64, 96):
        logits_BK, embedding_BD, *_ = network.to("meta").outputs(torch.empty(2, 3, size, size, device="meta"))
        assert (logits_BK.shape, embedding_BD.shape) == ((2, 7), (2, network.embedding_dim))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("resnet8", size) for size in (8, 13, 32)),
        *(("resnet14", size) for size in (8, 13, 32)),
        *(("resnet8x4", size) for size in (8, 13, 32)),
        *(("wrn_16_1", 16), ("wrn_16_2", 13), ("wrn_16_2", 32), ("wrn_40_1", 16)),
        *(("vgg8", 32), ("vgg8", 48), ("vgg8", 64), ("vgg8", 80), ("vgg11", 16), ("vgg13", 16), ("vgg19", 8)),
        *((name, size) for name in ("MobileNetV2", "ShuffleV1", "ShuffleV2", "MobileNetV1") for size in (19, 32, 64)),
        *(("ResNet50", 8), ("ResNet50", 13)),
    ],
)
def test_the_forward_is_the_one_that_the_names_spell(name: str, size: int) -> None:
    network = used_network(name).double()
    images_BCHW = images_of_size(size).double()
    expected = READINGS[family(name)](network.state_dict(), images_BCHW)
    logits_BK, embedding_BD, maps, final_BDHW = network.outputs(images_BCHW, maps=True)
    torch.testing.assert_close(final_BDHW.mean((2, 3)), expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(embedding_BD, expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits_BK, expected.logits_BK, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close([tuple(one) for one in maps], expected.maps, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", MAPS_AT_32)
def test_maps_are_of_the_stem_and_every_stage(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, 7).eval()
    maps = network.outputs(torch.empty(2, 3, 32, 32, device="meta"), maps=True).maps
    expected = [(2, channels, side, side) for channels, side in MAPS_AT_32[name]]
    assert [one.before.shape for one in maps] == expected
    assert [one.after.shape for one in maps] == expected


def assert_sides_of_an_activation(maps: tuple[StageMap, ...], linear: bool) -> None:
    for number, one in enumerate(maps):
        if linear and number:
            assert one.before is one.after
        else:
            assert torch.equal(one.after, one.before.relu())
            assert (one.before < 0).any()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MAPS_AT_32)
def test_asking_for_maps_changes_nothing_else(name: str, training: bool) -> None:
    plain = used_network(name).train(training)
    asked = copy.deepcopy(plain)
    images_BCHW = images_of_size(16)
    logits_BK, embedding_BD, none, final_BDHW = plain.outputs(images_BCHW)
    seen = asked.outputs(images_BCHW, maps=True)
    assert none == ()
    assert torch.equal(seen.final, final_BDHW)
    assert_sides_of_an_activation(seen.maps, linear=name == "MobileNetV2")
    assert torch.equal(seen.logits, logits_BK)
    assert torch.equal(seen.embedding, embedding_BD)
    state = plain.state_dict()
    for key, tensor in asked.state_dict().items():
        assert torch.equal(tensor, state[key]), key
        if key.endswith("num_batches_tracked"):
            assert tensor == training, key
    # The maps are on the way to the logits, not beside it.
    gradients = torch.autograd.grad(seen.logits.square().sum(), [one.after for one in seen.maps])
    assert all(bool(gradient.any()) for gradient in gradients)


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


@pytest.mark.parametrize("network", ["resnet32x4", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet50"])
def test_convolutions_start_as_he_et_al_say(network: str) -> None:
    torch.manual_seed(0)
    for name, module in build_network(network, CLASSES).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            near = pytest.approx((2 / fan_out) ** 0.5, rel=0.1 if module.weight.numel() > 800 else 0.5)
            assert module.weight.std().item() == near, name
            assert module.bias is None or (module.bias == 0).all()
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
@pytest.mark.parametrize("name", ["resnet20", *MAPS_AT_32])
def test_channels_last_changes_the_layout_alone(name: str) -> None:
    images_BCHW = images_of_size(16, batch=4)
    expected = used_network(name)(images_BCHW)
    strided = used_network(name).to(memory_format=torch.channels_last)
    kernels = [parameter for parameter in strided.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    for images in (images_BCHW, images_BCHW.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(strided(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet8x5", "did you mean 'resnet8x4'? "),
        ("WRN_40_2", "did you mean 'wrn_40_2'? "),
        ("MobilenetV2", "did you mean 'MobileNetV2'? "),
        ("transformer", ""),
    ],
)
def test_an_unknown_network_is_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, CLASSES)
    assert str(caught.value) == f"unknown network '{name}': {hint}valid are {', '.join(sorted(NETWORKS))}"


def test_count_parameters_leaves_buffers_out_and_counts_frozen_ones() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert count_parameters(module) == 12 + 4 + 8
    module[0].requires_grad_(False)  # such as a teacher's classifier, which was trained once
    assert count_parameters(module) == 12 + 4 + 8


def test_the_nonlinear_head_is_the_papers() -> None:
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
    assert torch.equal(logits.distill, head(backbone.outputs(images_BCHW).embedding))
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


# torchvision computes a RegNet's widths from tensors with values, so that it can't be built without any. All fifteen
# are one class; the two smallest are run for real.
REGNETS = [name for name in torchvision.models.list_models(module=torchvision.models) if name.startswith("regnet")]
BUILT_WITHOUT_VALUES = sorted(set(torchvision.models.list_models(module=torchvision.models)) - set(REGNETS))


@torch.no_grad()
@pytest.mark.parametrize("name", BUILT_WITHOUT_VALUES)
def test_every_network_of_torchvision_has_a_classifier_and_its_input(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 7).eval()
    logits_BK, embedding_BD, maps, final_BDHW = network.outputs(torch.empty(2, 3, size, size, device="meta"))
    assert (logits_BK.shape, embedding_BD.shape, maps) == ((2, 7), (2, network.embedding_dim), ())
    assert final_BDHW is None  # which map the library pools is not told unless maps are asked for
    # No layer follows the classifier, and nothing of a training's auxiliary ones is left.
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert layers[-1] is network.head
    assert [layer for layer in layers if layer.weight.shape[0] == 7] == [network.head]


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *("regnet_x_400mf", "regnet_y_400mf", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"),
        *("mnasnet0_5", "densenet121"),
    ],
)
def test_logits_are_the_librarys_own(name: str) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name, num_classes=7).eval()
    use(plain)
    torch.manual_seed(0)
    network = build_network(f"torchvision:{name}", 7).eval()
    state = network.state_dict()
    assert list(state) == list(plain.state_dict())
    use(network)
    images_BCHW = images_of_size(64)
    logits_BK, embedding_BD, *_ = network.outputs(images_BCHW)
    assert torch.equal(logits_BK, plain(images_BCHW))
    assert torch.equal(network(images_BCHW), logits_BK)
    assert embedding_BD.shape == (2, network.embedding_dim)
    if isinstance(network.head, nn.Linear):
        assert torch.equal(network.head(embedding_BD), logits_BK)
    assert not network.head._forward_pre_hooks


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_are_built_without(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 7)
        plain = torchvision.models.get_model(name, num_classes=7, init_weights=True)
    dropped = plain.state_dict().keys() - network.state_dict().keys()
    assert dropped
    assert all(any(key.startswith(start) for start in network.published_names) for key in dropped)
    assert not any(key.startswith(start) for key in network.state_dict() for start in network.published_names)
    assert not recwarn.list


def foreign_resnet() -> Network:
    """torchvision's resnet18, as after training."""
    return used_network("torchvision:resnet18")


def test_a_foreign_state_has_the_librarys_names_wherever_it_is() -> None:
    network, plain = foreign_resnet(), torchvision.models.resnet18(num_classes=7)
    student = Student(network, auxiliary_head("linear", network.embedding_dim, 7))
    names = list(plain.state_dict())
    assert list(network.state_dict()) == names
    assert list(student.state_dict()) == [
        *(f"backbone.{name}" for name in names),
        *("auxiliary.weight", "auxiliary.bias"),
    ]
    plain.load_state_dict(network.state_dict())
    images_BCHW = images_of_size(32)
    assert torch.equal(plain.eval()(images_BCHW), network(images_BCHW))


def test_a_foreign_state_goes_back_where_it_came_from() -> None:
    trained = foreign_resnet()
    images_BCHW = images_of_size(32)
    expected = trained(images_BCHW)
    for network in (build_network("torchvision:resnet18", 7), copy.deepcopy(build_network("torchvision:resnet18", 7))):
        assert not torch.equal(network.eval()(images_BCHW), expected)
        before = dict(trained.state_dict())
        assert str(network.load_state_dict(trained.state_dict())) == "<All keys matched successfully>"
        assert torch.equal(network(images_BCHW), expected)
        assert list(before) == list(trained.state_dict())
    student = Student(trained, auxiliary_head("nonlinear", trained.embedding_dim, 7))
    other = copy.deepcopy(Student(build_network("torchvision:resnet18", 7), copy.deepcopy(student.auxiliary))).eval()
    other.load_state_dict(dict(student.eval().state_dict()))
    assert torch.equal(other(images_BCHW).task, expected)
    assert torch.equal(other(images_BCHW).distill, student(images_BCHW).distill)
    incomplete = {name: tensor for name, tensor in trained.state_dict().items() if name != "layer1.0.bn1.weight"}
    with pytest.raises(RuntimeError, match=re.escape("layer1.0.bn1.weight")):
        trained.load_state_dict(incomplete)


def test_a_copy_of_a_foreign_network_is_its_own() -> None:
    network = foreign_resnet()
    other = copy.deepcopy(network)
    assert list(other.state_dict()) == list(network.state_dict())
    assert other.head is not network.head
    with torch.no_grad():
        other.head.weight.zero_()
    images_BCHW = images_of_size(32)
    assert torch.equal(other(images_BCHW), other.head.bias.expand(2, 7))
    assert not torch.equal(network(images_BCHW), other(images_BCHW))
    assert torch.equal(network.outputs(images_BCHW).embedding, other.outputs(images_BCHW).embedding)


def test_a_students_second_head_fits_a_foreign_network() -> None:
    backbone = foreign_resnet()
    student = Student(backbone, auxiliary_head("linear", backbone.embedding_dim, 5)).train()
    logits = student(images_of_size(32))
    assert (logits.task.shape, logits.distill.shape) == ((2, 7), (2, 5))
    logits.distill.sum().backward()
    assert backbone.head.weight.grad is None
    assert all(p.grad is not None for name, p in backbone.named_parameters() if "fc." not in name)
    counters = [t for name, t in student.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20
    assert all(int(counter) == 1 for counter in counters)


@torch.no_grad()
def test_maps_of_a_foreign_resnet_are_those_that_its_names_spell() -> None:
    network = foreign_resnet().double()
    state, images_BCHW = network.state_dict(), images_of_size(64).double()
    before = batch_norm(state, "bn1", F.conv2d(images_BCHW, state["conv1.weight"], stride=2, padding=3))
    maps = [(before, relu(before))]
    x = F.max_pool2d(relu(before), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            before = basic_block(state, f"layer{stage}.{number}", x, 2 if stage > 1 and number == 0 else 1)
            x = relu(before)
        maps.append((before, x))
    expected = classified(state, maps, x, "fc")
    logits_BK, embedding_BD, seen, final_BDHW = network.outputs(images_BCHW, maps=True)
    assert final_BDHW is seen[-1].after
    torch.testing.assert_close(logits_BK, expected.logits_BK, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(embedding_BD, expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close([tuple(one) for one in seen], expected.maps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in BUILT_WITHOUT_VALUES if re.match("(wide_)?resne", name)])
def test_every_resnet_of_torchvision_gives_maps(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        maps = build_network(f"torchvision:{name}", 7).outputs(torch.empty(2, 3, 64, 64), maps=True).maps
    channels = [64, 64, 128, 256, 512] if name in ("resnet18", "resnet34") else [64, 256, 512, 1024, 2048]
    expected = [(2, width, side, side) for width, side in zip(channels, (32, 16, 8, 4, 2), strict=True)]
    assert [one.before.shape for one in maps] == [one.after.shape for one in maps] == expected


def test_asking_a_foreign_resnet_for_maps_changes_nothing_else() -> None:
    plain = foreign_resnet().train()
    asked = copy.deepcopy(plain)
    images_BCHW = images_of_size(32)
    seen = asked.outputs(images_BCHW, maps=True)
    assert torch.equal(seen.logits, plain(images_BCHW))
    assert_sides_of_an_activation(seen.maps, linear=False)
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in asked.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in asked.modules())


def test_other_foreign_networks_give_no_maps() -> None:
    with torch.device("meta"):
        network = build_network("torchvision:vgg11", 7)
    with pytest.raises(ConfigError) as caught:
        network.outputs(torch.empty(1, 3, 32, 32, device="meta"), maps=True)
    assert str(caught.value) == (
        "network torchvision:vgg11 gives no stage maps: of other libraries' networks only torchvision's ResNets do"
    )


class Spread(nn.Module):
    """Classifies every position and gives the mean."""

    def __init__(self, head: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.head = head
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            out: Tensor = self.head(x)
        positions = (2, 3) if isinstance(self.head, nn.Conv2d) else tuple(range(1, out.ndim - 1))
        return out.mean(positions) if positions else out


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6), (2, 6, 3, 4)])
def test_the_embedding_is_averaged_over_positions(shape: tuple[int, ...]) -> None:
    head = nn.Conv2d(6, 7, 1) if shape[1:] == (6, 3, 4) else nn.Linear(6, 7)
    network = ForeignNetwork("spread", Spread(head), 7)
    logits_BK, embedding_BD, *_ = network.outputs(torch.randn(shape))
    assert embedding_BD.shape == (2, network.embedding_dim) == (2, 6)
    from_embedding = F.linear(embedding_BD, head.weight.flatten(1), head.bias)
    torch.testing.assert_close(logits_BK, from_embedding)


@pytest.mark.parametrize("times", [0, 2])
def test_a_classifier_that_is_not_called_once_is_refused(times: int) -> None:
    network = ForeignNetwork("spread", Spread(nn.Linear(6, 7), times), 7)
    with pytest.raises((ConfigError, UnboundLocalError)) as caught:
        network.outputs(torch.randn(2, 6))
    assert times == 0 or str(caught.value) == "network spread: expected one call of its classifier head, saw 2"
    assert not network.head._forward_pre_hooks


def test_a_network_without_a_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^network spread: expected a linear classifier of 8 classes, found none$"):
        ForeignNetwork("spread", Spread(nn.Linear(6, 7)), 8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "torch:resnet18",
            "unknown library of networks 'torch': did you mean 'torchvision'? valid are simkd, timm, torchvision",
        ),
        (
            "torchvision:resnet19",
            "unknown network 'torchvision:resnet19': did you mean 'torchvision:resnet18'?"
            " torchvision.models.list_models(module=torchvision.models) gives all 80",
        ),
        (
            "torchvision:fcn_resnet50",
            "unknown network 'torchvision:fcn_resnet50': did you mean 'torchvision:resnet50'?"
            " torchvision.models.list_models(module=torchvision.models) gives all 80",
        ),
        (
            "torchvision:",
            "unknown network 'torchvision:': torchvision.models.list_models(module=torchvision.models) gives all 80",
        ),
    ],
)
def test_an_unknown_foreign_network_is_told_the_nearest(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, 7)
    assert str(caught.value).replace(f"all {len(BUILT_WITHOUT_VALUES) + len(REGNETS)}", "all 80") == text


def test_without_timm_its_networks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"^network timm:resnet18: timm is not installed; pip install timm$"):
        build_network("timm:resnet18", 7)


@torch.no_grad()
@pytest.mark.parametrize(("name", "width", "size"), [("resnet18", 512, 32), ("vit_tiny_patch16_224", 192, 224)])
def test_timms_networks_are_its_own(name: str, width: int, size: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is optional")
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=7).eval()
    torch.manual_seed(0)
    network = build_network(f"timm:{name}", 7).eval()
    assert list(network.state_dict()) == list(plain.state_dict())
    images_BCHW = images_of_size(size)
    logits_BK, embedding_BD, *_ = network.outputs(images_BCHW)
    assert torch.equal(logits_BK, plain(images_BCHW))
    assert embedding_BD.shape == (2, network.embedding_dim) == (2, width)
    assert torch.equal(network.head(embedding_BD), logits_BK)
    copy.deepcopy(network).load_state_dict(plain.state_dict())


def test_an_unknown_network_of_timm_is_told_the_nearest() -> None:
    pytest.importorskip("timm", reason="timm is optional")
    with pytest.raises(ConfigError, match=r"^unknown network 'timm:resnet18x': did you mean 'timm:resnet18\w?'\? timm"):
        build_network("timm:resnet18x", 7)


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_images_of_a_size_that_a_foreign_network_refuses_are_one_line(name: str) -> None:
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 5).eval()
        with pytest.raises(
            ConfigError, match=rf"^network torchvision:{name} takes no images of 32×32 pixels \(.*views\.size"
        ):
            network(torch.empty(2, 3, 32, 32))
