"""The index: what is complete of a cache, and every object's size and checksum. Whoever reads a cache reads it first.

It is written last, replaced whole when a cache was extended or repaired, and sealed with a checksum of its own. It
holds the manifest once more, so that a cache stays readable while it is extended, and where nothing can be listed.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dhkd.data.cache.manifest import FORMAT_VERSION, Manifest, canonical
from dhkd.data.errors import CacheDamaged, CacheMismatch
from google_crc32c import value as crc32c
from pydantic import BaseModel, ConfigDict, Field, ValidationError

INDEX_KEY = "index.json"

Checksum = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Bytes = Annotated[int, Field(ge=0, strict=True)]


class Bound(BaseModel):
    """How far a signal's values lie from what the teacher said, at most: see the codec's `errors` and `tail_mass`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    error: float
    tail_mass: float | None = None


class Index(BaseModel):
    """A complete cache: its store, manifest, objects (size and checksum by key), and each signal's bound."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    store: Literal["zarr", "webdataset"]
    manifest: Manifest
    structure: Mapping[str, Checksum]
    objects: Mapping[str, tuple[Bytes, Checksum]]
    bounds: Mapping[str, Bound]
    version: int = Field(FORMAT_VERSION, exclude=True)

    def to_bytes(self) -> bytes:
        """The index as it is stored."""
        body = self.model_dump(mode="json")
        tree = {"format": FORMAT_VERSION, "crc32c": f"{crc32c(canonical(body)):08x}", "index": body}
        return json.dumps(tree, indent=0, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Index":
        """The inverse of `to_bytes`; `where` names the cache in errors.

        Raises `CacheMismatch` for another format version, `CacheDamaged` for anything that isn't as it was written.
        """
        try:
            tree: Any = json.loads(content)
            version, body = tree["format"], tree["index"]
            if version == FORMAT_VERSION and tree["crc32c"] != f"{crc32c(canonical(body)):08x}":
                raise ValueError("its checksum is not that of its content")
            if version != FORMAT_VERSION:
                Manifest.from_json({"format": version}, f"cache at {where}")
            return cls.model_validate(body)
        except CacheMismatch:
            raise
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CacheDamaged(
                f"cache at {where}: {INDEX_KEY} is damaged ({reason}); delete it, then run 'dhkd cache-teacher' again"
                f" with the same arguments: what is stored is checked and indexed anew"
            ) from error
