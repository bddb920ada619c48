"""The index lists what is complete in a cache, with every object's size and checksum. Readers read it first.

The index is written last. When a cache has been extended or repaired, the index is replaced as a whole. The index
includes a checksum of its content, and a copy of the manifest, so that a cache can be read while it is being extended,
and from places that can't list their objects.

It has two forms. A cache of at most `MOST_LISTED` objects lists them by key, as people can read it. The index of a
larger cache holds the checksums alone, packed into text: keys and sizes follow from the manifest. A list of a million
objects would take half a minute to read and write, and one of two millions would be larger than readers accept.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.layouts import LAYOUTS, layout_of
from dhkd.data.cache.manifest import FORMAT_VERSION, Manifest, require_version
from dhkd.data.errors import CacheDamaged, CacheMismatch, unknown
from dhkd.data.storage.base import LARGEST_OBJECT
from dhkd.data.strict_json import canonical, decode
from google_crc32c import value as crc32c
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

INDEX_KEY = "index.json"
PACKED_VERSION = 3  # of the form that holds the checksums alone
MOST_LISTED = 100_000  # objects that an index lists by key
MOST_STRUCTURE = 8  # metadata objects besides those of arrays
LARGEST_INDEX = 64 * 2**20  # bytes of JSON; 1.3 million listed objects, or 12 million packed ones


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
Checksums = Mapping[str, NDArray[np.uint32]]  # by the name of an array: (views, blocks of a view, objects of a block)
Entries = Mapping[str, tuple[int, int]]  # size and checksum of each object, by key


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


class _Body(BaseModel):
    """What an index says besides the objects of blocks: it is known before anything is done for each block."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    store: Store
    manifest: Manifest
    structure: Mapping[Key, Checksum]
    bounds: Mapping[str, Bound]

    @model_validator(mode="after")
    def _bounds_of_all_signals(self) -> "_Body":
        if set(self.bounds) != set(self.manifest.signals):
            raise ValueError("bounds of other signals than the manifest's")
        return self

    @model_validator(mode="after")
    def _possible_sizes(self) -> "_Body":
        arrays = [self.manifest.parts(name) for name in self.manifest.names]
        if len(self.structure) > MOST_STRUCTURE + sum(map(len, arrays)):
            raise ValueError(f"expected a few metadata objects, got {len(self.structure):,}")
        largest = self.manifest.block_rows * max(map(row_bytes, arrays))
        if largest > LARGEST_OBJECT:
            raise ValueError(f"expected blocks of at most {LARGEST_OBJECT:,} bytes, got {largest:,}")
        return self


@dataclass(frozen=True, eq=False)
class Index:
    """A complete cache: the name of its store, its manifest, the checksums of its objects, and each signal's bound.

    `structure` holds the crc32c of each metadata object. `checksums` holds those of the blocks' objects, by array.
    """

    store: str
    manifest: Manifest
    structure: Mapping[str, int]
    checksums: Checksums
    bounds: Mapping[str, Bound]

    @classmethod
    def of_entries(
        cls,
        store: str,
        manifest: Manifest,
        structure: Mapping[str, int],
        entries: Entries,
        bounds: Mapping[str, Bound],
    ) -> "Index":
        """Build the index of a cache from size and checksum of each object of a block, by key.

        Raises `ObjectMissing` if a block lacks an object, and `ValueError` if an object has another size than the
        layout says.
        """
        return cls(store, manifest, structure, _checksums(store, manifest, entries), bounds)

    @property
    def num_objects(self) -> int:
        """The number of the blocks' objects and of the metadata objects."""
        return len(self.structure) + sum(checksums.size for checksums in self.checksums.values())

    def known(self, name: str, block: Block) -> list[int] | None:
        """Return the checksums of the block's objects of an array, in the layout's order; None if it isn't indexed."""
        if name not in self.checksums or block.view >= self.manifest.num_views:
            return None
        checksums: list[int] = self.checksums[name][block.view, block.number].tolist()
        return checksums

    def to_bytes(self) -> bytes:
        """Return the index as it is stored: JSON with a format version and a checksum."""
        listed = self.num_objects - len(self.structure) <= MOST_LISTED
        body = {
            "store": self.store,
            "manifest": self.manifest.to_json(),
            "structure": dict(self.structure),
            "bounds": {name: bound.model_dump(mode="json") for name, bound in self.bounds.items()},
            **({"objects": self._listed()} if listed else {"checksums": self._packed()}),
        }
        version = FORMAT_VERSION if listed else PACKED_VERSION
        tree = {"format": version, "crc32c": f"{crc32c(canonical(body)):08x}", "index": body}
        return json.dumps(tree, indent=0, sort_keys=True).encode()

    def _listed(self) -> dict[str, list[int]]:
        """Return size and checksum of each object, by key."""
        objects = {}
        for name, array in self.checksums.items():
            rows, layout, plan = array.tolist(), layout_of(self.store, self.manifest), self.manifest.plan
            for block in plan.blocks():
                for (key, size), checksum in zip(
                    layout.objects(name, block).items(), rows[block.view][block.number], strict=True
                ):
                    objects[key] = [size, checksum]
        return objects

    def _packed(self) -> dict[str, str]:
        return {
            name: base64.b64encode(array.astype("<u4", copy=False).tobytes()).decode()
            for name, array in self.checksums.items()
        }

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Index":
        """Decode what `to_bytes` returned; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version, and `CacheDamaged` if the content is damaged.
        """
        try:
            tree: Any = decode(content)  # the file may hold any JSON
            packed = tree["format"] == PACKED_VERSION
            if not packed:
                require_version(tree["format"], f"cache at {where}")
            body = tree["index"]
            if tree["crc32c"] != f"{crc32c(canonical(body)):08x}":
                raise ValueError("its checksum is not that of its content")
            stored = body.pop("checksums" if packed else "objects")
            about = _Body.model_validate(body)
            checksums = _unpacked(about.manifest, about.store, stored) if packed else None
            if checksums is None:
                _require_number(about.manifest, about.store, len(stored))
                checksums = _checksums(about.store, about.manifest, stored)
            return cls(about.store, about.manifest, about.structure, checksums, about.bounds)
        except CacheMismatch:
            raise
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CacheDamaged(
                f"cache at {where}: {INDEX_KEY} is damaged ({reason}); delete it, then run 'dhkd cache-teacher' again"
                f" with the same arguments: what is stored is checked and indexed anew"
            ) from error


