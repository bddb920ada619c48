"""The networks by name. To add a family of networks, add one file to this folder and list its networks in `NETWORKS`.

`torchvision:NAME` and `timm:NAME` are networks of those libraries. `simkd:STUDENT+TEACHER` is a student whose last
feature map is projected and classified by the teacher's classifier. `my_nets.py:NAME` and `package.module:NAME` are
networks that users wrote (`own.py`).
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from dhkd.data.errors import ConfigError, unknown
from dhkd.data.options import with_options
from dhkd.data.own_code import Own, find
from dhkd.stages.models.architecture import Architecture, Named, as_architecture
from dhkd.stages.models.libraries import timm_network, torchvision_network
from dhkd.stages.models.mobilenet_v1 import MobileNetV1
from dhkd.stages.models.mobilenet_v2 import MobileNetV2
from dhkd.stages.models.network import Network, as_wanted, count_parameters, with_input_channels
from dhkd.stages.models.own import own_network
from dhkd.stages.models.projected import projected_network
from dhkd.stages.models.resnet import NARROW, WIDE, ResNet
from dhkd.stages.models.resnet50 import ResNet50
from dhkd.stages.models.shufflenet_v1 import ShuffleNetV1
from dhkd.stages.models.shufflenet_v2 import ShuffleNetV2
from dhkd.stages.models.vgg import CONVOLUTIONS, VGG
from dhkd.stages.models.wide_resnet import WideResNet

__all__ = ["NETWORKS", "Network", "build_network", "count_parameters", "own_networks"]

# Each function takes the number of classes and returns a freshly initialised network.
NETWORKS: dict[str, Callable[[int], Network]] = {
    **{f"resnet{depth}": partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(ResNet, 8, WIDE),
    "resnet32x4": partial(ResNet, 32, WIDE),
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "ResNet50": ResNet50,
    "MobileNetV1": MobileNetV1,
}


# Each function takes the name after the colon, the number of classes and the whole `Architecture`, and returns a
# freshly initialised network.
LIBRARIES: dict[str, Callable[[str, int, Architecture], Network]] = {
    "torchvision": torchvision_network,
    "timm": timm_network,
    "simkd": lambda names, num_classes, wanted: _projected(wanted, num_classes),
}


def build_network(wanted: Named, num_classes: int, channels: int = 3) -> Network:
    """Build a network for images of `channels` channels, initialised from torch's global generator.

    Raises `ConfigError` for an unknown name, for options that the network doesn't take, and for a network that can't be
    changed to this number of channels.
    """
    wanted = as_architecture(wanted)
    return with_input_channels(_built(wanted, num_classes), channels, wanted.name)


def _built(wanted: Architecture, num_classes: int) -> Network:
    name = wanted.name
    library, colon, name_there = name.partition(":")
    if colon and library in LIBRARIES:
        return LIBRARIES[library](name_there, num_classes, wanted)
    if name in NETWORKS:
        return as_wanted(with_options(f"network {name}", partial(NETWORKS[name], num_classes), wanted.options), wanted)
    return own_network(wanted, _found(name), num_classes)


def _found(name: str) -> Own:
    try:
        return find("network", name, NETWORKS)
    except ConfigError:
        library, colon, _ = name.partition(":")
        if colon and get_close_matches(library, LIBRARIES, cutoff=0.5):
            line = unknown("library of networks", library, LIBRARIES)
            raise ConfigError(f"{line}; a module of that name needs --import {library}") from None
        raise


def own_networks(name: str) -> list[str]:
    """Return the names of the user-written networks in `name`; empty if it is built in or from a library."""
    library, colon, name_there = name.partition(":")
    if colon and library == "simkd":
        return [own for part in name_there.split("+") for own in own_networks(part)]
    return [] if name in NETWORKS or (colon and library in LIBRARIES) else [name]


def _projected(wanted: Architecture, num_classes: int) -> Network:
    if wanted.parts is None:
        raise ConfigError(f"network {wanted.name}: expected simkd:STUDENT+TEACHER")
    student, teacher = wanted.parts
    return projected_network(build_network(student, num_classes), build_network(teacher, num_classes))
