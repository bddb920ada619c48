"""Networks of one's own that are wrong, odd, or only unusual: one clear line, or training that works."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import ConfigError, DhkdError
from dhkd.data.own_code import offer
from dhkd.pipeline.build.networks import trained_network
from dhkd.pipeline.fits import misfit, trial_teacher
from dhkd.stages.models import build_network
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import save_weights, weights_sha256
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Setting
from torch import Tensor, nn

CLASSES, SIDE = 5, 16

pytestmark = pytest.mark.usefixtures("no_own_code")


class Small(nn.Module):
    """Two convolutions, pooling and a linear classifier; the attacks change its forward."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def features(self, images_BCHW: Tensor) -> Tensor:
        return self.pool(self.conv2(self.conv1(images_BCHW))).flatten(1)

    def forward(self, images_BCHW: Tensor) -> object:
        return self.fc(self.features(images_BCHW))


def small_with(forward: Callable[[Small, Tensor], object]) -> Callable[[int], nn.Module]:
    """Return what makes a `Small` with another forward."""

    class Changed(Small):
        def forward(self, images_BCHW: Tensor) -> object:
            return forward(self, images_BCHW)

    return Changed


def shapes_of(make: Callable[..., object], **settings: object) -> Shapes:
    return Shapes(Architecture(offer("own", make), **settings), CLASSES, (SIDE, SIDE))


def setting_of(student: Architecture, teacher: Architecture) -> Setting:
    student_shapes, teacher_shapes = (Shapes(one, CLASSES, (SIDE, SIDE)) for one in (student, teacher))
    setting = Setting(student_shapes, teacher_shapes, torch.arange(40) % CLASSES, 0)
    return replace(setting, teacher_network=trial_teacher(setting))


def refused(make: Callable[..., object], says: str, **settings: object) -> None:
    with pytest.raises(DhkdError, match=says) as raised:
        shapes_of(make, **settings).row("logits")
    assert "\n" not in str(raised.value)
    assert "own" in str(raised.value), "it names the network"


# What a forward pass returns

