"""The Zarr store: one uncompressed, checksummed chunk for each block of each array. The only module that imports zarr.

    NAME.zarr/zarr.json           the manifest, as the group's attribute "dhkd"
    NAME.zarr/signals/logits      (V, N, K)
    NAME.zarr/witness             (V, N) uint32
    NAME.zarr/index.json          written last: every chunk's key, size and crc32c

A missing chunk reads as the fill value without an error, so presence comes from the listing alone, never from values;
the set of chunks that exist is the journal of what is done. Chunks have no sharding codec: it reads a zero-length
file as NaN, and a shard can't be repaired by overwriting one block.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from dhkd.data.cache.contract import WITNESS, Block, Plan, encode
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import CacheDamaged, CacheIncomplete, CacheMismatch
from dhkd.data.files import sync_folder, write_atomically
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

MANIFEST_ATTRIBUTE = "dhkd"
INDEX_NAME = "index.json"
CHECKSUM_BYTES = 4  # crc32c, little-endian, at the end of each chunk


class _ZarrCache:
    """What reader and writer share: where the arrays are, and which chunks exist."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.plan = Plan(manifest.num_views, manifest.num_samples, manifest.block_rows)
        try:
            group = zarr.open_group(path, mode="r+" if isinstance(self, ZarrWriter) else "r")
            self._arrays = {name: _array(group, _path_of(name)) for name in self.names}
        except (KeyError, ValueError, TypeError, FileNotFoundError) as error:
            raise CacheDamaged(f"cache at {path}: its arrays can't be opened ({_line(error)}); rebuild it") from error
        self._require_shapes()

    @property
    def names(self) -> list[str]:
        """The arrays: every signal, and the witness."""
        return [*self.manifest.signals, WITNESS]

    def missing(self) -> list[Block]:
        """The blocks of which some array's chunk is absent or has the wrong size."""
        return [block for block in self.plan.blocks() if not self._exists(block)]

    def _exists(self, block: Block) -> bool:
        return all(self._size(name, block) == self._chunk_bytes[name] for name in self.names)

    def _size(self, name: str, block: Block) -> int:
        """The stored chunk's size in bytes, -1 when there is none."""
        try:
            return (self.path / self._key(name, block)).stat().st_size
        except FileNotFoundError:
            return -1

    def _key(self, name: str, block: Block) -> str:
        array = self._arrays[name]
        position = (block.view, block.number, *(0,) * (array.ndim - 2))
        return f"{_path_of(name)}/{array.metadata.encode_chunk_key(position)}"

    @cached_property
    def _chunk_bytes(self) -> dict[str, int]:
        # Zarr stores the last chunk of an axis in full size, so that all chunks of an array are equally large.
        return {
            name: int(np.prod(array.chunks)) * array.dtype.itemsize + CHECKSUM_BYTES
            for name, array in self._arrays.items()
        }

    def _require_shapes(self) -> None:
        plan = self.plan
        for name, array in self._arrays.items():
            row, dtype = _row_of(self.manifest, name)
            expected = ((plan.num_views, plan.num_samples, *row), (1, plan.block_rows, *row), np.dtype(dtype))
            if (array.shape, array.chunks, array.dtype) != expected:
                raise CacheDamaged(
                    f"cache at {self.path}: array {name} expected shape, chunks and dtype {expected},"
                    f" got {(array.shape, array.chunks, array.dtype)}; rebuild it"
                )

    def _structure_digest(self) -> dict[str, int]:
        """The crc32 of the metadata files, which no codec covers."""
        names = ["zarr.json", *(f"{_path_of(name)}/zarr.json" for name in self.names)]
        return {name: zlib.crc32((self.path / name).read_bytes()) for name in names}


