"""Groups of a student's parameters: which of them decay, and by which factor each layer's learning rate is multiplied.

A group is a dictionary as torch's optimizers take it. The factor stands in the group under `SCALE`, the key that timm
uses, so a checkpoint holds it, and `optimizers.Rates` applies it in every step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from dhkd.data.own_code import running
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.network import Network
from dhkd.stages.models.student import Student
from torch import nn

SCALE = "lr_scale"

Group = dict[str, object]

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Decay:
    """`weight` is the weight decay, without effect on norms and biases if `spares` is true.

    `layer` is the factor of the learning rate from each layer to the one before it; 1 means one rate for all layers.
    """

    weight: float
    spares: bool = False
    layer: float = 1.0


def parameter_groups(student: nn.Module, decay: Decay) -> list[Group]:
    """Divide the parameters into groups with `weight_decay` and `SCALE`; one group without both if `decay` is plain.

    Parameters that are not trained are left out, except from the one group of a plain `decay`. The order of the groups
    is that of their first parameters, so it is the same whenever the student is built.
    """
    if not decay.spares and decay.layer == 1:
        return [{"params": list(student.parameters())}]
    scales = {} if decay.layer == 1 else _scales(student, decay.layer)
    spared = _spared(student) if decay.spares else set()
    by_factors: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in student.parameters():
        if parameter.requires_grad:
            factors = 0.0 if parameter in spared else decay.weight, scales.get(parameter, 1.0)
            by_factors.setdefault(factors, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight, SCALE: scale}
        for (weight, scale), parameters in by_factors.items()
    ]


def matrices(student: nn.Module) -> set[nn.Parameter]:
    """Return the weights of hidden linear layers: two-dimensional, in the backbone, but not its classifier."""
    network = student.backbone if isinstance(student, Student) else student
    head = network.head if isinstance(network, Network) and network.head_name is not None else None
    outside = set() if head is None else set(head.parameters())
    outside |= {one for module in network.modules() if isinstance(module, nn.Embedding) for one in module.parameters()}
    return {
        parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim == 2 and name.endswith("weight") and parameter not in outside
    }


def layers_of(network: nn.Module) -> list[list[nn.Module]]:
    """Divide a network into layers, in the order in which its modules are registered.

    Each block of a list of blocks is a layer, and so is each module beside such lists; a module without weights of two
    or more dimensions, such as a norm, belongs to the layer before it.
    """
    layers: list[list[nn.Module]] = []
    for module in _blocks(network):
        if layers and not any(parameter.ndim > 1 for parameter in module.parameters()):
            layers[-1].append(module)
        else:
            layers.append([module])
    return layers


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if _holds_blocks(child):
            yield from _blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _holds_blocks(module: nn.Module) -> bool:
    """Return whether a module is a list of modules that have parts, or has a list of several blocks within it.

    A block is a module that has parts and is no list. A list of plain layers is a layer itself.
    """
    if isinstance(module, _LISTS) and any(_has_parts(child) for child in module.children()):
        return True
    lists = [part for part in module.modules() if isinstance(part, _LISTS)]
    return any(sum(_has_parts(one) and not isinstance(one, _LISTS) for one in part.children()) > 1 for part in lists)


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _scales(student: nn.Module, factor: float) -> Mapping[nn.Parameter, float]:
    """Return the factor of each parameter's rate: 1 in the last layer, `factor` in the one before it, and so on.

    timm's networks have the layers that timm defines for them. Parameters outside of all layers, such as a class token,
    belong to the first one. The modules that an objective adds to the student have the factor 1, and are left out.
    """
    network = _network(student)
    if hasattr(network, "group_matcher"):
        from timm.optim._param_groups import param_groups_layer_decay

        groups = param_groups_layer_decay(network, 0.0, weight_decay_exclude_1d=False, layer_decay=factor)
        return {parameter: float(group[SCALE]) for group in groups for parameter in group["params"]}
    layers = layers_of(network)
    scales = dict.fromkeys(network.parameters(), factor ** (len(layers) - 1))
    for number, layer in enumerate(layers):
        for module in layer:
            scales |= dict.fromkeys(module.parameters(), factor ** (len(layers) - 1 - number))
    return scales


def _spared(student: nn.Module) -> set[nn.Parameter]:
    """Return the parameters without weight decay, by timm's rule.

    They are those of at most one dimension, biases, and those whose names or patterns the network's method
    `no_weight_decay` returns.
    """
    spared = {
        parameter
        for name, parameter in student.named_parameters()
        if parameter.ndim <= 1 or name.rpartition(".")[2] == "bias"
    }
    network = _network(student)
    if callable(listed := getattr(network, "no_weight_decay", None)):
        with running(f"network {type(network).__name__}: no_weight_decay"):
            patterns = list(listed())
        named = network.named_parameters()
        spared |= {parameter for name, parameter in named if any(fnmatch(name, pattern) for pattern in patterns)}
    return spared


def _network(student: nn.Module) -> nn.Module:
    """Return the network as its library or its author wrote it."""
    network = student.backbone if isinstance(student, Student) else student
    return network.inner if isinstance(network, ForeignNetwork) else network
