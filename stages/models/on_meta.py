"""Networks on the meta device, and their outputs, which have shapes and no values.

A command asks for the shapes of the same few networks several times, and a sweep does so for every run, so the last
ones are kept. Networks that a user wrote, and those that can't be built on the meta device, are none of these.
"""

from functools import lru_cache

import torch
from dhkd.stages.models import build_network
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.network import Network, Outputs

KEPT = 8


def network_on_meta(wanted: Architecture, num_classes: int, channels: int) -> Network:
    """Return the network in evaluation mode; it may be one that was returned before, so it must not be changed."""
    return _network(wanted, repr(wanted), num_classes, channels)


def outputs_on_meta(
    wanted: Architecture, num_classes: int, channels: int, image: tuple[int, int], *, maps: bool
) -> Outputs:
    """Return the network's outputs for two images of this height and width, with or without its maps."""
    return _outputs(wanted, repr(wanted), num_classes, channels, tuple(image), maps)


# The representation is part of the keys, because options that differ may be equal: 1 and True.
@lru_cache(maxsize=KEPT)
def _network(wanted: Architecture, text: str, num_classes: int, channels: int) -> Network:
    with torch.device("meta"):
        return build_network(wanted, num_classes, channels).eval()


@lru_cache(maxsize=KEPT)
def _outputs(
    wanted: Architecture, text: str, num_classes: int, channels: int, image: tuple[int, ...], maps: bool
) -> Outputs:
    images_BCHW = torch.empty(2, channels, *image, device="meta")
    with torch.no_grad():
        return _network(wanted, text, num_classes, channels).outputs(images_BCHW, maps=maps)
