"""Checks settings that name a file, so that a stranger's preset can't choose which of the user's files are read."""

from typing import Annotated

from dhkd.data.errors import ConfigError
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

# Words that `teacher.classes` may hold instead of a file: each says where the names of the teacher's outputs are.
NAMED_BY = ("weights", "torchvision", "timm")
MOST_OUTPUTS = 10**6
LONGEST_NAME = 500


def below_root(place: str) -> str:
    """Return the place unchanged if it lies below the data root; raises `ValueError` otherwise.

    A preset may come from a stranger, who must not choose which other files are read.
    """
    if place.startswith(("/", "pipe:")) or ".." in place.split("/") or "://" in place:
        raise PydanticCustomError("below_root", "expected a place below --data-root, without '..', commands and URLs")
    return place


def require_below_here(weights: object, where: str) -> None:
    """Raise `ConfigError` unless a preset's own `student.weights` lies below the current folder.

    On the command line, the user may name any file.
    """
    if isinstance(weights, str) and (weights.startswith(("/", "~")) or ".." in weights.split("/") or "://" in weights):
        raise ConfigError(
            f"{where}: student.weights: expected a path below the current folder, without '..' and URLs, since a preset"
            f" may come from someone else, got {weights}; name it yourself with --set student.weights={weights}"
        )


BelowRoot = Annotated[str, Field(max_length=4096), AfterValidator(below_root)]


def _outputs(value: object) -> object:
    """Return the value if `teacher.classes` may have it, with lists as tuples; raises `ValueError` otherwise."""
    if isinstance(value, str) and value:
        return below_root(value)
    if isinstance(value, list | tuple) and 0 < len(value) <= MOST_OUTPUTS:
        if all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in value):
            return tuple(value)
        if all(type(number) is int and 0 <= number < MOST_OUTPUTS for number in value):
            return tuple(value)
    raise PydanticCustomError(
        "outputs",
        "expected a list of names, a list of numbers from 0 to 999,999, a file, or one of the words {words}",
        {"words": ", ".join(NAMED_BY)},
    )


Outputs = Annotated[str | tuple[str, ...] | tuple[int, ...], BeforeValidator(_outputs)]
