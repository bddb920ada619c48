"""Options of something that a name stands for (a recipe, an objective), checked against what it takes."""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

from dhkd.data.errors import ConfigError, unknown
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def with_options(where: str, factory: Callable[..., T], options: Mapping[str, object]) -> T:
    """What `factory` makes of these options, the others at their defaults; `where` begins the line of an error.

    Raises `ConfigError` for an unknown option, one that is missing, and a value of the wrong type: an int serves as a
    float and a list as a tuple, text never as a number. The range of a value is checked by the factory.
    """
    parameters = inspect.signature(factory).parameters
    checked: dict[str, object] = {}
    for option, value in options.items():
        if option not in parameters:
            none = "it has none"
            hint = unknown("option", option, parameters) if parameters else f"unknown option {option!r}: {none}"
            raise ConfigError(f"{where}: {hint}")
        try:
            plain = tuple(value) if isinstance(value, list) else value
            checked[option] = TypeAdapter(parameters[option].annotation).validate_python(plain, strict=True)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ConfigError(f"{where}: {option}: expected {expected}, got {value!r}") from None
    for name, parameter in parameters.items():
        if name not in checked and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}: {name}: expected a value, got none")
    return factory(**checked)
