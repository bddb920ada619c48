"""Checks the options of something chosen by name, such as a recipe or an objective."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dhkd.data.errors import ConfigError, unknown
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

T = TypeVar("T")

_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def with_options(where: str, factory: Callable[..., T], options: Mapping[str, object]) -> T:
    """Call `factory` with these options; error messages begin with `where`.

    Raises `ConfigError` for an unknown option, a missing option, or a value of the wrong type. A parameter without an
    annotation takes any value. An int is accepted as a float and a list as a tuple, but text is not accepted as a
    number. The factory itself checks ranges.
    """
    return factory(**checked_options(where, parameters_of(factory), options))


def parameters_of(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function, with annotations that are texts resolved to types where possible."""
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # an annotation may be any expression, so evaluating it may raise anything
        return inspect.signature(function).parameters


def checked_options(
    where: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, object]
) -> dict[str, object]:
    """Check options against parameters and return them as the parameters take them. Raises as `with_options` does.

    A parameter without a type takes any value. Options beyond the named parameters are taken only if there is a `**`.
    """
    named = {name: one for name, one in parameters.items() if one.kind not in _MANY}
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    checked: dict[str, object] = {}
    for option, value in options.items():
        plain = tuple(value) if isinstance(value, list) else value
        if option not in named and takes_any:
            checked[option] = value
        elif option not in named:
            if not named:
                raise ConfigError(f"{where}: unknown option {option!r}: there are none")
            raise ConfigError(f"{where}: {unknown('option', option, named)}")
        else:
            checked[option] = _of_type(f"{where}: {option}", named[option].annotation, plain, value)
    for name, parameter in named.items():
        if name not in checked and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: {name}: expected a value, got none")
    return checked


def _of_type(where: str, annotation: Any, plain: object, value: object) -> object:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        return TypeAdapter(annotation).validate_python(plain, strict=True)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{where}: expected {expected}, got {value!r}") from None
    except PydanticSchemaGenerationError:  # a type that pydantic doesn't know, so nothing can be checked
        return plain
