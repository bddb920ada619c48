"""Networks that a user wrote: a function or class that takes the number of classes and makes a torch module."""

from functools import partial

from dhkd.data.errors import ConfigError
from dhkd.data.options import checked_options, parameters_of
from dhkd.data.own_code import Own, running
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.foreign import ForeignNetwork
from dhkd.stages.models.network import Network, as_wanted
from torch import nn


def own_network(wanted: Architecture, make: Own, num_classes: int) -> Network:
    """Call `make(num_classes, **options)` and wrap the module that it returns, unless it is a `Network` already.

    Raises `ConfigError` for options that `make` doesn't take and for anything but a module, and `OwnCodeError` for an
    exception in it.
    """
    name, options = wanted.name, wanted.options
    if isinstance(make, nn.Module):
        raise ConfigError(
            f"network {name}: expected a function or class of the number of classes, got a network that exists already"
        )
    try:
        parameters = parameters_of(partial(make, num_classes))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"network {name}: expected a function or class of the number of classes ({error})") from error
    checked = checked_options(f"network {name}", parameters, options)
    with running(f"network {name}"):
        module = make(num_classes, **checked)
    if isinstance(module, Network):
        return as_wanted(module, wanted)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"network {name}: expected that it returns a torch.nn.Module, got a {type(module).__name__}")
    return ForeignNetwork(name, module, num_classes, wanted)
