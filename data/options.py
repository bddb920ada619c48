"""Checks the options of something chosen by name, such as a recipe or an objective."""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

from dhkd.data.errors import ConfigError, unknown
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def with_options(where: str, factory: Callable[..., T], options: Mapping[str, object]) -> T:
    """Call `factory` with these options; error messages begin with `where`.

    A parameter without an annotation takes any value.

    Raises `ConfigError` for an unknown option, a missing option, or a value of the wrong type. An int is accepted as a
    float and a list as a tuple, but text is not accepted as a number. The factory itself checks ranges.
    """
    parameters = inspect.signature(factory, eval_str=True).parameters
    checked: dict[str, object] = {}
    for option, value in options.items():
        if option not in parameters:
            if not parameters:
                raise ConfigError(f"{where}: unknown option {option!r}: there are none")
            raise ConfigError(f"{where}: {unknown('option', option, parameters)}")
        plain = tuple(value) if isinstance(value, list) else value
        if parameters[option].annotation is inspect.Parameter.empty:
            checked[option] = value
            continue
        try:
            checked[option] = TypeAdapter(parameters[option].annotation).validate_python(plain, strict=True)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ConfigError(f"{where}: {option}: expected {expected}, got {value!r}") from None
    for name, parameter in parameters.items():
        if name not in checked and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: {name}: expected a value, got none")
    return factory(**checked)
