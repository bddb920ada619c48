"""The objectives by name. A new method is one file here and one line in `OBJECTIVES`."""

import inspect
from collections.abc import Callable, Mapping

from dhkd.data.errors import ConfigError, one_of, unknown
from dhkd.stages.train.objectives.binary_kl import BinaryKL, BinaryKLNorm
from dhkd.stages.train.objectives.contract import Objective
from dhkd.stages.train.objectives.cross_entropy import CrossEntropy
from dhkd.stages.train.objectives.dhkd import DHKD
from dhkd.stages.train.objectives.kd import KD
from pydantic import TypeAdapter, ValidationError

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "binary-kl": BinaryKL,
    "binary-kl-norm": BinaryKLNorm,
    "dhkd": DHKD,
}


def build_objective(name: str, options: Mapping[str, object]) -> Objective:
    """The objective `name` with these options, the others at their defaults.

    Raises `ConfigError`, in one line, for an unknown name or option, a value of the wrong type (an int serves as a
    float, text never as a number) and a value out of range.
    """
    factory = one_of("objective", name, OBJECTIVES)
    valid = inspect.signature(factory).parameters
    checked: dict[str, object] = {}
    for option, value in options.items():
        if option not in valid:
            if not valid:
                raise ConfigError(f"objective {name!r}: unknown option {option!r}: it has none")
            raise ConfigError(f"objective {name!r}: {unknown('option', option, valid)}")
        try:
            checked[option] = TypeAdapter(valid[option].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ConfigError(f"objective {name!r}: {option}: expected {expected}, got {value!r}") from None
    return factory(**checked)
