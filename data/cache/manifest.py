"""What a cache is: its identity, compared field by field, and its provenance, shown and never compared.

Some fields are plain JSON values (`Facts`): a recipe, a teacher and a provenance describe themselves, and a manifest
only keeps, compares and shows what they say.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from dhkd.data.cache.blocks import WITNESS, Part, Plan
from dhkd.data.cache.codecs import AnyCodec
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
    """The tree, if it holds plain JSON values, nested less deeply than what the libraries that walk it can bear."""
    if _depth(tree) > MAX_DEPTH:
        raise ValueError(f"values nested deeper than {MAX_DEPTH}")
    canonical(tree)
    return tree


def _depth(tree: object) -> int:
    children: list[object] = list(
        tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    )
    return 1 + max(map(_depth, children), default=0)


Facts = Annotated[Mapping[str, Any], AfterValidator(_plain)]


class DatasetIdentity(_Tree):
    """Which samples, in which order."""

    name: str
    split: str
    num_samples: Size
    num_classes: Size
    fingerprint: str


class SignalIdentity(_Tree):
    """What a signal's rows are: which teacher computed them, in which precision, and how they are stored."""

    teacher: Facts
    precision: Literal["float32", "bf16", "fp16"]
    codec: AnyCodec
    row: tuple[Size, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """The arrays that the codec makes of the signal."""
        return self.codec.parts(self.row)

    @model_validator(mode="after")
    def _codec_fits(self) -> "SignalIdentity":
        misfit = self.codec.misfit(self.row)
        if misfit:
            raise ValueError(misfit)
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
            raise ValueError("two arrays have the same name")
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
        """Every array of a block: the signals, then the witness."""
        return [*self.signals, WITNESS]

    def parts(self, name: str) -> dict[str, Part]:
        """The stored arrays of a signal, or of the witness: dtype and row shape, by part."""
        return {"": ("uint32", ())} if name == WITNESS else self.signals[name].parts

    def error_before(self, name: str) -> float:
        """ε that a converted signal's values had before it was converted; 0 if it was not."""
        provenance = self.provenance.get(name, {})
        return float(provenance.get("error_before", 0.0)) if isinstance(provenance, Mapping) else 0.0

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the identity: a name for what is cached."""
        return self.digest_of(self.signals)

    def digest_of(self, names: Iterable[str]) -> str:
        """The digest that a cache with only these signals would have."""
        identity = self.identity.model_dump(mode="json")
        identity["signals"] = {name: identity["signals"][name] for name in names}
        return hashlib.sha256(canonical(identity)).hexdigest()

    def to_json(self) -> dict[str, Any]:  # JSON
        """The manifest as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, tree: Any, where: str) -> "Manifest":  # whatever a file held
        """The inverse of `to_json`; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version and `CacheDamaged` for anything that is no manifest.
        """
        if not isinstance(tree, dict) or "format" not in tree:
            raise CacheDamaged(f"{where}: expected a dhkd manifest, got none; is this a dhkd cache?")
        require_version(tree["format"], where)
        try:
            return cls.model_validate(tree)
        except (ValidationError, ValueError, RecursionError) as error:
            raise CacheDamaged(f"{where}: the manifest is damaged ({_first(error)})") from error

    def extended_by(self, other: "Manifest", where: str) -> "Manifest":
        """The manifest of a cache that holds what this one does and what `other` adds: views, signals.

        Raises `CacheMismatch`, listing every difference, if the two can't be in one cache.
        """
        # Signals that only one of the two has are no difference. If they share none, only the rest is compared.
        shared = {name: signal for name, signal in self.signals.items() if name in other.signals} or other.signals
        existing = Identity(dataset=self.identity.dataset, recipe=self.identity.recipe, signals=shared)
        wanted = {
            **other.identity.model_dump(mode="json"),
            "signals": {name: other.signals[name].model_dump(mode="json") for name in shared},
        }
        conflicts = differences(wanted, existing.model_dump(mode="json"), exact=True) + self._teacher_conflicts(other)
        if other.num_views < self.num_views:
            conflicts.append(f"views expected at least {self.num_views}, as it was begun with, got {other.num_views}")
        if conflicts:
            raise CacheMismatch(f"cache at {where}: {'; '.join(conflicts)}; write this one to another --out")
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

    def _teacher_conflicts(self, other: "Manifest") -> list[str]:
        """How teachers of signals that `other` adds differ from those that have the same names in this cache."""
        conflicts: list[str] = []
        for name, existing in self.signals.items():
            prefix = name.removesuffix(teachers_own(name))
            added = [signal for new, signal in other.signals.items() if new.removesuffix(teachers_own(new)) == prefix]
            if added and name not in other.signals:
                conflicts += differences(added[0].teacher, existing.teacher, f"signals.{name}.teacher.", exact=True)
        return conflicts


def require_version(version: object, where: str) -> None:
    """Raise `CacheMismatch` unless this is the format version that this program reads and writes."""
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CacheMismatch(
            f"{where}: format version expected {FORMAT_VERSION}, got {version!r}; use the version of dhkd that wrote it"
        )


def signal_name(teacher: str | None, signal: str) -> str:
    """A signal's name in a cache: with its teacher's name before it, if the teacher has one."""
    return f"{teacher}.{signal}" if teacher else signal


def teachers_own(name: str) -> str:
    """A cached signal's name without its teacher's: what the teacher itself calls it."""
    return name.rpartition(".")[2]


def array_name(name: str, part: str) -> str:
    """The name of the array that holds a part of a signal."""
    return f"{name}_{part}" if part else name


def canonical(tree: object) -> bytes:
    """A tree of plain values as JSON in one fixed form, for hashing; raises `ValueError` for NaN and infinity."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def differences(
    expected: Mapping[str, Any], got: Mapping[str, Any], prefix: str = "", *, exact: bool = False
) -> list[str]:
    """Each field of `expected` that `got` lacks or has with another value, as 'field expected …, got …'.

    With `exact`, a field that only `got` has is a difference, too.
    """
    lines: list[str] = []
    for key, value in expected.items():
        actual = got.get(key, "nothing")
        name = f"{prefix}{_short(key)}"
        if isinstance(value, Mapping) and isinstance(actual, Mapping):
            lines += differences(value, actual, f"{name}.", exact=exact)
        elif value != actual:
            lines.append(f"{name} expected {_short(value)}, got {_short(actual)}")
    if exact:
        lines += [
            f"{prefix}{_short(key)} expected nothing, got {_short(got[key])}" for key in got if key not in expected
        ]
    return lines


def require_identity(expected: Mapping[str, Any], manifest: Manifest, where: str, remedy: str) -> None:
    """Raise `CacheMismatch`, listing every difference, unless the cache is what is expected.

    Only the fields in `expected` are compared, so an experiment that names no teacher accepts any.
    """
    lines = differences(expected, manifest.identity.model_dump(mode="json"))
    if lines:
        raise CacheMismatch(f"cache at {where}: {'; '.join(lines)}; {remedy}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    if len(text) > LONGEST_SHOWN:
        return f"{text[:LONGEST_SHOWN]}…"
    return f"{text[:12]}…" if len(text) == hashlib.sha256().digest_size * 2 else text


def _first(error: Exception) -> str:
    """A validation's first complaint, in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(_short, fault['loc']))}: {fault['msg']}"
    return " ".join(str(error).split()) or type(error).__name__
