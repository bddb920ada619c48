"""Networks of torchvision and timm: logits and names are the library's, the rest is read from its forward."""

import copy
import re
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from dhkd.data.errors import ConfigError
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.student import Student, auxiliary_head
from torch import Tensor, nn

from tests.few import few
from tests.stages.models.forwards import basic_block, batch_norm, classified, relu, with_relu
from tests.stages.models.networks import assert_shapes, assert_sides_of_an_activation, images_of_size, use, used_network

# torchvision computes the widths of a RegNet from values of tensors, so it can't be built on the meta device. All
# fifteen are of one class; tests run the two smallest.
REGNETS = [name for name in torchvision.models.list_models(module=torchvision.models) if name.startswith("regnet")]
# One network of every class; the soak goes through all of them.
OF_EVERY_CLASS = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50", "shufflenet_v2_x0_5"),
    *("squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32"),
}
BUILT_ON_META = sorted(set(torchvision.models.list_models(module=torchvision.models)) - set(REGNETS))


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OF_EVERY_CLASS else pytest.mark.soak) for name in BUILT_ON_META],
)
def test_every_network_of_torchvision_has_a_classifier_and_its_input(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 7).eval()
    logits_BK, embedding_BD, maps, final_BDHW = network.outputs(torch.empty(2, 3, size, size, device="meta"))
    assert (logits_BK.shape, embedding_BD.shape, maps) == ((2, 7), (2, network.embedding_dim), ())
    assert final_BDHW is None, "the pooled map is unknown unless maps are asked for"
    # No layer follows the classifier, and there are no auxiliary classifiers.
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
def test_logits_are_those_of_the_library(name: str) -> None:
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
def test_auxiliary_classifiers_are_left_out(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 7)
        plain = torchvision.models.get_model(name, num_classes=7, init_weights=True)
    dropped = plain.state_dict().keys() - network.state_dict().keys()
    assert dropped
    assert all(any(key.startswith(start) for start in network.published_names) for key in dropped)
    assert not any(key.startswith(start) for key in network.state_dict() for start in network.published_names)
    assert not recwarn.list


def foreign_resnet() -> Network:
    """torchvision's resnet18 as it is after training."""
    return used_network("torchvision:resnet18")


def test_a_foreign_state_has_the_names_of_the_library_inside_a_student_too() -> None:
    network, plain = foreign_resnet(), torchvision.models.resnet18(num_classes=7)
    student = Student(network, auxiliary_head("linear", network, 7))
    names = list(plain.state_dict())
    assert list(network.state_dict()) == names
    assert list(student.state_dict()) == [
        *(f"backbone.{name}" for name in names),
        *("auxiliary.weight", "auxiliary.bias"),
    ]
    plain.load_state_dict(network.state_dict())
    images_BCHW = images_of_size(32)
    assert torch.equal(plain.eval()(images_BCHW), network(images_BCHW))


def test_a_foreign_state_can_be_loaded_again() -> None:
    trained = foreign_resnet()
    images_BCHW = images_of_size(32)
    expected = trained(images_BCHW)
    for network in (build_network("torchvision:resnet18", 7), copy.deepcopy(build_network("torchvision:resnet18", 7))):
        assert not torch.equal(network.eval()(images_BCHW), expected)
        before = dict(trained.state_dict())
        assert str(network.load_state_dict(trained.state_dict())) == "<All keys matched successfully>"
        assert torch.equal(network(images_BCHW), expected)
        assert list(before) == list(trained.state_dict())
    student = Student(trained, auxiliary_head("nonlinear", trained, 7))
    other = copy.deepcopy(Student(build_network("torchvision:resnet18", 7), copy.deepcopy(student.auxiliary))).eval()
    other.load_state_dict(dict(student.eval().state_dict()))
    assert torch.equal(other(images_BCHW).task, expected)
    assert torch.equal(other(images_BCHW).distill, student(images_BCHW).distill)
    incomplete = {name: tensor for name, tensor in trained.state_dict().items() if name != "layer1.0.bn1.weight"}
    with pytest.raises(RuntimeError, match=re.escape("layer1.0.bn1.weight")):
        trained.load_state_dict(incomplete)


