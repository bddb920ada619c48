"""Describes which network to build: its name, and the settings that a preset may have for it.

Messages and tables show only the name. The settings are recorded only if they are set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.shown import printable_line

PROJECTED = "simkd:"  # begins the name of a student that ends in a teacher's classifier: simkd:STUDENT+TEACHER
AUTO = ("auto",)
NO_CLASSIFIER = "none"  # in place of a classifier's path: the network's outputs are features


@dataclass(frozen=True)
class Architecture:
    """A network by name, with keyword arguments (`options`) of its builder.

    `head` is the path of the classifier; "none" stands for a network that returns features, and None means that the
    classifier is searched for. `maps` holds the paths of the modules whose outputs are the network's maps; ("auto",)
    stands for the modules that its library names, and None for the network's default maps. `parts` are the student and
    the teacher of a network simkd:STUDENT+TEACHER.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict, hash=False)  # a dict has no hash
    head: str | None = None
    maps: tuple[str, ...] | None = None
    parts: "tuple[Architecture, Architecture] | None" = None

    def __str__(self) -> str:
        return self.name

    def record(self) -> dict[str, Any]:
        """Return the settings besides the name, as plain values; empty if none is set."""
        if self.parts is not None:
            records = [part.record() for part in self.parts]
            return {"parts": records} if any(records) else {}
        maps = list(self.maps) if self.maps is not None else None
        entries = {"options": dict(self.options) or None, "head": self.head, "maps": maps}
        return {key: value for key, value in entries.items() if value is not None}


def as_architecture(named: "Named") -> Architecture:
    """Return the architecture with this name; an `Architecture` is returned as it is.

    The name simkd:STUDENT+TEACHER gives an architecture with two parts.
    """
    architecture = named if isinstance(named, Architecture) else Architecture(named)
    if architecture.parts is None and architecture.name.startswith(PROJECTED):
        student, plus, teacher = architecture.name.removeprefix(PROJECTED).partition("+")
        if plus:
            return replace(architecture, parts=(Architecture(student), Architecture(teacher)))
    return architecture


Named = str | Architecture  # a network's name alone, or its name with its settings


def name_of(named: Named) -> str:
    """Return a network's name."""
    return named if isinstance(named, str) else named.name


def projected(student: Architecture, teacher: Architecture) -> Architecture:
    """Return the architecture of the network that SimKD builds from these two."""
    return Architecture(f"{PROJECTED}{student.name}+{teacher.name}", parts=(student, teacher))


def from_record(name: str, record: object, where: str) -> Architecture:
    """Build an architecture from its name and a result of `Architecture.record`.

    Raises `WeightsError`, whose message begins with `where`, for any other record.
    """
    architecture = as_architecture(name)
    if not record:
        return architecture
    try:
        assert isinstance(record, Mapping)
        if architecture.parts is not None:
            student, teacher = (
                from_record(part.name, recorded, where)
                for part, recorded in zip(architecture.parts, record["parts"], strict=True)
            )
            return replace(architecture, parts=(student, teacher))
        head, maps = record.get("head"), record.get("maps")
        assert head is None or isinstance(head, str)
        kept = tuple(map(str, maps)) if maps is not None else None
        return Architecture(name, dict(record.get("options") or {}), head, kept)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{where}: expected the options of {name} in its metadata, got another record") from error


def options_refused(architecture: Architecture, error: Exception) -> ConfigError:
    """Return the error to raise if a network's builder refuses its options or fails with them."""
    reason = printable_line(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)
    options = ", ".join(architecture.options)
    return ConfigError(
        f"network {architecture.name}: options: expected arguments that it takes, got {options} ({reason})"
    )
