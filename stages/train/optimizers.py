"""Optimizers by name: torch's by the lower-case name of their class, timm's as `timm:NAME`, and those that users wrote.

Left out are optimizers that need more than a gradient in each step (`lbfgs`, `adahessian`), and those whose draws no
checkpoint holds (`kron`).
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, TypeVar

import torch
from dhkd.data.errors import ConfigError, unknown
from dhkd.data.extras import needing
from dhkd.data.options import checked_options, parameters_of
from dhkd.data.own_code import find, running
from dhkd.stages.train.muon import muon
from dhkd.stages.train.parameter_groups import SCALE, Decay, matrices, parameter_groups
from torch import nn

T = TypeVar("T")

SGD = "sgd"
MUON = "muon"
TIMM = "timm:"
OF_TIMM = ("lamb", "lion")  # the names of timm that need no prefix, since torch has no optimizer of that name

_TORCH = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
TORCH: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    **{name.lower(): getattr(torch.optim, name) for name in _TORCH if hasattr(torch.optim, name)},
}
# They take from the device whether to skip an update, so that the host needn't wait for it.
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)

# Options that settings of another name have, or that the device decides.
_SET_ELSEWHERE = {
    **dict.fromkeys(("lr", "weight_decay"), "it is a setting of its own, beside optimizer"),
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), "it is chosen to suit the device"),
    "params": "they are those of the network",
}
_DRAWS = "kron"


def build_optimizer(
    name: str, options: Mapping[str, object], student: nn.Module, lr: float, decay: Decay, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build the optimizer `name` with `options` over the parameters of `student`.

    If `fused` is true and the optimizer has kernels that can skip an update, it uses them. Raises `ConfigError` for an
    unknown name and for options that the optimizer doesn't take, and `OwnCodeError` if own code raises an exception.
    """
    where = f"optimizer {name}"
    for option in options:
        if option in _SET_ELSEWHERE:
            raise ConfigError(f"{where}: {option}: expected another option; {_SET_ELSEWHERE[option]}")
    name = f"{TIMM}{name}" if name in OF_TIMM else name
    groups = parameter_groups(student, decay)
    if name == MUON:
        return _built(where, lambda: muon(groups, matrices(student), lr, decay.weight, options))
    if name.startswith(TIMM):
        return _of_timm(where, name.removeprefix(TIMM), groups, lr, decay.weight, options)
    if name in TORCH:
        factory = TORCH[name]
        checked = _checked(where, factory, decay.weight, options)
        kernels = {"fused": True} if fused and factory in FUSED else {}
        return _built(where, lambda: factory(groups, lr=lr, **checked, **kernels))
    return _own(where, name, groups, lr, decay.weight, options)