class ObjectMissing(ValueError):
    """A block lacks an object."""

    def __init__(self, key: str, block: Block) -> None:
        super().__init__(f"the block lacks {key} ({block})")
        self.key, self.block = key, block


def _shape(manifest: Manifest, store: str, name: str) -> tuple[int, int, int]:
    plan, objects = manifest.plan, LAYOUTS[store].objects_per_block(len(manifest.parts(name)))
    return plan.num_views, plan.blocks_per_view, objects


def _require_number(manifest: Manifest, store: str, number: int) -> None:
    """Compare what a manifest claims with what is listed, before anything is done for each block."""
    expected = sum(int(np.prod(_shape(manifest, store, name), dtype=object)) for name in manifest.names)
    if number != expected:
        raise ValueError(f"expected {expected:,} objects, as the manifest says, got {number:,}")


def _checksums(store: str, manifest: Manifest, entries: Mapping[str, Any]) -> Checksums:  # checked here: perhaps JSON
    """Return the checksums of the objects of all blocks, which have exactly the sizes that the layout says."""
    layout, plan, checksums = layout_of(store, manifest), manifest.plan, {}
    for name in manifest.names:

        def of_block(block: Block, name: str = name) -> Iterable[int]:
            for key, expected in layout.objects(name, block).items():
                try:
                    size, checksum = entries[key]
                except KeyError as error:
                    raise ObjectMissing(key, block) from error
                if type(size) is not int or size != expected:
                    raise ValueError(f"{key}: expected {expected} bytes by the manifest, got {size!r}")
                if type(checksum) is not int or not 0 <= checksum < 2**32:
                    raise ValueError(f"{key}: expected a crc32c, got {checksum!r}")
                yield checksum

        shape = _shape(manifest, store, name)
        values = (checksum for block in plan.blocks() for checksum in of_block(block))
        checksums[name] = np.fromiter(values, dtype=np.uint32, count=shape[0] * shape[1] * shape[2]).reshape(shape)
    return checksums


def _unpacked(manifest: Manifest, store: str, packed: Mapping[str, str]) -> Checksums:
    """Decode what `_packed` returned; raises `ValueError` for anything else."""
    if set(packed) != set(manifest.names):
        raise ValueError("checksums of other arrays than the manifest's")
    checksums = {}
    for name in manifest.names:
        shape, content = _shape(manifest, store, name), base64.b64decode(packed[name], validate=True)
        if len(content) != 4 * shape[0] * shape[1] * shape[2]:
            raise ValueError(f"expected {shape[0] * shape[1] * shape[2]:,} checksums of {name}")
        checksums[name] = np.frombuffer(content, "<u4").astype(np.uint32, copy=False).reshape(shape)
    return checksums
