"""Networks as they are after training, images for them, and checks of what they give."""

import torch
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.network import Outputs, StageMap
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

CLASSES = 100


def images_of_size(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


def use(network: nn.Module) -> None:
    """Give batch norm's statistics and factors values other than 0 and 1, as training does."""
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


def assert_sides_of_an_activation(maps: tuple[StageMap, ...], name: str) -> None:
    """Of MobileNetV2, only the stem has an activation; ShuffleNetV2's stages shuffle channels after theirs."""
    for number, stage_map in enumerate(maps):
        before, after, out = stage_map
        assert (out is after) != name.startswith("wrn")
        if name == "MobileNetV2" and number:
            assert before is after
        else:
            shuffle = name == "ShuffleV2" and number > 0
            assert torch.equal(after, nn.functional.channel_shuffle(before.relu(), 2) if shuffle else before.relu())
            assert (before < 0).any()


def assert_shapes(outputs: Outputs, batch: int, num_classes: int, embedding_dim: int) -> None:
    """Every output has the shape that `Outputs` documents; both sides of a map have the same."""
    with jaxtyped("context"):
        assert isinstance(outputs.logits, Float[Tensor, f"{batch} {num_classes}"])
        assert isinstance(outputs.embedding, Float[Tensor, f"{batch} {embedding_dim}"])
        assert outputs.final is None or isinstance(outputs.final, Float[Tensor, f"{batch} {embedding_dim} H W"])
    for stage_map in outputs.maps:
        with jaxtyped("context"):
            for side in stage_map:
                assert isinstance(side, Float[Tensor, f"{batch} C H W"])