def own_optimizers(name: str) -> list[str]:
    """Return `name` in a list if it stands for code that a user wrote, else an empty list."""
    return [] if name in (*TORCH, MUON, *OF_TIMM) or name.startswith(TIMM) else [name]


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer skips its update if its attribute `found_inf` is 1, without asking the host."""
    return type(optimizer) in FUSED and bool(optimizer.defaults.get("fused"))


class Rates:
    """The learning rates of an optimizer's groups: the schedule's rate times each group's factor.

    A step captured as a CUDA graph refers to tensors by address, so these live for the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]

    def set(self, rate: float) -> None:
        """Set the rate as numbers, which a checkpoint holds."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get(SCALE, 1.0)

    def set_on_device(self, rate: float) -> None:
        """Set the rate in tensors on the device, without waiting for it."""
        for group, tensor in zip(self._optimizer.param_groups, self._rates, strict=True):
            tensor.fill_(rate * group.get(SCALE, 1.0))
            group["lr"] = tensor


def _of_timm(
    where: str,
    name: str,
    groups: list[dict[str, object]],
    lr: float,
    weight_decay: float,
    options: Mapping[str, object],
) -> torch.optim.Optimizer:
    with needing("timm", where):
        timms: Any = import_module("timm.optim")  # Any: timm exports these without saying so
    if not hasattr(timms, "get_optimizer_info"):
        raise ConfigError(f"{where}: expected timm 1.0.12 or newer, got an older one; pip install --upgrade timm")
    if name not in timms.list_optimizers():
        raise ConfigError(f"{where}: {unknown('optimizer of timm', name, timms.list_optimizers())}")
    info = timms.get_optimizer_info(name)
    if info.second_order:
        raise ConfigError(f"{where}: expected one that needs gradients alone, got one of second order")
    if name.startswith(_DRAWS):
        raise ConfigError(f"{where}: expected one whose checkpoint holds all that it needs, got one that draws numbers")
    factory = _built(where, lambda: timms.get_optimizer_class(name, bind_defaults=False))
    checked = _checked(where, factory, weight_decay, options)
    for option, taken in {"eps": info.has_eps, "betas": info.has_betas}.items():
        if option in checked and not taken:
            raise ConfigError(f"{where}: unknown option {option!r}; timm gives it none")
    made: torch.optim.Optimizer = _built(where, lambda: timms.create_optimizer_v2(groups, name, lr=lr, **checked))
    return made


def _own(
    where: str,
    name: str,
    groups: list[dict[str, object]],
    lr: float,
    weight_decay: float,
    options: Mapping[str, object],
) -> torch.optim.Optimizer:
    """Call own code as torch's optimizers are called: with groups, lr, weight_decay and options."""
    factory = find("optimizer", name, dict.fromkeys((*TORCH, MUON, *OF_TIMM)))
    if not callable(factory):
        raise ConfigError(f"{where}: expected a function or a subclass of torch.optim.Optimizer, got {factory!r}")
    checked = _checked(where, factory, weight_decay, options)
    with running(where):
        made = factory(groups, lr=lr, **checked)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"{where}: expected that it makes a torch.optim.Optimizer, got a {type(made).__name__}")
    if callable(getattr(made, "train", None)) or getattr(made, "is_second_order", False):
        raise ConfigError(
            f"{where}: expected one that needs a gradient in each step and nothing else, got one with modes or of"
            f" second order"
        )
    trained = {parameter for group in made.param_groups for parameter in group["params"]}
    if any(parameter not in trained for group in groups for parameter in _parameters(group)):
        raise ConfigError(f"{where}: expected that it trains all the parameters that it is given, got some left out")
    step = made.step

    @wraps(step)
    def step_of_own_code(*args: Any, **options: Any) -> Any:  # Any: whatever torch passes on
        with running(f"{where}: its step"):
            return step(*args, **options)

    made.step = step_of_own_code  # type: ignore[method-assign]  # so that an exception in it names the code
    return made


def _parameters(group: Mapping[str, object]) -> list[nn.Parameter]:
    parameters = group["params"]
    assert isinstance(parameters, list)
    return [parameter for parameter in parameters if parameter.requires_grad]


def _checked(
    where: str, factory: Callable[..., object], weight_decay: float, options: Mapping[str, object]
) -> dict[str, Any]:  # Any: plain values of YAML, checked against the factory's annotations
    """Check the options, and return them with the weight decay as the factory takes it."""
    try:
        parameters = parameters_of(factory)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: expected a function of parameters, lr and options ({error})") from error
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if "lr" not in parameters and not takes_any:
        raise ConfigError(f"{where}: expected a function of parameters and lr, got ({', '.join(parameters)})")
    decays = "weight_decay" in parameters or takes_any
    if weight_decay and not decays:
        raise ConfigError(f"{where} has no weight decay: weight_decay: expected 0, got {weight_decay:g}")
    first = next(iter(parameters), None)
    free = {key: one for key, one in parameters.items() if key not in (first, *_SET_ELSEWHERE)}
    return checked_options(where, free, options) | ({"weight_decay": weight_decay} if decays else {})


def _built(where: str, build: Callable[[], T]) -> T:
    """Call `build`; a library's complaint, about values of options or a package that it lacks, is a `ConfigError`."""
    try:
        return build()
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{where}: it can't be built: {type(error).__name__}: {reason}") from error