class ZarrWriter(_ZarrCache):
    """Puts blocks into a cache; several processes may write different blocks of one cache at the same time."""

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> "ZarrWriter":
        """Make the empty cache, or open the unfinished one that is there.

        Raises `CacheMismatch` when another cache, or anything else, is at `path`.
        """
        existing = read_manifest(path)
        if existing is None:
            _require_empty(path)
            _create_arrays(path, manifest)
        return cls(path, existing or manifest)

    def write(self, block: Block, rows: Mapping[str, NDArray[np.generic]]) -> None:
        """Put one block: every signal, float (rows, …), and the witness, uint32 (rows,). Durable on return."""
        assert set(rows) == set(self.names)
        for name, values in rows.items():
            assert len(values) == len(block)
            _, dtype = _row_of(self.manifest, name)
            stored = values if name == WITNESS else encode(name, block, np.asarray(values, dtype=np.float32), dtype)
            self._arrays[name][block.view, block.start : block.stop] = stored
            # Zarr renames a finished file into place; flushing it makes the rename survive a loss of power.
            _flush(self.path / self._key(name, block))

    def finish(self) -> None:
        """Write the index, which declares the cache complete; raises `CacheIncomplete` when a block is missing."""
        _require_complete(self.path, self.missing(), self.plan)
        chunks = {}
        for name in self.names:
            for block in self.plan.blocks():
                key = self._key(name, block)
                chunks[key] = [self._chunk_bytes[name], _stored_checksum(self.path / key)]
        index = {"structure": self._structure_digest(), "chunks": chunks}
        text = json.dumps(index, indent=0, sort_keys=True).encode()
        write_atomically(self.path / INDEX_NAME, lambda stream: stream.write(text))


