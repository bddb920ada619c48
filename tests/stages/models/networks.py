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


def assert_sides_of_an_activation(maps: tuple[StageMap, ...], linear: bool) -> None:
    """Of a `linear` network, only the stem has an activation."""
    for number, stage_map in enumerate(maps):
        if linear and number:
            assert stage_map.before is stage_map.after
        else:
            assert torch.equal(stage_map.after, stage_map.before.relu())
            assert (stage_map.before < 0).any()


def assert_shapes(outputs: Outputs, batch: int, num_classes: int, embedding_dim: int) -> None:
    """Every output has the shape that `Outputs` documents; both sides of a map have the same."""
    with jaxtyped("context"):
        assert isinstance(outputs.logits, Float[Tensor, f"{batch} {num_classes}"])
        assert isinstance(outputs.embedding, Float[Tensor, f"{batch} {embedding_dim}"])
        assert outputs.final is None or isinstance(outputs.final, Float[Tensor, f"{batch} {embedding_dim} H W"])
    for stage_map in outputs.maps:
        with jaxtyped("context"):
            assert isinstance(stage_map.before, Float[Tensor, f"{batch} C H W"])
            assert isinstance(stage_map.after, Float[Tensor, f"{batch} C H W"])
