"""What a cache is: its identity, which is compared field by field, and its provenance, which is shown but not compared.

Some fields are plain JSON values (`Facts`), in which a recipe, a teacher or a provenance describes itself. A manifest
only stores, compares and shows these descriptions.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from dhkd.data.cache.blocks import MOST_BLOCKS, WITNESS, Part, Plan
from dhkd.data.cache.codecs import AnyCodec
from dhkd.data.errors import CacheDamaged, CacheMismatch
from dhkd.data.shown import line_of
from dhkd.data.strict_json import canonical
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

FORMAT_VERSION = 2
MAX_DEPTH = 20
LONGEST_SHOWN = 200  # characters of a value that a message shows
NOTHING = "nothing"  # the expected value of a field that must be absent
RECIPE = "recipe"  # the field of an identity that is compared as a whole

Size = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
# A signal's name is part of paths and keys.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Tree(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tree unchanged if it holds only plain JSON values.

    Raises `ValueError` for NaN or infinity, and for values nested so deeply that libraries fail to walk the tree.
    """
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
    """Which samples are cached, and in which order."""

    name: str
    split: str
    num_samples: Size
    num_classes: Size
    fingerprint: str


class SignalIdentity(_Tree):
    """What a signal's rows are: which teacher computed them, in which precision, and how they are stored.

    A signal is a teacher output such as logits; `row` is the shape of one sample's values.
    """

    teacher: Facts
    precision: Literal["float32", "bf16", "fp16"]
    codec: AnyCodec
    row: Annotated[tuple[Size, ...], Field(max_length=8)]

    @property
    def parts(self) -> dict[str, Part]:
        """The dtype and row shape of each array in which the codec stores the signal, by the part's name."""
        return self.codec.parts(self.row)

    @model_validator(mode="after")
    def _codec_fits(self) -> "SignalIdentity":
        misfit = self.codec.misfit(self.row)
        if misfit:
            raise ValueError(misfit)
        return self


class Identity(_Tree):
    """What is cached: the data set, the recipe by which views are drawn, and the signals by name."""

    dataset: DatasetIdentity
    recipe: Facts
    signals: Annotated[Mapping[Name, SignalIdentity], Field(min_length=1, max_length=256)]


class Manifest(_Tree):
    """A cache's identity, its provenance, and its size in views and in rows per block.

    `identity` says what is cached; `provenance` says, for each signal, how its values were made. `num_views` grows when
    the cache is extended.
    """

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
        if self.plan.num_blocks > MOST_BLOCKS:
            raise ValueError(f"expected at most {MOST_BLOCKS:,} blocks, got {self.plan.num_blocks:,}")
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
        """The signals, by name."""
        return self.identity.signals

    @property
    def names(self) -> list[str]:
        """The names of a block's arrays: the signals, then the witness (a checksum of each row's rendered pixels)."""
        return [*self.signals, WITNESS]

    def parts(self, name: str) -> dict[str, Part]:
        """Return dtype and row shape of each stored array of a signal or of the witness, by the part's name."""
        return {"": ("uint32", ())} if name == WITNESS else self.signals[name].parts

    def error_before(self, name: str) -> float:
        """Return the error bound ε that a signal's values had before its cache was converted, or else 0."""
        provenance = self.provenance.get(name, {})
        before = provenance.get("error_before", 0.0) if isinstance(provenance, Mapping) else 0.0
        return float(before) if isinstance(before, int | float) else 0.0

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the identity: a name for what is cached."""
        return self.digest_of(self.signals)

    def digest_of(self, names: Iterable[str]) -> str:
        """Compute the digest that a cache with only the signals `names` would have."""
        identity = self.identity.model_dump(mode="json")
        identity["signals"] = {name: identity["signals"][name] for name in names}
        return hashlib.sha256(canonical(identity)).hexdigest()

    def to_json(self) -> dict[str, Any]:  # JSON
        """Return the manifest as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, tree: Any, where: str) -> "Manifest":  # a file may hold any JSON
        """Build a manifest from what `to_json` returned; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version and `CacheDamaged` for anything that is not a manifest.
        """
        if not isinstance(tree, dict) or "format" not in tree:
            raise CacheDamaged(f"{where}: expected a dhkd manifest, got none; is this a dhkd cache?")
        require_version(tree["format"], where)
        try:
            return cls.model_validate(tree)
        except (ValidationError, ValueError, RecursionError) as error:
            raise CacheDamaged(f"{where}: the manifest is damaged ({_first(error)})") from error

    def extended_by(self, other: "Manifest", where: str) -> "Manifest":
        """Return the manifest of a cache that holds this manifest's views and signals, and those that `other` adds.

        Raises `CacheMismatch`, listing every difference, if one cache can't hold what both manifests describe.
        """
        # A signal that is in only one of the manifests can't conflict. If the manifests share no signal, only their
        # data sets and recipes are compared.
        shared = {name: signal for name, signal in self.signals.items() if name in other.signals} or other.signals
        existing = Identity(dataset=self.identity.dataset, recipe=self.identity.recipe, signals=shared)
        wanted = {
            **other.identity.model_dump(mode="json"),
            "signals": {name: other.signals[name].model_dump(mode="json") for name in shared},
        }
        conflicts = differences(wanted, existing.model_dump(mode="json"), exact=True) + self._teacher_conflicts(other)
        if other.num_views < self.num_views:
            conflicts.append(f"views expected at least {self.num_views}, as it was begun with, got {other.num_views}")
        num_blocks = replace(self.plan, num_views=other.num_views).num_blocks
        if num_blocks > MOST_BLOCKS:
            conflicts.append(f"blocks expected at most {MOST_BLOCKS:,}, got {num_blocks:,}")
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
        """List how a teacher whose signals `other` adds differs from the teacher of the same name in this cache."""
        conflicts: list[str] = []
        for name, existing in self.signals.items():
            prefix = name.removesuffix(teachers_own(name))
            added = [signal for new, signal in other.signals.items() if new.removesuffix(teachers_own(new)) == prefix]
            if added and name not in other.signals:
                conflicts += differences(added[0].teacher, existing.teacher, f"signals.{name}.teacher.", exact=True)
        return conflicts


