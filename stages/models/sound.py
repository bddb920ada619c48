"""Checks a network that a user wrote, before anything is trained or cached with it."""

import logging

import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.network import Network
from torch import Tensor

log = logging.getLogger("dhkd")


def require_sound(network: Network, images_BCHW: Tensor) -> None:
    """Raise `ConfigError` if a forward pass in eval mode changes these images, or if its outputs are not finite.

    If a second pass gives other outputs, a warning is logged. Networks that users didn't write are not checked.
    """
    if not isinstance(network, ForeignNetwork) or network.of_library:
        return
    before = images_BCHW.clone()
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        first, second = (network.outputs(images_BCHW) for _ in range(2))
    if not torch.equal(before, images_BCHW):
        raise ConfigError(
            f"network {network.name}: expected that its forward leaves the images as they are, got changed ones;"
            f" compute with copies, such as x = x * 2 in place of x *= 2"
        )
    one, other = (outputs.embedding if outputs.logits is None else outputs.logits for outputs in (first, second))
    assert one is not None
    assert other is not None
    if not bool(torch.isfinite(one).all()):
        raise ConfigError(
            f"network {network.name}: expected finite outputs of a network that was just built, got NaN or infinity;"
            f" check its layers' initial values"
        )
    if not torch.equal(one, other):
        log.warning(
            "network %s gives other outputs the second time, in eval mode: a cache of it holds one of many, and"
            " accuracies vary; let it draw random numbers only while self.training",
            network.name,
        )
