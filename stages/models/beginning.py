"""Beginning a network's training with weights of another training, whose classes may be others."""

from dhkd.stages.models.network import Network
from dhkd.stages.models.projected import ProjectedNetwork
from torch import nn


def begin_with(network: Network, source: Network, *, head: bool) -> None:
    """Copy the weights of `source` into `network`, which is the same network, or SimKD's that contains it.

    The classifier is copied if `head` is true. SimKD's network keeps the teacher's.
    """
    prefix = "trunk." if isinstance(network, ProjectedNetwork) else ""
    own, given = network.state_dict(), source.state_dict()
    skipped = set() if head else names_of(source, source.head)
    copied = {prefix + name: tensor for name, tensor in given.items() if name not in skipped}
    if not prefix:
        assert copied.keys() <= own.keys(), "a network of the same architecture"
    # Entries are replaced: a new dict would lack layer versions, which some networks need.
    for name in own.keys() & copied.keys():
        own[name] = copied[name]
    network.load_state_dict(own)


def names_of(network: Network, part: nn.Module) -> set[str]:
    """Return the names that the state of `part`, a module of the network, has in the network's state."""
    of_part = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
    return {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in of_part}
