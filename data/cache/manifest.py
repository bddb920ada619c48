"""What a cache is: its identity, compared field by field, and its provenance, shown and never compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from dhkd.data.cache.blocks import WITNESS, Part, Plan
from dhkd.data.cache.codecs import Codec
from dhkd.data.errors import CacheDamaged, CacheMismatch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

FORMAT_VERSION = 2
MAX_DEPTH = 20
LONGEST_SHOWN = 200  # characters of a value, in a message

Size = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
# A signal's name is part of paths and keys.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Tree(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Plain JSON values, not too deep for the libraries that walk them."""
    if _depth(tree) > MAX_DEPTH:
        raise ValueError(f"values in values, deeper than {MAX_DEPTH}")
    canonical(tree)
    return tree


def _depth(tree: object) -> int:
    children: list[object] = list(
        tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    )
    return 1 + max(map(_depth, children), default=0)


Facts = Annotated[Mapping[str, Any], AfterValidator(_plain)]


class DatasetIdentity(_Tree):
    """Which samples in which order."""

    name: str
    split: str
    num_samples: Size
    num_classes: Size
    fingerprint: str


class SignalIdentity(_Tree):
    """What a signal's rows are: which teacher said them, computed in which precision, and how they are stored."""

    teacher: Facts
    precision: Literal["float32", "bf16", "fp16"]
    codec: Codec
    row: tuple[Size, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """The arrays that its codec makes of it."""
        return self.codec.parts(self.row)

    @model_validator(mode="after")
    def _codec_fits(self) -> "SignalIdentity":
        if self.codec.kind == "top-k" and (len(self.row) != 1 or self.codec.k >= self.row[0]):
            raise ValueError(f"top-k keeps fewer than all values of a row, expected k below {self.row}")
        return self


class Identity(_Tree):
    """What is cached."""

    dataset: DatasetIdentity
    recipe: Facts
    signals: Annotated[Mapping[Name, SignalIdentity], Field(min_length=1)]


class Manifest(_Tree):
    """`identity` says what is cached and `provenance`, by signal, how it came about; `num_views` grows with a cache."""

    format: Literal[2] = 2
    identity: Identity
    provenance: Facts
    num_views: Size
    block_rows: Size

    @model_validator(mode="after")
    def _names_differ(self) -> "Manifest":
        names = [array for name in self.names for array in (array_name(name, part) for part in self.parts(name))]
        if len(set(names)) < len(names):
            raise ValueError("two arrays have one name")
        if self.block_rows > self.identity.dataset.num_samples:
            raise ValueError("block_rows is larger than the data set")
        return self

    @property
    def plan(self) -> Plan:
        """How the cache is cut into blocks."""
        return Plan(self.num_views, self.num_samples, self.block_rows)

    @property
    def num_samples(self) -> int:
        """N, the number of samples."""
        return self.identity.dataset.num_samples

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.identity.dataset.num_classes

    @property
    def signals(self) -> Mapping[str, SignalIdentity]:
        """The signals by name."""
        return self.identity.signals

    @property
    def names(self) -> list[str]:
        """Everything that each block has: every signal, and the witness."""
        return [*self.signals, WITNESS]

    def parts(self, name: str) -> dict[str, Part]:
        """The arrays that a signal, or the witness, is stored as."""
        return {"": ("uint32", ())} if name == WITNESS else self.signals[name].parts

    def error_before(self, name: str) -> float:
        """How far a converted signal's values lay from what the teacher said already before; else 0."""
        provenance = self.provenance.get(name, {})
        return float(provenance.get("error_before", 0.0)) if isinstance(provenance, Mapping) else 0.0

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the identity: the name of what is cached."""
        return self.digest_of(self.signals)

    def digest_of(self, names: Iterable[str]) -> str:
        """The same of a cache that had just these signals."""
        identity = self.identity.model_dump(mode="json")
        identity["signals"] = {name: identity["signals"][name] for name in names}
        return hashlib.sha256(canonical(identity)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, tree: Any, where: str) -> "Manifest":
        """The inverse of `to_json`; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version and `CacheDamaged` for anything that is no manifest.
        """
        if not isinstance(tree, dict) or "format" not in tree:
            raise CacheDamaged(f"{where}: expected a dhkd manifest, got none; is this a dhkd cache?")
        version = tree["format"]
        if version != FORMAT_VERSION or isinstance(version, bool):
            older = isinstance(version, int) and 0 < version < FORMAT_VERSION
            remedy = "make it anew with 'dhkd convert'" if older else "use the version of dhkd that wrote it"
            raise CacheMismatch(f"{where}: format version expected {FORMAT_VERSION}, got {version!r}; {remedy}")
        try:
            return cls.model_validate(tree)
        except (ValidationError, ValueError, RecursionError) as error:
            raise CacheDamaged(f"{where}: the manifest is damaged ({_first(error)})") from error

    def extended_by(self, other: "Manifest", where: str) -> "Manifest":
        """The cache that holds what this one does and what `other` adds: views, signals.

        Raises `CacheMismatch`, listing every difference, where they don't fit together.
        """
        known = {name: signal for name, signal in self.signals.items() if name in other.signals}
        mine = Identity(dataset=self.identity.dataset, recipe=self.identity.recipe, signals=known or other.signals)
        theirs = {
            **other.identity.model_dump(mode="json"),
            "signals": {name: other.signals[name].model_dump(mode="json") for name in known or other.signals},
        }
        found = differences(theirs, mine.model_dump(mode="json"), exact=True) + self._other_teachers(other)
        if other.num_views < self.num_views:
            found.append(f"views expected at least {self.num_views}, as it was begun with, got {other.num_views}")
        if found:
            raise CacheMismatch(f"cache at {where}: {'; '.join(found)}; write this one to another --out")
        return Manifest(
            identity=Identity(
                dataset=self.identity.dataset,
                recipe=self.identity.recipe,
                signals={**self.signals, **other.signals},
            ),
            provenance={**other.provenance, **self.provenance},
            num_views=other.num_views,
            block_rows=self.block_rows,
        )

    def _other_teachers(self, other: "Manifest") -> list[str]:
        """How the teacher of signals that `other` adds differs from the one that said what bears its name already."""
        found: list[str] = []
        for name, kept in self.signals.items():
            teacher = name.removesuffix(teachers_own(name))
            added = [signal for new, signal in other.signals.items() if new.removesuffix(teachers_own(new)) == teacher]
            if added and name not in other.signals:
                found += differences(added[0].teacher, kept.teacher, f"signals.{name}.teacher.", exact=True)
        return found


def signal_name(teacher: str | None, signal: str) -> str:
    """What a cache calls a signal of a teacher that has a name, or of the one that needs none."""
    return f"{teacher}.{signal}" if teacher else signal


def teachers_own(name: str) -> str:
    """What the teacher itself calls a cache's signal."""
    return name.rpartition(".")[2]


def array_name(name: str, part: str) -> str:
    """What a part of a signal is called."""
    return f"{name}_{part}" if part else name


def canonical(tree: object) -> bytes:
    """The one JSON text of a tree of plain values, for hashing; raises `ValueError` for NaN and infinity."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def differences(
    expected: Mapping[str, Any], got: Mapping[str, Any], prefix: str = "", *, exact: bool = False
) -> list[str]:
    """Each field named in `expected` that `got` has otherwise, as 'field expected …, got …'.

    `exact`: a field that only `got` has is a difference, too.
    """
    found: list[str] = []
    for key, value in expected.items():
        actual = got.get(key, "nothing")
        name = f"{prefix}{_short(key)}"
        if isinstance(value, Mapping) and isinstance(actual, Mapping):
            found += differences(value, actual, f"{name}.", exact=exact)
        elif value != actual:
            found.append(f"{name} expected {_short(value)}, got {_short(actual)}")
    if exact:
        found += [
            f"{prefix}{_short(key)} expected nothing, got {_short(got[key])}" for key in got if key not in expected
        ]
    return found


def require_identity(expected: Mapping[str, Any], manifest: Manifest, where: str, remedy: str) -> None:
    """Raise `CacheMismatch`, listing every difference, unless the cache is what is expected.

    Only the fields that `expected` names are compared, so that an experiment which names no teacher accepts any.
    """
    found = differences(expected, manifest.identity.model_dump(mode="json"))
    if found:
        raise CacheMismatch(f"cache at {where}: {'; '.join(found)}; {remedy}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    if len(text) > LONGEST_SHOWN:
        return f"{text[:LONGEST_SHOWN]}…"
    return f"{text[:12]}…" if len(text) == hashlib.sha256().digest_size * 2 else text


def _first(error: Exception) -> str:
    """What a validation found first, in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(_short, fault['loc']))}: {fault['msg']}"
    return " ".join(str(error).split()) or type(error).__name__
