"""Starts a network's training from the weights of another training, which may have had other classes."""

from dhkd.stages.models.network import Network
from dhkd.stages.models.projected import ProjectedNetwork
from torch import nn


def begin_with(network: Network, source: Network, *, head: bool) -> None:
    """Copy the weights of `source` into `network`, which is the same network or the SimKD network that contains it.

    The classifier is copied if `head` is true. A SimKD network keeps the teacher's classifier.
    """
    prefix = "trunk." if isinstance(network, ProjectedNetwork) else ""
    own, given = network.state_dict(), source.state_dict()
    skipped = set() if head else names_of(source, source.head)
    copied = {prefix + name: tensor for name, tensor in given.items() if name not in skipped}
    if not prefix:
        assert copied.keys() <= own.keys(), "a network of the same architecture"
    # Entries are replaced one by one: a new dict would lack the layer versions that some networks need.
    for name in own.keys() & copied.keys():
        own[name] = copied[name]
    network.load_state_dict(own)


def names_of(network: Network, part: nn.Module) -> set[str]:
    """Return the names that the tensors of `part`, a module of the network, have in the network's state dict."""
    of_part = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
    return {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in of_part}
