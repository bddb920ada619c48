"""Where own code, i.e. users' code, comes from, as runs and caches record it, and whether it has changed since."""

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

SHOWN = 12  # digits of a hash that a message shows


@dataclass(frozen=True)
class Origin:
    """Where the code of a name comes from: its module or file, and the SHA-256 of the file that ran.

    `beside` has the hash of each file beside it that it imports. `sha256` is None for code without a file, such as a
    built-in module.
    """

    name: str
    module: str
    sha256: str | None
    beside: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """Return plain values for a run's settings or a cache's provenance; an empty `beside` is left out."""
        plain: dict[str, object] = {"module": self.module, "sha256": self.sha256}
        return plain | ({"beside": dict(self.beside)} if self.beside else {})


def origin_of_module(name: str, module: ModuleType) -> Origin:
    """Return the origin of a name in an installed module."""
    return Origin(name, module.__name__, _hash_of(getattr(module, "__file__", None)))


def origin_of_object(name: str, thing: object) -> Origin:
    """Return the origin of an object. An object of a notebook or script is identified by its own source text.

    The rest of a script changes with every experiment, so it is not part of the hash. Objects of this program have no
    hash, because the program's version is recorded.
    """
    described = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    module = getattr(described, "__module__", None) or "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return Origin(name, module, None)
    if file is None or module == "__main__":
        try:
            return Origin(name, module, hashlib.sha256(inspect.getsource(described).encode()).hexdigest())
        except (OSError, TypeError):
            return Origin(name, module, None)
    return Origin(name, module, _hash_of(file))


def _hash_of(file: str | None) -> str | None:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    except OSError:
        return None


def changes(recorded: object, current: Mapping[str, Mapping[str, object]]) -> list[str]:
    """List what has changed in own code since a run or cache recorded it.

    `current` maps each name to what `Origin.plain` returns now. `recorded` maps names to what it returned then; since a
    file may hold anything, it may also be any other value. A name that is not recorded counts as new, not as changed.
    """
    recorded = recorded if isinstance(recorded, Mapping) else {}
    lines = []
    for name, now in current.items():
        then = recorded.get(name, now)
        before, after = (_files(name, plain if isinstance(plain, Mapping) else {}) for plain in (then, now))
        lines += [
            f"code of {name} has changed: {file} expected sha256 {_short(before.get(file))},"
            f" got {_short(after.get(file))}"
            for file in {**before, **after}
            if before.get(file) != after.get(file)
        ]
    return lines


def _files(name: str, plain: Mapping[str, object]) -> dict[str, object]:
    """Return the hashes of a name's file and of the files beside it, by file name."""
    beside = plain.get("beside")
    own = name.rpartition(":")[0].rpartition("/")[2] or name
    return {own: plain.get("sha256"), **(beside if isinstance(beside, Mapping) else {})}


def _short(value: object) -> str:
    return "none" if value is None else f"{str(value)[:SHOWN]}…"
