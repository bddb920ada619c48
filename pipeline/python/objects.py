"""Gives names to objects, so that the settings of an experiment can refer to them.

A name consists of the module, the function or class, and whatever else identifies the object: the arguments of a
partial function, a hash of the structure of an existing network, a hash of the source text of a function without a
name. Runs and caches record these names, so continuing one with another object is refused, even in another process.
"""

import copy
import dataclasses
import functools
import hashlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.own_code import offer
from dhkd.data.recipes import RECIPES
from dhkd.data.recipes.base import Recipe
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.train.objectives.contract import Objective
from torch import Tensor, nn

# Any: a function or class takes the number of classes and whatever options it has.
Model = nn.Module | Callable[..., nn.Module] | str
Loss = Objective | Callable[..., Any] | str
Views = Recipe | Mapping[str, object] | str

DIGITS = 8  # the length of a hash in a name

# The names under which networks were built; such a name says more than the network's class.
_names: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def name_of_model(model: Model, role: str) -> str:
    """Return the name under which settings refer to a model; `role`, "teacher" or "student", is for messages.

    If `model` is a network, it is copied: the original stays as it is, and later changes to it have no effect. A
    student starts from the copy's weights, whose hash is part of its name.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module):
        if role == "teacher" and model in _names:
            return _names[model]
        kept = _copied(model, role)
        name = f"{_place(type(model))}@{_digest_of_network(kept, with_weights=role == 'student')}"
        return offer(name, _like(type(model), lambda num_classes: copy.deepcopy(kept), "num_classes", int))
    if not callable(model):
        raise ConfigError(
            f"model: expected a torch.nn.Module, a function of the number of classes that makes one, or a name, got"
            f" {_described(model)}"
        )
    return offer(name_of_function(model), model)


def remember_name(network: nn.Module, name: str) -> None:
    """Remember the name under which a network was built; `name_of_model` returns it for a teacher."""
    _names[network] = name


def name_of_loss(loss: Loss) -> str:
    """Return the name under which settings refer to an objective; a text is returned as it is."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, Objective):
        name = f"{_place(type(loss))}@{_digest(repr(loss))}"
        return offer(name, loss)
    if not callable(loss):
        raise ConfigError(f"objective: expected a function, an Objective or a text, got {_described(loss)}")
    return offer(name_of_function(loss), loss)


def views_of(recipe: Views) -> Mapping[str, object]:
    """Return the settings of a recipe."""
    if isinstance(recipe, str):
        return {"kind": recipe}
    if isinstance(recipe, Mapping):
        return dict(recipe)
    if not callable(getattr(recipe, "draws", None)):
        raise ConfigError(f"recipe: expected a name, a mapping or a Recipe, got {_described(recipe)}")
    kind = next((kind for kind, known in RECIPES.items() if known is type(recipe)), None)
    if kind is not None:
        fields = [field for field in dataclasses.fields(recipe) if field.init]  # type: ignore[arg-type]  # all are
        return {"kind": kind, **{field.name: getattr(recipe, field.name) for field in fields}}
    name = f"{_place(type(recipe))}@{_digest(repr(sorted(recipe.identity.items())))}"
    return {"kind": offer(name, _like(type(recipe), lambda seed: recipe, "seed", int))}


@contextmanager
def weights_of(model: Model | None, weights: str | Path | None) -> Iterator[Path | None]:
    """Yield the path of a model's weights: `weights` or, for an existing network, a temporary file; None if neither."""
    if weights is not None or not isinstance(model, nn.Module):
        yield None if weights is None else Path(weights).expanduser()
        return
    with TemporaryDirectory(prefix="dhkd-") as folder:
        file = Path(folder) / f"{type(model).__name__}.pth"
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        torch.save({name: tensor.detach().cpu() for name, tensor in state.items()}, file)
        yield file


def _copied(model: nn.Module, role: str) -> nn.Module:
    """Return a copy of the model on the CPU, without gradients; each parameter's `requires_grad` is kept."""
    try:
        copied = copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError, pickle.PicklingError, NotImplementedError) as error:
        raise ConfigError(
            f"{role}: expected a network that can be copied, got a {type(model).__name__} that can't"
            f" ({type(error).__name__}: {' '.join(str(error).split())[:200]}); give a function that makes it"
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _digest_of_network(network: nn.Module, *, with_weights: bool) -> str:
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in network.state_dict().items()]
    return _digest(repr(network), repr(sorted(shapes)), weights_sha256(network) if with_weights else "")


def name_of_function(function: Callable[..., Any]) -> str:
    """Return the name of a function, class or partial function."""
    if isinstance(function, functools.partial):
        options = [*map(_plain, function.args), *(f"{key}={_plain(value)}" for key, value in function.keywords.items())]
        return f"{name_of_function(function.func)}({','.join(options)})"
    described = function if inspect.isclass(function) or inspect.isroutine(function) else type(function)
    place = _place(described)
    # A file may hold several functions called <lambda>, or local functions of one name: a hash distinguishes them.
    return f"{place}@{_digest(_text_of(described))}" if "<" in place or described is not function else place


def _place(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _plain(value: object) -> str:
    """Return a short text without spaces for the argument of a partial function."""
    text = repr(value)
    return text if re.fullmatch(r"[\w.:'\"\[\](),-]{1,40}", text) else _digest(text)


def _text_of(thing: Any) -> str:
    """Return what distinguishes functions or classes of one name: the source text and the plain values they use."""
    if inspect.isclass(thing):
        members = sorted(vars(thing).items())
        return "\n".join(f"{name} {_text_of(member)}" for name, member in members if inspect.isfunction(member))
    code = getattr(thing, "__code__", None)
    if code is None:
        return repr(type(thing))
    try:
        text = inspect.getsource(thing)
    except (OSError, TypeError):
        text = repr(code.co_code)
    cells = zip(code.co_freevars, thing.__closure__ or (), strict=True)
    used = [*code.co_consts, *(thing.__defaults__ or ()), *((name, cell.cell_contents) for name, cell in cells)]
    return f"{text} {[value for value in used if _is_plain(value)]}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:DIGITS]


def _described(thing: object) -> str:
    return f"a {type(thing).__name__}"


def _like(kind: type, make: Callable[..., Any], argument: str, annotation: type) -> Any:
    """Wrap `make`, which returns an object of the class `kind`, so that it has the name and module of this class."""

    def made(*arguments: Any, **options: Any) -> Any:
        return make(*arguments, **options)

    functools.update_wrapper(made, kind, updated=())
    parameter = inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
    made.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]  # of functions
    return made