def test_a_copy_of_a_foreign_network_is_independent() -> None:
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
    student = Student(backbone, auxiliary_head("linear", backbone, 5)).train()
    logits = student(images_of_size(32))
    assert (logits.task.shape, logits.distill.shape) == ((2, 7), (2, 5))
    logits.distill.sum().backward()
    assert backbone.head.weight.grad is None
    assert all(p.grad is not None for name, p in backbone.named_parameters() if "fc." not in name)
    counters = [t for name, t in student.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20
    assert all(int(counter) == 1 for counter in counters)


@torch.no_grad()
def test_maps_of_a_foreign_resnet_follow_from_its_names() -> None:
    network = foreign_resnet().double()
    state, images_BCHW = network.state_dict(), images_of_size(64).double()
    before = batch_norm(state, "bn1", F.conv2d(images_BCHW, state["conv1.weight"], stride=2, padding=3))
    maps = [with_relu(before)]
    x = F.max_pool2d(relu(before), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            before = basic_block(state, f"layer{stage}.{number}", x, 2 if stage > 1 and number == 0 else 1)
            x = relu(before)
        maps.append(with_relu(before))
    expected = classified(state, maps, x, "fc")
    outputs = network.outputs(images_BCHW, maps=True)
    assert_shapes(outputs, 2, 7, 512)
    logits_BK, embedding_BD, stage_maps, final_BDHW = outputs
    assert final_BDHW is stage_maps[-1].after
    torch.testing.assert_close(logits_BK, expected.logits_BK, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(embedding_BD, expected.pooled_BD, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close([tuple(stage_map) for stage_map in stage_maps], expected.maps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    few(
        [name for name in BUILT_ON_META if re.match("(wide_)?resne", name)],
        ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"],
    ),
)
def test_every_resnet_of_torchvision_gives_maps(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        maps = build_network(f"torchvision:{name}", 7).outputs(torch.empty(2, 3, 64, 64), maps=True).maps
    channels = [64, 64, 128, 256, 512] if name in ("resnet18", "resnet34") else [64, 256, 512, 1024, 2048]
    expected = [(2, width, side, side) for width, side in zip(channels, (32, 16, 8, 4, 2), strict=True)]
    assert [stage_map.before.shape for stage_map in maps] == expected
    assert [stage_map.after.shape for stage_map in maps] == expected


def test_asking_a_foreign_resnet_for_maps_changes_nothing_else() -> None:
    plain = foreign_resnet().train()
    copied = copy.deepcopy(plain)
    images_BCHW = images_of_size(32)
    outputs = copied.outputs(images_BCHW, maps=True)
    assert torch.equal(outputs.logits, plain(images_BCHW))
    assert_sides_of_an_activation(outputs.maps, "resnet")
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in copied.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in copied.modules())


def test_other_foreign_networks_give_no_maps() -> None:
    with torch.device("meta"):
        network = build_network("torchvision:vgg11", 7)
    with pytest.raises(ConfigError) as caught:
        network.outputs(torch.empty(1, 3, 32, 32, device="meta"), maps=True)
    assert str(caught.value) == (
        "network torchvision:vgg11 gives no maps: name modules whose outputs are maps with student.maps or"
        " teacher.maps, such as features.20, avgpool, classifier.6"
    )


class DenseClassifier(nn.Module):
    """Classifies every position and averages the logits."""

    def __init__(self, head: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.head = head
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            logits: Tensor = self.head(x)
        positions = (2, 3) if isinstance(self.head, nn.Conv2d) else tuple(range(1, logits.ndim - 1))
        return logits.mean(positions) if positions else logits


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6), (2, 6, 3, 4)])
def test_the_embedding_is_averaged_over_positions(shape: tuple[int, ...]) -> None:
    head = nn.Conv2d(6, 7, 1) if shape[1:] == (6, 3, 4) else nn.Linear(6, 7)
    network = ForeignNetwork("dense", DenseClassifier(head), 7)
    logits_BK, embedding_BD, *_ = network.outputs(torch.randn(shape))
    assert embedding_BD.shape == (2, network.embedding_dim) == (2, 6)
    from_embedding = F.linear(embedding_BD, head.weight.flatten(1), head.bias)
    torch.testing.assert_close(logits_BK, from_embedding)


@pytest.mark.parametrize("times", [0, 2])
def test_of_a_classifier_that_is_not_called_once_the_embedding_is_unknown(times: int) -> None:
    class Called(DenseClassifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.times else x

    network = ForeignNetwork("dense", Called(nn.Linear(7, 7), times), 7)
    outputs = network.outputs(torch.randn(2, 7))
    assert (outputs.logits.shape, outputs.embedding) == ((2, 7), None)
    assert not any(module._forward_hooks for module in network.inner.modules())


def test_without_a_layer_of_that_many_classes_the_logits_may_be_right() -> None:
    network = ForeignNetwork("dense", DenseClassifier(nn.Linear(6, 7)), 8)
    with pytest.raises(ConfigError, match=r"expected logits of shape \(2, 8\) for 2 images and 8 classes, got float32"):
        network.outputs(torch.randn(2, 6))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "torch:resnet18",
            "unknown library of networks 'torch': did you mean 'torchvision'? valid are simkd, timm, torchvision;"
            " a module of that name needs --import torch",
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
def test_the_error_for_an_unknown_foreign_network_names_the_nearest(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, 7)
    assert str(caught.value).replace(f"all {len(BUILT_ON_META) + len(REGNETS)}", "all 80") == text


def test_the_error_without_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"^network timm:resnet18: expected timm to be installed, found none; pip"):
        build_network("timm:resnet18", 7)


@torch.no_grad()
@pytest.mark.parametrize(("name", "width", "size"), [("resnet18", 512, 32), ("vit_tiny_patch16_224", 192, 224)])
def test_networks_of_timm_give_the_same_logits(name: str, width: int, size: int) -> None:
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


def test_the_error_for_an_unknown_network_of_timm_names_the_nearest() -> None:
    pytest.importorskip("timm", reason="timm is optional")
    with pytest.raises(ConfigError, match=r"^unknown network 'timm:resnet18x': did you mean 'timm:resnet18\w?'\? timm"):
        build_network("timm:resnet18x", 7)


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_the_error_for_a_size_that_a_foreign_network_refuses_is_one_line(name: str) -> None:
    with torch.device("meta"):
        network = build_network(f"torchvision:{name}", 5).eval()
        with pytest.raises(
            ConfigError, match=rf"^network torchvision:{name} takes no images of 32×32 pixels \(.*views\.size"
        ):
            network(torch.empty(2, 3, 32, 32))
