"""Where the label of a sample stands in a shard: in the member NAME.cls, unless `data.label` names another.

`data.label` is a member's ending, such as `cls` or `txt`, or an ending and a field of JSON: `json:label`,
`json:meta.label`. A label is a whole number, or a class's name if `data.classes` is a file that lists the names.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dhkd.data.errors import ConfigError

_NUMBER = re.compile(r"-?[0-9]{1,18}")  # what fits 64 bits; int() would also take 0_1 and digits of other scripts
MOST_SHOWN = 40  # characters of a label that a message shows


class LabelFault(ValueError):
    """A label that is no whole number and no name of a class."""


@dataclass(frozen=True)
class LabelForm:
    """How labels are read. `names` are the classes in order if labels are names, or else empty.

    If `used` is false, samples are images alone, and a shard may hold labels or not.
    """

    spec: str = "cls"
    names: tuple[str, ...] = ()
    used: bool = True

    def __post_init__(self) -> None:
        ending, colon, field = self.spec.partition(":")
        if not ending.strip(".") or "/" in ending or (colon and not all(field.split("."))):
            raise ConfigError(
                f"data.label: expected a member's ending, such as cls, or an ending and a field, such as json:label,"
                f" got {self.spec!r}"
            )

    @property
    def suffix(self) -> str:
        """The ending of the members that hold labels, in lower case, with its dot."""
        return f".{self.spec.partition(':')[0].lstrip('.').lower()}"

    @property
    def identity(self) -> str:
        """What distinguishes this form from others; empty for the usual form."""
        if not self.used:
            return "\nno labels\n"
        return "" if self == LabelForm() else f"{self.spec}\n" + "\n".join(self.names)

    def read(self, content: bytes) -> int:
        """Return the label that a member's content holds. Raises `LabelFault` for anything but a label."""
        path = self.spec.partition(":")[2]
        value = _field(content, path) if path else _text(content)
        if self.names:
            if value not in self._number_of:
                raise LabelFault(
                    f"label expected one of the {len(self.names)} classes of data.classes, got {_short(value)}"
                )
            return self._number_of[value]
        if isinstance(value, bool) or not isinstance(value, int | str) or not _NUMBER.fullmatch(str(value)):
            raise LabelFault(
                f"label expected a whole number, got {_short(value)}; where names are labels, list them in a file for"
                f" data.classes"
            )
        return int(value)

    @cached_property
    def _number_of(self) -> Mapping[object, int]:
        return {name: number for number, name in enumerate(self.names)}


def _text(content: bytes) -> str:
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise LabelFault(f"label expected text, got {_short(content)}") from error


def _field(content: bytes, path: str) -> str | int | None:
    """Return the value at a dotted path in JSON, without white space around a text."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LabelFault(f"label expected in JSON, got {_short(content)}") from error
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise LabelFault(f"label expected in the field {path}, found {_short(found)}; correct data.label")
        value = value[key]
    if isinstance(value, str):
        return value.strip()
    return value if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
