"""Our networks are the published ones: counts and names, and an independent forward from the state's names."""

import copy

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models import NETWORKS, build_network, count_parameters
from dhkd.stages.models.resnet import BasicBlock
from dhkd.stages.models.student import auxiliary_head
from torch import Tensor, nn

from tests.few import few
from tests.stages.models.forwards import FORWARDS, family
from tests.stages.models.networks import (
    CLASSES,
    assert_shapes,
    assert_sides_of_an_activation,
    images_of_size,
    used_network,
)

# Parameters, those of a linear and of a nonlinear head, pooled width, tensors in the state, million multiply-adds at
# 32×32.
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
# Extrapolated from the published counts: one more block in every stage adds 97,216 parameters, in the narrow networks
# of both kinds, and 36 tensors.
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


def test_every_network_is_tested_here() -> None:
    assert set(NETWORKS) == set(PUBLISHED) | set(EXTRAPOLATED) | set(VGG_CHANNELS) | {"MobileNetV1"}
    assert {family(name) for name in NETWORKS} == {family(name) for name in MAPS_AT_32} == set(FORWARDS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    parameters, linear, nonlinear, width, tensors, mega_macs = PUBLISHED[name]
    network = build_network(name, CLASSES)
    assert isinstance(network.head, nn.Linear)
    assert count_parameters(network) == parameters
    assert network.embedding_dim == network.head.in_features == width
    assert len(network.state_dict()) == tensors
    assert count_parameters(auxiliary_head("linear", network, CLASSES)) == linear
    assert count_parameters(auxiliary_head("nonlinear", network, CLASSES)) == nonlinear
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
def test_counts_of_the_other_vggs_follow_from_the_table_of_the_paper(name: str) -> None:
    network, channels = build_network(name, CLASSES), VGG_CHANNELS[name]
    # Each convolution has a bias, and each batch norm has two factors for each channel.
    convolutions = sum(9 * before * after + 3 * after for before, after in zip([3, *channels], channels, strict=False))
    assert count_parameters(network) == convolutions + 513 * CLASSES
    assert len(network.state_dict()) == 7 * len(channels) + 2


def macs(network: nn.Module, size: int) -> int:
    """The multiply-adds of convolutions and classifier for one image."""
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
@pytest.mark.parametrize("name", few(NETWORKS, MAPS_AT_32))
def test_logits_at_any_size_come_from_the_pooled_feature(name: str) -> None:
    network = build_network(name, 7).eval()
    for size in (8, 16):
        images_BCHW = images_of_size(size)
        outputs = network.outputs(images_BCHW)
        assert_shapes(outputs, 2, 7, network.embedding_dim)
        logits_BK, embedding_BD, maps, final_BDHW = outputs
        assert maps == ()
        assert final_BDHW is not None
        assert torch.equal(final_BDHW.mean((2, 3)), embedding_BD)
        assert torch.equal(network.head(embedding_BD), logits_BK)
        assert torch.equal(network(images_BCHW), logits_BK)
    for size in (32, 64, 96):
        outputs = network.to("meta").outputs(torch.empty(2, 3, size, size, device="meta"), maps=True)
        assert_shapes(outputs, 2, 7, network.embedding_dim)


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
def test_the_forward_follows_from_the_published_names(name: str, size: int) -> None:
    network = used_network(name).double()
    images_BCHW = images_of_size(size).double()
    expected = FORWARDS[family(name)](network.state_dict(), images_BCHW)
    logits_BK, embedding_BD, maps, final_BDHW = network.outputs(images_BCHW, maps=True)
    torch.testing.assert_close(final_BDHW.mean((2, 3)), expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(embedding_BD, expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits_BK, expected.logits_BK, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close([tuple(stage_map) for stage_map in maps], expected.maps, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", MAPS_AT_32)
def test_maps_are_of_the_stem_and_every_stage(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, 7).eval()
    maps = network.outputs(torch.empty(2, 3, 32, 32, device="meta"), maps=True).maps
    expected = [(2, channels, side, side) for channels, side in MAPS_AT_32[name]]
    assert [stage_map.before.shape for stage_map in maps] == expected
    assert [stage_map.after.shape for stage_map in maps] == expected
    assert [stage_map.out.shape for stage_map in maps] == expected


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MAPS_AT_32)
def test_asking_for_maps_changes_nothing_else(name: str, training: bool) -> None:
    plain = used_network(name).train(training)
    copied = copy.deepcopy(plain)
    images_BCHW = images_of_size(16)
    logits_BK, embedding_BD, no_maps, final_BDHW = plain.outputs(images_BCHW)
    with_maps = copied.outputs(images_BCHW, maps=True)
    assert no_maps == ()
    assert torch.equal(with_maps.final, final_BDHW)
    assert_sides_of_an_activation(with_maps.maps, name)
    assert torch.equal(with_maps.logits, logits_BK)
    assert torch.equal(with_maps.embedding, embedding_BD)
    state = plain.state_dict()
    for key, tensor in copied.state_dict().items():
        assert torch.equal(tensor, state[key]), key
        if key.endswith("num_batches_tracked"):
            assert tensor == training, key
    # The logits are computed from the maps, so that gradients reach these.
    afters = [stage_map.after for stage_map in with_maps.maps]
    gradients = torch.autograd.grad(with_maps.logits.square().sum(), afters)
    assert all(bool(gradient.any()) for gradient in gradients)


@torch.no_grad()
@pytest.mark.parametrize(("in_channels", "channels", "stride"), [(4, 6, 2), (4, 4, 2), (4, 6, 1)])
def test_the_shortcut_of_a_changed_shape_is_a_strided_pointwise_convolution(
    in_channels: int, channels: int, stride: int
) -> None:
    torch.manual_seed(1)
    changing = BasicBlock(in_channels, channels, stride)
    nn.init.zeros_(changing.bn2.weight)  # so that the other path is 0
    x = torch.randn(3, in_channels, 6, 6)
    kernel_OI = changing.state_dict()["downsample.0.weight"][:, :, 0, 0]
    projected = torch.einsum("oi,bihw->bohw", kernel_OI, x[:, :, ::stride, ::stride])
    # In training, batch norm uses the mean and variance of the batch.
    mean, var = projected.mean((0, 2, 3), keepdim=True), projected.var((0, 2, 3), correction=0, keepdim=True)
    expected = ((projected - mean) / torch.sqrt(var + 1e-5)).clamp(min=0)
    torch.testing.assert_close(changing(x), expected, rtol=1e-4, atol=1e-5)


def test_an_unchanged_shape_has_no_parameters_in_its_shortcut() -> None:
    assert not [name for name in BasicBlock(4, 4, 1).state_dict() if "downsample" in name]


@pytest.mark.parametrize("network", ["resnet32x4", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet50"])
def test_convolutions_are_initialised_as_in_he_et_al(network: str) -> None:
    torch.manual_seed(0)
    for name, module in build_network(network, CLASSES).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = pytest.approx((2 / fan_out) ** 0.5, rel=0.1 if module.weight.numel() > 800 else 0.5)
            assert module.weight.std().item() == expected, name
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
def test_channels_last_changes_only_the_layout(name: str) -> None:
    images_BCHW = images_of_size(16, batch=4)
    expected = used_network(name)(images_BCHW)
    reordered = used_network(name).to(memory_format=torch.channels_last)
    kernels = [parameter for parameter in reordered.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    for images in (images_BCHW, images_BCHW.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(reordered(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet8x5", "did you mean 'resnet8x4'? "),
        ("WRN_40_2", "did you mean 'wrn_40_2'? "),
        ("MobilenetV2", "did you mean 'MobileNetV2'? "),
        ("transformer", ""),
    ],
)
@pytest.mark.usefixtures("no_own_code")  # the message would list what other tests offered
def test_the_error_for_an_unknown_network_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, CLASSES)
    assert str(caught.value) == f"unknown network '{name}': {hint}valid are {', '.join(sorted(NETWORKS))}"


def test_count_parameters_leaves_buffers_out_and_counts_frozen_ones() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert count_parameters(module) == 12 + 4 + 8
    module[0].requires_grad_(False)  # as SimKD does with the teacher's classifier
    assert count_parameters(module) == 12 + 4 + 8
