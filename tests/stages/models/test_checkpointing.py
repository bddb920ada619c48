"""Checkpointed networks: the same outputs, gradients and running statistics, and fewer kept activations."""

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models import NETWORKS, Network, build_network
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.own import own_network
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.few import few

FAMILIES = (
    "resnet14",
    "resnet8x4",
    "wrn_16_1",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "ResNet50",
    "MobileNetV1",
)
OF_TIMM = (
    Architecture("timm:resnet10t", {"drop_path_rate": 0.3, "drop_rate": 0.3}),
    Architecture(
        "timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 3, "drop_path_rate": 0.3, "proj_drop_rate": 0.1}
    ),
    Architecture("timm:convnext_atto", {"depths": (1, 1, 1, 1), "drop_path_rate": 0.3}),
)


class Kept:
    """The bytes of the tensors that autograd keeps during a forward pass, each memory once."""

    def __init__(self) -> None:
        self.by_memory: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        self.by_memory[memory.data_ptr()] = memory.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.by_memory.values())


def steps(network: Network, number: int = 2) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Train for some steps with dropout; return the network's state, the outputs, and the bytes kept in a step."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    outputs, kept = [], Kept()
    for step in range(number):
        torch.manual_seed(step)
        images_BCHW = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        with saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            logits_BK = network(images_BCHW)
        outputs.append(logits_BK.detach())
        # The second gradient, as an alignment of gradients computes it, runs through the graph once more.
        torch.autograd.grad(logits_BK.sum(), list(network.parameters()), retain_graph=True, allow_unused=True)
        nn.functional.cross_entropy(logits_BK, torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict(), outputs, kept.total


def built(wanted: str | Architecture) -> Network:
    torch.manual_seed(0)
    return build_network(wanted, 5)


def require_alike(plain: Network, checkpointed: Network, share: float) -> None:
    checkpointed.checkpoint_activations()
    (state, outputs, kept), (other_state, other_outputs, other_kept) = steps(plain), steps(checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(outputs, other_outputs, strict=True))
    assert state.keys() == other_state.keys()
    differing = [name for name, value in state.items() if not torch.equal(value, other_state[name])]
    assert not differing
    assert other_kept < share * kept, "fewer activations are kept"


@pytest.mark.parametrize("name", few(FAMILIES, ("resnet14", "vgg8", "ShuffleV1", "MobileNetV2")))
def test_our_networks(name: str) -> None:
    require_alike(built(name), built(name), 0.8)


def test_every_family_is_tried() -> None:
    of_families = {type(built(name)) for name in FAMILIES}
    assert of_families == {type(build_network(name, 5)) for name in NETWORKS}


@pytest.mark.parametrize("wanted", OF_TIMM, ids=str)
def test_networks_of_timm_with_dropout(wanted: Architecture) -> None:
    pytest.importorskip("timm", reason="needs timm")
    require_alike(built(wanted), built(wanted), 0.8)


def test_a_network_of_transformers_in_a_users_module() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")

    def make(num_classes: int) -> nn.Module:
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32,
            patch_size=8, num_labels=num_classes, hidden_dropout_prob=0.2,
        )  # fmt: skip
        return nn.Sequential(transformers.ViTForImageClassification(config))

    def network() -> Network:
        torch.manual_seed(0)
        return own_network(Architecture("my.py:make"), make, 5)

    require_alike(network(), network(), 0.8)


def test_maps_and_a_students_trunk() -> None:
    """SimKD's network checkpoints its trunk; maps that a method compares have their gradients."""
    wanted = Architecture("simkd:resnet14+resnet8x4", parts=(Architecture("resnet14"), Architecture("resnet8x4")))
    plain, checkpointed = built(wanted), built(wanted)
    checkpointed.checkpoint_activations()
    gradients = []
    for network in (plain, checkpointed):
        maps = network.train().outputs(torch.ones(2, 3, 16, 16), maps=True).maps
        sum(stage_map.before.square().sum() for stage_map in maps).backward()
        gradients.append([parameter.grad for parameter in network.trunk.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_without_the_buffers_kept_batch_norm_would_count_twice() -> None:
    """The control: torch's own checkpoint updates running statistics again in the backward pass."""
    network = built("timm:resnet10t")
    assert isinstance(network, ForeignNetwork)
    network.inner.set_grad_checkpointing(True)
    state, _, _ = steps(network, 1)
    counted = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counted == {1, 3}  # two backward passes


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vgg11"])
def test_others_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^checkpointing: expected a network that can .*got {name}; leave check"):
        build_network(name, 5).checkpoint_activations()