def require_version(version: object, where: str) -> None:
    """Raise `CacheMismatch` unless `version` is the format version that this program reads and writes."""
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CacheMismatch(
            f"{where}: format version expected {FORMAT_VERSION}, got {version!r}; use the version of dhkd that wrote it"
        )


def signal_name(teacher: str | None, signal: str) -> str:
    """Return a signal's name in a cache: TEACHER.SIGNAL, or just SIGNAL if the teacher has no name."""
    return f"{teacher}.{signal}" if teacher else signal


def teachers_own(name: str) -> str:
    """Return a cached signal's name without the teacher's prefix: the name that the teacher itself uses."""
    return name.rpartition(".")[2]


def array_name(name: str, part: str) -> str:
    """Return the name of the array that holds a part of a signal: NAME_PART, or NAME if the part's name is empty."""
    return f"{name}_{part}" if part else name


def differences(
    expected: Mapping[str, Any], got: Mapping[str, Any], prefix: str = "", *, exact: bool = False
) -> list[str]:
    """List each field of `expected` that `got` lacks or has with another value, as 'field expected …, got …'.

    An expected value NOTHING means that `got` must lack the field. With `exact`, fields that only `got` has are listed
    as well.
    """
    lines: list[str] = []
    for key, value in expected.items():
        actual = got.get(key, NOTHING)
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
    """Raise `CacheMismatch`, listing every difference, unless the manifest's identity matches `expected`.

    Only the fields in `expected` are compared, so an experiment that names no teacher accepts any teacher. A recipe is
    compared as a whole, because a setting that the experiment leaves out, such as an operation, changes its pictures.
    """
    got = manifest.identity.model_dump(mode="json")
    lines = differences({key: value for key, value in expected.items() if key != RECIPE}, got)
    if RECIPE in expected:
        lines += differences({RECIPE: expected[RECIPE]}, {RECIPE: got[RECIPE]}, exact=True)
    if lines:
        raise CacheMismatch(f"cache at {where}: {'; '.join(lines)}; {remedy}")


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    if len(text) > LONGEST_SHOWN:
        return f"{text[:LONGEST_SHOWN]}…"
    return f"{text[:12]}…" if len(text) == hashlib.sha256().digest_size * 2 else text


def _first(error: Exception) -> str:
    """Return a validation's first complaint, in one line."""
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(_short, fault['loc']))}: {fault['msg']}"
    return line_of(error)
