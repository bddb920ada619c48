"""The index lists what is complete in a cache, with every object's size and checksum. Readers read it first.

The index is written last. When a cache has been extended or repaired, the index is replaced as a whole. The index
includes a checksum of its content, and a copy of the manifest, so that a cache can be read while it is being extended,
and from places that can't list their objects.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.manifest import FORMAT_VERSION, Manifest, require_version
from dhkd.data.errors import CacheDamaged, CacheMismatch, unknown
from dhkd.data.storage.base import LARGEST_OBJECT
from dhkd.data.strict_json import canonical, decode
from google_crc32c import value as crc32c
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

INDEX_KEY = "index.json"
MOST_STRUCTURE = 8  # metadata objects besides those of arrays
LARGEST_INDEX = 64 * 2**20  # bytes of JSON; about a million objects


def _known_store(name: str) -> str:
    if name not in LAYOUTS:
        raise ValueError(unknown("store", name, LAYOUTS))
    return name


Store = Annotated[str, AfterValidator(_known_store)]
# A key is a path inside the cache, of names as dhkd makes them: no '..', backslash, percent sign or control character.
Key = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=500)
]
Checksum = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Bytes = Annotated[int, Field(ge=0, strict=True)]


class Bound(BaseModel):
    """How far a signal's stored values may lie from the values that the teacher computed.

    `error` is the largest of the error bounds that the codec's `errors` returns for the rows; if the signal was
    converted from another codec, the `error` that it had before is added. `tail_mass` is the largest value that the
    codec's method `tail_mass` returns for a row, or None if the codec stores every value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    error: float
    tail_mass: float | None = None

    def or_worse(self, other: "Bound") -> "Bound":
        """Return the bound that holds for the rows of `self` and for the rows of `other`."""
        masses = [bound.tail_mass for bound in (self, other) if bound.tail_mass is not None]
        return Bound(error=max(self.error, other.error), tail_mass=max(masses) if masses else None)


class Index(BaseModel):
    """A complete cache: the name of its store, its manifest, its objects, and each signal's bound.

    `objects` holds the size and checksum of each block's objects, by key; `structure` holds the crc32c of each metadata
    object.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    store: Store
    manifest: Manifest
    structure: Mapping[Key, Checksum]
    objects: Mapping[Key, tuple[Bytes, Checksum]]
    bounds: Mapping[str, Bound]

    @model_validator(mode="after")
    def _bounds_of_all_signals(self) -> "Index":
        if set(self.bounds) != set(self.manifest.signals):
            raise ValueError("bounds of other signals than the manifest's")
        return self

    @model_validator(mode="after")
    def _objects_of_all_blocks(self) -> "Index":
        """Compare what the manifest claims with what is listed, before anything is done for each block or row."""
        layout, arrays = LAYOUTS[self.store], [self.manifest.parts(name) for name in self.manifest.names]
        expected = self.manifest.plan.num_blocks * sum(layout.objects_per_block(len(parts)) for parts in arrays)
        if len(self.objects) != expected:
            raise ValueError(f"expected {expected:,} objects, as the manifest says, got {len(self.objects):,}")
        if len(self.structure) > MOST_STRUCTURE + sum(map(len, arrays)):
            raise ValueError(f"expected a few metadata objects, got {len(self.structure):,}")
        largest = self.manifest.block_rows * max(map(row_bytes, arrays))
        if largest > LARGEST_OBJECT:
            raise ValueError(f"expected blocks of at most {LARGEST_OBJECT:,} bytes, got {largest:,}")
        return self

    def to_bytes(self) -> bytes:
        """Return the index as it is stored: JSON with a format version and a checksum."""
        body = self.model_dump(mode="json")
        tree = {"format": FORMAT_VERSION, "crc32c": f"{crc32c(canonical(body)):08x}", "index": body}
        return json.dumps(tree, indent=0, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Index":
        """Decode what `to_bytes` returned; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version, and `CacheDamaged` if the content is damaged.
        """
        try:
            tree: Any = decode(content)  # the file may hold any JSON
            require_version(tree["format"], f"cache at {where}")
            body = tree["index"]
            if tree["crc32c"] != f"{crc32c(canonical(body)):08x}":
                raise ValueError("its checksum is not that of its content")
            return cls.model_validate(body)
        except CacheMismatch:
            raise
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CacheDamaged(
                f"cache at {where}: {INDEX_KEY} is damaged ({reason}); delete it, then run 'dhkd cache-teacher' again"
                f" with the same arguments: what is stored is checked and indexed anew"
            ) from error
