"""Dropout and drop path (stochastic depth) as settings of a training, under one name for the networks of all libraries.

They are arguments of a network's builder. They act in training only and add no parameters, so weights don't record
them. Drop path leaves out whole residual branches. Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016,
arXiv 1603.09382.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.network import Network
from dhkd.stages.models.student import SeededDropout
from torch import Tensor

DROP_PATH, DROPOUT = "drop_path", "dropout"
# What a library's builders call them. Any other builder, such as one of a user's own, takes them under our names.
NAMES: Mapping[str, Mapping[str, str]] = {
    "timm": {DROP_PATH: "drop_path_rate", DROPOUT: "drop_rate"},
    "torchvision": {DROP_PATH: "stochastic_depth_prob", DROPOUT: "dropout"},
}


def with_drops(architecture: Architecture, drops: Mapping[str, float]) -> Architecture:
    """Return the architecture with these probabilities, by our names, among its builder's options.

    In a network simkd:STUDENT+TEACHER, the student gets them. Raises `ConfigError` if its options have them already.
    """
    if not drops:
        return architecture
    if architecture.parts is not None:
        student, teacher = architecture.parts
        return replace(architecture, parts=(with_drops(student, drops), teacher))
    names = NAMES.get(architecture.name.partition(":")[0], {})
    options = {names.get(name, name): value for name, value in drops.items()}
    for name, option in zip(drops, options, strict=True):
        if option in architecture.options:
            raise ConfigError(f"{name}: expected it once, got options.{option} as well; leave one of them out")
    return replace(architecture, options={**architecture.options, **options})


def draws_random_numbers(network: Network, images_BCHW: Tensor) -> bool:
    """Return whether a forward pass in training mode draws random numbers, and restore the network afterwards.

    Calls such as `F.dropout` can't be seen in the modules, so two images or more are passed through the network.
    """
    if any(isinstance(module, SeededDropout) and module.p > 0 for module in network.modules()):
        return True
    return draws_from_torch(network, images_BCHW)


def draws_from_torch(network: Network, images_BCHW: Tensor) -> bool:
    """Return whether such a forward pass draws from torch's global generator, which students would share."""
    training, buffers = network.training, {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=()), torch.no_grad():
        before = torch.get_rng_state()
        network.train().outputs(images_BCHW)
        drawn = not torch.equal(before, torch.get_rng_state())
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    network.train(training)
    return drawn