WRONG = {
    "nothing": (lambda self, x: None, r"got nothing \(None\)"),
    "an empty tuple": (lambda self, x: (), "got a tuple of nothing"),
    "a tuple of text": (lambda self, x: ("logits", 3), "got a tuple of a str, a int"),
    "a dictionary without logits": (lambda self, x: {"scores": self.fc(self.features(x))}, "with 'scores'"),
    "a number": (lambda self, x: 3.0, "got a float"),
    "another width": (lambda self, x: torch.zeros(len(x), 7), r"\(2, 5\).*\(2, 7\).*with 5 outputs"),
    "another batch": (lambda self, x: self.fc(self.features(x))[:1], r"\(2, 5\).*\(1, 5\).*one row"),
    "a sum over the batch": (lambda self, x: self.fc(self.features(x)).sum(0), r"\(2, 5\).*\(5,\)"),
    "a sequence": (lambda self, x: torch.zeros(len(x), 9, CLASSES), "pool positions or tokens"),
    "classes": (lambda self, x: torch.zeros(len(x), CLASSES, dtype=torch.int64), "before argmax"),
    "NaN": (lambda self, x: self.fc(self.features(x)) * float("nan"), "expected finite outputs"),
    "infinity": (lambda self, x: self.fc(self.features(x)) / 0, "expected finite outputs"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_results_that_are_no_logits_are_refused(kind: str) -> None:
    forward, says = WRONG[kind]
    refused(small_with(forward), says)


class WithLogits:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.loss = logits, None


GOOD = {
    "a tuple": lambda self, x: (self.fc(self.features(x)), x),
    "a list of deep supervision": lambda self, x: [self.fc(self.features(x)), torch.zeros(len(x), 9)],
    "a dictionary": lambda self, x: {"loss": None, "logits": self.fc(self.features(x))},
    "an object": lambda self, x: WithLogits(self.fc(self.features(x))),
}


@pytest.mark.parametrize("kind", GOOD)
def test_logits_are_found_in_what_a_forward_returns(kind: str) -> None:
    shapes = shapes_of(small_with(GOOD[kind]))
    assert shapes.row("logits") == (CLASSES,)
    assert shapes.row("embedding") == (8,)


# What it does besides


def raising(self: Small, x: Tensor) -> Tensor:
    raise KeyError("no such layer")


def in_place(self: Small, x: Tensor) -> Tensor:
    x *= 2
    return self.fc(self.features(x))


def random_in_eval(self: Small, x: Tensor) -> Tensor:
    logits: Tensor = self.fc(self.features(x))
    return logits + torch.randn_like(logits)


def broken_constructor(num_classes: int) -> nn.Module:
    raise FileNotFoundError("weights.bin")


def test_an_exception_in_forward_is_one_line_with_its_place() -> None:
    refused(small_with(raising), r"network own: its forward: KeyError: 'no such layer' \(test_networks.py, line \d+\)")


def test_an_exception_in_the_constructor_is_one_line() -> None:
    refused(broken_constructor, "network own: FileNotFoundError: weights.bin")


def test_a_network_that_changes_its_images_is_refused() -> None:
    refused(small_with(in_place), "leaves the images as they are")


def test_random_numbers_in_eval_mode_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dhkd"):
        shapes_of(small_with(random_in_eval)).row("logits")
    assert "gives other outputs the second time" in caplog.text


def test_a_forward_that_is_not_random_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dhkd"):
        shapes_of(Small).row("logits")
    assert not caplog.text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_become_float32(dtype: torch.dtype) -> None:
    network = build_network(offer("own", lambda num_classes: Small(num_classes).to(dtype)), CLASSES)
    assert network(torch.rand(2, 3, SIDE, SIDE)).dtype == torch.float32


# Parameters


def test_shared_parameters_are_saved_and_loaded(tmp_path: Path) -> None:
    def tied(num_classes: int) -> nn.Module:
        network = Small(num_classes)
        network.conv1[1].bias = network.conv1[0].bias
        return network

    network = build_network(offer("own", tied), CLASSES)
    save_weights(tmp_path / "w.safetensors", network, {})
    loaded = trained_network("own", CLASSES, tmp_path / "w.safetensors", "student").network
    assert weights_sha256(loaded) == weights_sha256(network)
    assert loaded.inner.conv1[1].bias is loaded.inner.conv1[0].bias


def test_a_student_without_parameters_is_refused() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :CLASSES]

    setting = setting_of(Architecture(offer("own", lambda num_classes: Empty())), Architecture("resnet8"))
    fault = misfit(build_objective("kd", {}), setting)
    assert fault is not None
    assert "network own: expected parameters to train" in fault


def test_parameters_without_a_gradient_are_left_as_they_are() -> None:
    def with_unused(num_classes: int) -> nn.Module:
        network = Small(num_classes)
        network.unused = nn.Linear(3, 4)
        return network

    setting = setting_of(Architecture(offer("own", with_unused)), Architecture("resnet8"))
    for name in ("kd", "dhkd"):
        assert misfit(build_objective(name, {}), setting, backward=True) is None


def test_names_of_parameters_have_no_prefix() -> None:
    network = build_network(offer("own", Small), CLASSES)
    assert list(network.state_dict()) == list(Small(CLASSES).state_dict())


# Classifiers


class Unlinear(Small):
    """A classifier of two layers, in a module of its own, behind dropout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, num_classes))


class Cosine(Small):
    """A classifier that is no layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        del self.fc
        self.directions = nn.Parameter(torch.randn(num_classes, 8))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return 10 * nn.functional.normalize(self.features(images_BCHW)) @ nn.functional.normalize(self.directions).T


def test_the_last_linear_layer_classifies_unless_another_module_is_named() -> None:
    assert shapes_of(Unlinear).embedding_dim == 7
    assert shapes_of(Unlinear, head="fc").embedding_dim == 8


@pytest.mark.parametrize(("make", "head"), [(Cosine, None), (Unlinear, "fc")])
def test_methods_say_what_they_lack_where_the_classifier_is_not_linear(make: type[nn.Module], head: str | None) -> None:
    own = Architecture(offer("own", make), head=head, maps=("conv1", "conv2"))
    ours = Architecture("resnet8", maps=("stage2", "stage3"))
    assert misfit(build_objective("kd", {}), setting_of(own, ours), backward=True) is None
    for name, setting in (("cat-kd", setting_of(own, ours)), ("simkd", setting_of(ours, own))):
        fault = misfit(build_objective(name, {}), setting)
        assert fault is not None
        assert "expected a" in fault
        assert "classifier" in fault


def test_the_auxiliary_head_needs_the_embedding() -> None:
    fault = misfit(build_objective("dhkd", {}), setting_of(Architecture(offer("own", Cosine)), Architecture("resnet8")))
    assert fault is not None
    assert "name it with student.head" in fault


def test_a_head_that_does_not_exist_or_run_is_refused() -> None:
    refused(Small, "head: it has no module 'classifier'", head="classifier")
    refused(small_with(lambda self, x: torch.zeros(len(x), CLASSES)), "head: expected one call of fc, saw 0", head="fc")


def test_a_backbone_gives_features_and_no_logits() -> None:
    backbone = shapes_of(small_with(lambda self, x: self.features(x)), head="none")
    assert backbone.row("embedding") == (8,)
    with pytest.raises(ConfigError, match="with a classifier"):
        backbone.row("logits")
    with pytest.raises(ConfigError, match="student: expected a network with a classifier"):
        Student(build_network(backbone.wanted, CLASSES), None)(torch.rand(2, 3, SIDE, SIDE))


# Maps


def test_a_path_that_does_not_exist_is_named_with_the_nearest() -> None:
    refused(Small, "maps: it has no module 'conv3'; near are conv", maps=("conv3",))


def test_a_module_that_does_not_run_has_no_map() -> None:
    def with_unused(num_classes: int) -> nn.Module:
        network = Small(num_classes)
        network.unused = nn.Conv2d(3, 4, 3)
        return network

    with pytest.raises(ConfigError, match="network own: maps: unused does not run in its forward"):
        _ = shapes_of(with_unused, maps=("unused",)).maps


@pytest.mark.parametrize(("path", "got"), [("fc", r"float32 of shape \(2, 5\)"), ("text", "a dict with 'a'")])
def test_a_module_without_a_map_is_refused(path: str, got: str) -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> object:
            return {"a": x}

    class WithText(Small):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.text = Text()

        def forward(self, images_BCHW: Tensor) -> object:
            self.text(images_BCHW)
            return super().forward(images_BCHW)

    with pytest.raises(ConfigError, match=f"network own: maps: expected of {path} a map .* got {got}"):
        _ = shapes_of(WithText, maps=(path,)).maps


def test_maps_of_changing_size_are_refused() -> None:
    class Shrinking(Small):
        calls = 0

        def features(self, images_BCHW: Tensor) -> Tensor:
            self.calls += 1
            return super().features(images_BCHW[..., : SIDE - 4 * (self.calls // 4)])

    network = build_network(Architecture(offer("own", Shrinking), maps=("conv1",)), CLASSES).eval()
    images_BCHW = torch.rand(2, 3, SIDE, SIDE)
    for _ in range(3):
        network.outputs(images_BCHW, maps=True)
    with pytest.raises(ConfigError, match=r"maps: expected of conv1 the size \(6, 8, 8\) that it had"):
        network.outputs(images_BCHW, maps=True)


def test_a_last_relu_gives_the_map_before_it_and_nothing_overwrites_it() -> None:
    network = build_network(Architecture(offer("own", Small), maps=("conv1", "conv2.0")), CLASSES).eval()
    first, second = network.outputs(torch.rand(2, 3, SIDE, SIDE), maps=True).maps
    assert bool((first.before < 0).any())
    assert torch.equal(first.before.relu(), first.after)
    assert second.before is second.after


def test_tokens_become_the_map_of_their_grid_without_the_class_token() -> None:
    class Tokens(nn.Module):
        def forward(self, map_BCHW: Tensor) -> Tensor:
            patches = map_BCHW.flatten(2).transpose(1, 2)
            return torch.cat((torch.full_like(patches[:, :1], -1), patches), dim=1)

    class WithTokens(Small):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.tokens = Tokens()

        def features(self, images_BCHW: Tensor) -> Tensor:
            return self.tokens(self.conv2(self.conv1(images_BCHW)))[:, 1:].mean(dim=1)

    network = build_network(Architecture(offer("own", WithTokens), maps=("conv2", "tokens")), CLASSES).eval()
    of_conv2, of_tokens = network.outputs(torch.rand(2, 3, SIDE, SIDE), maps=True).maps
    assert torch.equal(of_tokens.after, of_conv2.after)


def test_unequally_many_maps_are_refused_by_name() -> None:
    one, two = (Architecture(offer("own", Small), maps=maps) for maps in (("conv2",), ("conv1", "conv2")))
    for name in ("at", "ofd", "reviewkd"):
        fault = misfit(build_objective(name, {}), setting_of(one, two))
        assert fault is not None
        assert "expected equally many, got 1 of own (4×4) and 2 of own (8×8, 4×4); choose with student.maps" in fault


def test_every_method_runs_for_modules_that_are_named() -> None:
    own, ours = (
        Architecture(offer("own", Small), maps=("conv1", "conv2")),
        Architecture("resnet8", maps=("stage2", "stage3")),
    )
    for student, teacher in ((own, ours), (ours, own)):
        setting = setting_of(student, teacher)
        for name in ("fitnet", "at", "ofd", "reviewkd", "simkd", "cat-kd", "crd", "dhkd"):
            assert misfit(build_objective(name, {}), setting, backward=True) is None, name


def test_a_teacher_without_batch_norm_has_no_margins() -> None:
    class Plain(Small):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, 3, 2)

    maps = ("conv1", "conv2")
    own = Architecture(offer("own", Plain), maps=maps)
    fault = misfit(build_objective("ofd", {}), setting_of(Architecture("resnet8", maps=("stage2", "stage3")), own))
    assert fault is not None
    assert "network own: expected a batch norm before the map conv1, found none" in fault


def test_an_image_of_another_size_names_the_settings_that_help() -> None:
    with pytest.raises(ConfigError, match=r"takes no images of 32×32 pixels .*teacher.size .* options.img_size"):
        Shapes("timm:vit_tiny_patch16_224", CLASSES, (32, 32)).row("logits")
