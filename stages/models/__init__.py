"""The networks by name. A new family is one file here and its lines in `NETWORKS`."""

from collections.abc import Callable
from functools import partial

from dhkd.data.errors import one_of
from dhkd.stages.models.network import Network, count_parameters
from dhkd.stages.models.resnet import NARROW, WIDE, ResNet

__all__ = ["NETWORKS", "Network", "build_network", "count_parameters"]

# From the number of classes to a freshly initialised network.
NETWORKS: dict[str, Callable[[int], Network]] = {
    **{f"resnet{depth}": partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(ResNet, 8, WIDE),
    "resnet32x4": partial(ResNet, 32, WIDE),
}


def build_network(name: str, num_classes: int) -> Network:
    """The network `name`, freshly initialised from torch's generator. Raises `ConfigError` for an unknown name."""
    return one_of("network", name, NETWORKS)(num_classes)