class ZarrReader(_ZarrCache):
    """Reads a complete cache; what it gives was checked against the checksums of when the cache was finished."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise CacheIncomplete(f"cache at {path}: nothing is there; make it with 'dhkd cache-teacher'")
        manifest = read_manifest(path)
        if manifest is None:
            raise CacheIncomplete(
                f"cache at {path}: expected a dhkd cache, found no manifest; make it with 'dhkd cache-teacher'"
            )
        super().__init__(path, manifest)

    @property
    def complete(self) -> bool:
        """Whether the cache was declared complete."""
        return (self.path / INDEX_NAME).exists()

    def require_complete(self) -> None:
        """Raise `CacheIncomplete` unless every block is there, `CacheDamaged` when the cache was changed since."""
        _require_complete(self.path, self.missing(), self.plan)
        if not self.complete:
            raise CacheIncomplete(f"cache at {self.path}: it was never finished; {_RESUME}")
        if self._structure_digest() != self._index["structure"]:
            raise CacheDamaged(
                f"cache at {self.path}: a zarr.json was changed after the cache was finished; rebuild it"
            )

    def read(self, block: Block, name: str) -> NDArray[np.generic]:
        """One block of one array, as stored: (rows, …). Raises `CacheDamaged`, never gives fill values."""
        key = self._key(name, block)
        expected = self._index["chunks"].get(key)
        got = self._size(name, block)
        if expected is None or got != expected[0]:
            raise CacheDamaged(
                f"cache at {self.path}: {key} ({block}) expected {expected and expected[0]} bytes, got {got}; {_RESUME}"
            )
        # A chunk copied to another place passes its own checksum, but not the index's.
        if _stored_checksum(self.path / key) != expected[1]:
            raise CacheDamaged(
                f"cache at {self.path}: {key} ({block}) is not the chunk that was written; delete it, then {_RESUME}"
            )
        try:
            values = self._arrays[name][block.view, block.start : block.stop]
        except ValueError as error:
            raise CacheDamaged(
                f"cache at {self.path}: {key} ({block}): {_line(error)}; delete it, then {_RESUME}"
            ) from error
        return np.asarray(values)

    def stored_bytes(self) -> int:
        """How many bytes of chunks exist."""
        sizes = (self._size(name, block) for name in self.names for block in self.plan.blocks())
        return sum(size for size in sizes if size > 0)

    @cached_property
    def _index(self) -> dict[str, Any]:
        path = self.path / INDEX_NAME
        try:
            index = json.loads(path.read_bytes())
            assert isinstance(index["structure"], dict)
            assert all(len(entry) == 2 for entry in index["chunks"].values())
        except FileNotFoundError as error:
            raise CacheIncomplete(f"cache at {self.path}: it was never finished; {_RESUME}") from error
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise CacheDamaged(f"{path}: the index is damaged; delete it, then {_RESUME}") from error
        return dict(index)


_RESUME = "run 'dhkd cache-teacher' again with the same arguments"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the cache at `path`; None when there is none (yet)."""
    metadata = path / "zarr.json"
    try:
        attributes = json.loads(metadata.read_bytes())["attributes"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(
            f"{metadata}: expected a Zarr group's metadata ({_line(error)}); rebuild the cache"
        ) from error
    if not isinstance(attributes, dict) or MANIFEST_ATTRIBUTE not in attributes:
        return None
    return Manifest.from_json(attributes[MANIFEST_ATTRIBUTE], f"cache at {path}")


def _create_arrays(path: Path, manifest: Manifest) -> None:
    """The manifest goes in last: a kill before it leaves a folder that counts as empty."""
    for name in [*manifest.signals, WITNESS]:
        row, dtype = _row_of(manifest, name)
        zarr.create_array(
            path,
            name=_path_of(name),
            shape=(manifest.num_views, manifest.num_samples, *row),
            chunks=(1, manifest.block_rows, *row),
            dtype=dtype,
            fill_value=float("nan") if np.dtype(dtype).kind == "f" else 0,
            compressors=[Crc32cCodec()],
            filters=None,
            overwrite=True,
        )
    group = {
        "attributes": {MANIFEST_ATTRIBUTE: manifest.to_json()},
        "zarr_format": 3,
        "node_type": "group",
    }
    text = json.dumps(group, indent=2).encode()
    write_atomically(path / "zarr.json", lambda stream: stream.write(text))


def _require_empty(path: Path) -> None:
    """A folder may hold what an interrupted `create` left, and nothing else."""
    if not path.exists():
        return
    if not path.is_dir():
        raise CacheMismatch(f"cache at {path}: expected a folder, got a file; choose another --out")
    leftovers = {"signals", WITNESS, "zarr.json"}
    foreign = [
        entry.name for entry in path.iterdir() if entry.name not in leftovers and not entry.name.endswith(".partial")
    ]
    chunks = [chunk for folder in leftovers for chunk in (path / folder).glob("**/c/**/*") if chunk.is_file()]
    if foreign or chunks:
        found = foreign or [str(chunks[0].relative_to(path))]
        raise CacheMismatch(
            f"cache at {path}: expected an empty folder or a dhkd cache, found {found[0]}; choose another --out"
        )


def _array(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{path} is no array")
    # A chunk of zeros (a witness can be) must be written, since presence is what counts as done.
    return array.with_config({"write_empty_chunks": True})


def _path_of(name: str) -> str:
    return name if name == WITNESS else f"signals/{name}"


def _row_of(manifest: Manifest, name: str) -> tuple[tuple[int, ...], str]:
    """The shape of one row and its dtype."""
    if name == WITNESS:
        return (), "uint32"
    signal = manifest.signals[name]
    return tuple(signal["row"]), signal["dtype"]


def _require_complete(path: Path, missing: list[Block], plan: Plan) -> None:
    if missing:
        total = plan.num_views * plan.blocks_per_view
        raise CacheIncomplete(
            f"cache at {path}: {total - len(missing)} of {total} blocks are there,"
            f" the first missing is {missing[0]}; {_RESUME}"
        )


def _stored_checksum(path: Path) -> int:
    with path.open("rb") as stream:
        stream.seek(-CHECKSUM_BYTES, os.SEEK_END)
        (checksum,) = struct.unpack("<I", stream.read(CHECKSUM_BYTES))
    return int(checksum)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    sync_folder(path.parent)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
