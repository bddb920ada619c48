"""What methods take of networks, and how they begin, as in their authors' code; and what a run records of that.

The numbers are computed here from the tensors of a state, by the second forward in `tests/stages/models/forwards.py`.
Sources: the authors' repositories penghui-yang/DHKD, dvlab-research/ReviewKD, HobbitLong/RepDistiller and
GzyAftermath/CAT-KD, and megvii-research/mdistiller for the settings of the comparison.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.pipeline.build.training import student_of
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.signals import Shapes, needs_maps, signals_of_outputs
from dhkd.stages.train.objectives import build_objective, combined_objective
from dhkd.stages.train.objectives.contract import Objective, Setting
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.stages.models.forwards import FORWARDS, Forward, family
from tests.stages.models.networks import images_of_size, used_network

Array = NDArray[np.float64]

CLASSES, PIXELS = 7, 16
LABELS = Labels(torch.tensor([1, 4]))


@cache
def network_of(name: str) -> Network:
    return used_network(name, CLASSES).double()


@cache
def forward_of(name: str) -> Forward:
    """By the second implementation, in double precision."""
    return FORWARDS[family(name)](network_of(name).state_dict(), images_of_size(PIXELS).double())


def setting_of(student: str, teacher: str, pixels: int = PIXELS, objective: Objective | None = None) -> Setting:
    shapes = [Shapes(name, CLASSES, (pixels, pixels)) for name in (student, teacher)]
    setting = Setting(*shapes, torch.arange(60) % CLASSES, 0, network_of(teacher))
    return replace(setting, student=shapes[0].of(objective.architecture(setting))) if objective else setting


def terms_of(name: str, options: Mapping[str, object], student: str, teacher: str) -> dict[str, Tensor]:
    """Compute the terms for the two networks. Adapters start with the weights that seed 0 draws."""
    objective = build_objective(name, options)
    setting = setting_of(student, teacher)
    trained = student_of(objective, setting).double().eval()
    trained.backbone.load_state_dict(network_of(student).state_dict())
    images_BCHW, index_B = images_of_size(PIXELS).double(), torch.arange(2)
    needs, network = list(objective.needs(setting)), network_of(teacher)
    with torch.no_grad():
        signals = signals_of_outputs(network, network.outputs(images_BCHW, maps=needs_maps(needs)), needs)
        batch = Batch(0, torch.zeros_like(index_B), index_B, images_BCHW, LABELS, signals, 2)
        return objective.terms(trained(images_BCHW, batch), LABELS, signals)


def attention(map_BCHW: Tensor, side: int) -> Array:
    """mdistiller, distillers/AT.py: the mean square over channels at each position, to unit length for each sample."""
    x = map_BCHW.numpy()
    step = x.shape[2] // side
    pooled = x.reshape(*x.shape[:2], side, step, side, step).mean((3, 5))
    square = (pooled**2).mean(1).reshape(len(x), -1)
    return square / np.sqrt((square**2).sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("student", "teacher"), [("wrn_16_1", "wrn_16_2"), ("ShuffleV1", "wrn_16_2"), ("wrn_16_1", "resnet8")]
)
def test_attention_is_that_of_the_sums_in_wide_resnets(student: str, teacher: str) -> None:
    expected, after = 0.0, 0.0
    for maps in zip(forward_of(student).maps[1:], forward_of(teacher).maps[1:], strict=True):
        side = min(stage_map[0].shape[2] for stage_map in maps)
        for_out, for_after = ([attention(one[place], side) for one in maps] for place in (2, 1))
        expected += ((for_out[0] - for_out[1]) ** 2).mean()
        after += ((for_after[0] - for_after[1]) ** 2).mean()
    assert terms_of("at", {}, student, teacher)["at"].item() == pytest.approx(expected, rel=1e-9)
    assert abs(expected - after) > 0.01 * expected  # the maps after the next activation give another number


@pytest.mark.parametrize("name", ["wrn_16_2", "wrn_40_1"])
def test_signals_of_a_wide_resnet_on_all_sides(name: str) -> None:
    network, maps = network_of(name), forward_of(name).maps
    with torch.no_grad():
        outputs = network.outputs(images_of_size(PIXELS).double(), maps=True)
        signals = signals_of_outputs(
            network, outputs, ["map2-before", "map2", "map2-out", "last_map", "attention2-8x8-out"]
        )
    for signal, side in zip(("map2-before", "map2", "map2-out"), maps[2], strict=True):
        torch.testing.assert_close(signals[signal], side, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(signals["last_map"], maps[3][1], rtol=1e-9, atol=1e-9)
    assert np.allclose(signals["attention2-8x8-out"].numpy(), attention(maps[2][2], 8), rtol=1e-9, atol=1e-12)
    assert (signals["map2-out"] < 0).any()
    # Of all other networks, -out names the same tensor.
    plain = network_of("resnet8")
    with torch.no_grad():
        outputs = plain.outputs(images_of_size(PIXELS).double(), maps=True)
    both = signals_of_outputs(plain, outputs, ["map2", "map2-out"])
    assert both["map2"] is both["map2-out"]


def test_fitnets_hint_is_the_sum_of_a_wide_resnet() -> None:
    objective = build_objective("fitnet", {})
    setting = setting_of("wrn_16_1", "wrn_16_2")
    assert list(objective.needs(setting)) == list(objective.reads(setting)) == ["map2-out"]
    trained = student_of(objective, setting)
    weight, bias = (getattr(trained.adapter.layers[0], name).detach().double().numpy() for name in ("weight", "bias"))
    out = forward_of("wrn_16_1").maps[2][2].numpy()
    # A fresh batch norm in evaluation mode divides by √(1 + 1e-5).
    convolved = np.einsum("bchw,dc->bdhw", out, weight[:, :, 0, 0]) + bias[:, None, None]
    imitation = np.maximum(convolved / np.sqrt(1 + 1e-5), 0)
    expected = ((imitation - forward_of("wrn_16_2").maps[2][2].numpy()) ** 2).mean()
    assert terms_of("fitnet", {}, "wrn_16_1", "wrn_16_2")["hint"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("student", "options", "expected"),
    [
        ("resnet8", {}, ["map1", "map2", "map3"]),
        ("wrn_16_1", {}, ["map1-out", "map2-out", "map3-out"]),  # ReviewKD, CIFAR-100: is_feat without preact
        ("ShuffleV2", {}, ["map1", "map2", "map3"]),
        # ReviewKD, ImageNet: extract_feature(preReLU=True)
        ("resnet8", {"student_before_activation": True}, ["map1-before", "map2-before", "map3-before"]),
        ("wrn_16_1", {"student_before_activation": True}, ["map1-before", "map2-before", "map3-before"]),
    ],
)
def test_reviewkd_takes_these_maps(student: str, options: dict[str, object], expected: list[str]) -> None:
    objective = build_objective("reviewkd", options)
    setting = setting_of(student, "wrn_16_2")
    assert list(objective.reads(setting)) == [*expected, "embedding"]
    assert list(objective.needs(setting)) == ["map1-before", "map2-before", "map3-before", "embedding"]
    terms = terms_of("reviewkd", options, student, "wrn_16_2")
    assert torch.isfinite(terms["review"])
    assert terms["review"] > 0


# The authors' `mid_channel`: that of ImageNet/models/reviewkd.py, and for CIFAR-100 `min(512, in_channels[-1])`.
@pytest.mark.parametrize(
    ("student", "options", "width"),
    [
        ("MobileNetV1", {"fusion_width": 256}, 256),
        ("torchvision:resnet18", {}, 512),
        ("resnet8", {}, 64),
        ("resnet8x4", {"fusion_width": 256}, 256),
        ("wrn_16_2", {}, 128),
        ("ShuffleV1", {}, 512),
        ("MobileNetV2", {}, 512),
    ],
)
def test_reviewkds_fusions_are_of_the_authors_width(student: str, options: dict[str, object], width: int) -> None:
    with torch.device("meta"):
        adapter = build_objective("reviewkd", options).adapter(setting_of(student, student, 64))
    convolutions = [module for module in adapter.modules() if isinstance(module, nn.Conv2d)]
    assert {fusion.narrow[0].out_channels for fusion in adapter.fusions} == {width}
    assert {convolution.in_channels for convolution in convolutions[1::3]} <= {width, 2 * width}


@pytest.mark.parametrize(
    ("student", "spread"),
    [
        # A 1×1 convolution of K filters has a fan out of K: N(0, 2/K).
        *(
            (name, (2 / 100) ** 0.5)
            for name in ("resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "torchvision:resnet18")
        ),
        # ShuffleNets' convolutions start as torch's do, uniform within 1/√fan in.
        *((name, (1 / (3 * width)) ** 0.5) for name, width in (("ShuffleV1", 960), ("ShuffleV2", 1024))),
    ],
)
def test_cat_kds_classifier_is_a_convolution_without_bias(student: str, spread: float) -> None:
    objective = build_objective("cat-kd", {})
    shapes = Shapes(student, 100, (64, 64))
    head = student_of(objective, Setting(shapes, shapes, torch.arange(200) % 100, 0)).backbone.head
    assert head.weight.double().std().item() == pytest.approx(spread, rel=0.05)
    assert not head.bias.any()
    assert not head.bias.requires_grad
    assert head.weight.requires_grad
    plain = student_of(build_objective("cat-kd", {"bias": True}), Setting(shapes, shapes, torch.arange(200) % 100, 0))
    torch.manual_seed(0)
    expected = build_network(student, 100).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.backbone.state_dict().items())
    assert plain.backbone.head.bias.requires_grad


@pytest.mark.parametrize("text", ["simkd + cat-kd", "cat-kd + simkd"])
def test_cat_kd_leaves_the_teachers_classifier_alone(text: str) -> None:
    objective = combined_objective(text, {})
    setting = setting_of("resnet8", "resnet14", objective=objective)
    head = student_of(objective, setting).backbone.head
    teacher = network_of("resnet14").head.state_dict()
    assert all(torch.equal(tensor, teacher[name].float()) for name, tensor in head.state_dict().items())


def test_ofd_says_which_teachers_it_can_take_no_margins_of() -> None:
    objective = build_objective("ofd", {})
    with pytest.raises(ConfigError) as raised:
        objective.adapter(setting_of("ShuffleV1", "ShuffleV2"))
    assert str(raised.value) == (
        "objective 'ofd': the margins of stage 1 of ShuffleV2 follow from the batch norm before its activation:"
        " expected 116 channels, got 58; choose another teacher or objective"
    )


WIDE = ("wrn_16_1", "wrn_16_2")
PLAIN = ("resnet8", "resnet14")
UNEVEN = ("ShuffleV1", "resnet14")
STANDARDIZED: dict[str, object] = {"standardize": True}


@pytest.mark.parametrize(
    ("name", "options", "pair", "expected"),
    [
        *(
            (name, {}, pair, None)
            for name in ("ce", "mse", "dist", "rkd", "binary-kl", "simkd")
            for pair in (WIDE, UNEVEN)
        ),
        *((name, {}, WIDE, None) for name in ("kd", "dkd", "dhkd", "ofd")),
        *((name, STANDARDIZED, PLAIN, 2) for name in ("kd", "dkd", "dhkd")),
        *((name, {}, WIDE, 2) for name in ("at", "fitnet", "reviewkd")),
        *((name, {}, PLAIN, None) for name in ("at", "fitnet", "reviewkd", "ofd")),
        *((name, {}, ("resnet8", "wrn_16_2"), 2) for name in ("at", "fitnet")),
        ("reviewkd", {}, ("resnet8", "wrn_16_2"), None),  # its teacher's maps were before the activation from the start
        ("reviewkd", {"student_before_activation": True}, WIDE, None),
        *((name, {}, UNEVEN, 2) for name in ("ofd", "fitnet")),
        *((name, {}, UNEVEN, None) for name in ("at", "reviewkd")),
        ("fitnet", {"hint_stage": 0}, UNEVEN, None),
        ("crd", {}, PLAIN, 2),
        ("crd", {"replacement": True}, PLAIN, None),
        ("cat-kd", {}, PLAIN, 2),
        ("cat-kd", {"bias": True}, PLAIN, None),
    ],
)
def test_a_run_records_the_definition_if_there_was_an_earlier_one(
    name: str, options: dict[str, object], pair: tuple[str, str], expected: int | None
) -> None:
    objective = build_objective(name, options)
    definitions = dict(objective.definitions(setting_of(*pair, objective=objective)))
    assert definitions == ({name: expected} if expected else {})


def test_a_combination_records_the_definitions_of_all_parts() -> None:
    objective = combined_objective(
        "dhkd + 0.5 * at + crd + reviewkd", {"reviewkd": {"student_before_activation": True}}
    )
    assert dict(objective.definitions(setting_of(*WIDE))) == {"at": 2, "crd": 2}
