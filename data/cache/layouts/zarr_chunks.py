"""The Zarr store: one uncompressed, checksummed chunk for each block of each array. The only module that imports zarr.

    zarr.json                         the manifest, as the group's attribute "dhkd"
    signals/logits/c/VIEW/BLOCK/0     rows of (V, N, K), followed by their crc32c
    witness/c/VIEW/BLOCK              the same of (V, N), uint32

zarr makes the metadata. Chunks have the bytes that zarr would write, but are put together here, where a whole block
takes one copy and one checksum. A missing chunk reads as the fill value without an error, so whether a block exists is
known from the listing alone, never from values. There is no sharding codec: it reads a zero-length file as NaN, and a
shard can't be repaired by overwriting one block.
"""

import json
import struct
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import zarr
from dhkd.data.cache.blocks import WITNESS, Array, Block, Part
from dhkd.data.cache.manifest import Manifest, array_name
from dhkd.data.errors import CacheDamaged
from google_crc32c import value as crc32c
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

MANIFEST_ATTRIBUTE = "dhkd"
SIGNALS_GROUP = "signals/zarr.json"
CHECKSUM = struct.Struct("<I")  # crc32c, at the end of each chunk
RESIDUE = 0x48674BC7  # the crc32c of any bytes that are followed by their own crc32c


class ZarrLayout:
    """One array for each part of a signal, one chunk for each block of it."""

    manifest_key: ClassVar[str] = "zarr.json"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """The manifest in the root group's metadata, as plain JSON values; None if it is another program's group."""
        tree = json.loads(content)
        attributes = tree.get("attributes") if isinstance(tree, dict) else None
        return attributes.get(MANIFEST_ATTRIBUTE) if isinstance(attributes, dict) else None

    @staticmethod
    def objects_per_block(num_parts: int) -> int:
        """A chunk for each part."""
        return num_parts

    def structure(self) -> dict[str, bytes]:
        """The metadata of arrays and groups; the root group comes last, with the manifest."""
        manifest, store = self._manifest, MemoryStore()
        for name in manifest.names:
            for array, (dtype, row) in _arrays(manifest, name).items():
                zarr.create_array(
                    store,
                    name=array,
                    shape=(manifest.num_views, manifest.num_samples, *row),
                    chunks=(1, manifest.block_rows, *row),
                    dtype=dtype,
                    fill_value=_fill(dtype),
                    compressors=[Crc32cCodec()],
                    filters=None,
                )
        group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        groups = (self.manifest_key, SIGNALS_GROUP)
        contents = {key: buffer.to_bytes() for key, buffer in store._store_dict.items() if key not in groups}
        contents[SIGNALS_GROUP] = json.dumps(group, indent=2).encode()
        root = {**group, "attributes": {MANIFEST_ATTRIBUTE: manifest.to_json()}}
        return {**contents, self.manifest_key: json.dumps(root, indent=2, sort_keys=True).encode()}

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """Each array's chunk. All chunks of an array have one size: the last one of a view is filled up."""
        rows = self._manifest.block_rows
        return {
            _chunk(array, part, block): rows * _row_size(part) + CHECKSUM.size
            for array, part in _arrays(self._manifest, name).items()
        }

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """Little-endian values in C order, filled up with the fill value, then their crc32c."""
        chunks = {}
        for part, (array, (dtype, row)) in zip(parts, _arrays(self._manifest, name).items(), strict=True):
            filling = np.full((self._manifest.block_rows - len(block), *row), _fill(dtype), _little(dtype))
            content = parts[part].astype(_little(dtype), copy=False).tobytes() + filling.tobytes()
            chunks[_chunk(array, (dtype, row), block)] = content + CHECKSUM.pack(crc32c(content))
        return chunks

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """The block's rows, without what fills the chunk up."""
        parts: dict[str, Array] = {}
        for part, (array, (dtype, row)) in zip(
            self._manifest.parts(name), _arrays(self._manifest, name).items(), strict=True
        ):
            content = contents[_chunk(array, (dtype, row), block)]
            count = len(block) * int(np.prod(row, dtype=np.int64))
            values = np.frombuffer(content, _little(dtype), count).reshape(len(block), *row)
            parts[part] = values.astype(dtype, copy=False)
        return parts

    def checksum(self, key: str, content: bytes) -> int:
        """The crc32c at the end of the chunk; raises `CacheDamaged` if it is not that of the values."""
        (stored,) = CHECKSUM.unpack(content[-CHECKSUM.size :])
        if crc32c(content) != RESIDUE:
            raise CacheDamaged(f"{key}: its values and its crc32c don't agree")
        return int(stored)


def _arrays(manifest: Manifest, name: str) -> dict[str, Part]:
    """The arrays that a signal, or the witness, is stored as: dtype and row shape, by path."""
    prefix = "" if name == WITNESS else "signals/"
    return {f"{prefix}{array_name(name, part)}": described for part, described in manifest.parts(name).items()}


def _chunk(array: str, part: Part, block: Block) -> str:
    zeros = "/0" * len(part[1])
    return f"{array}/c/{block.view}/{block.number}{zeros}"


def _row_size(part: Part) -> int:
    dtype, row = part
    return int(np.prod(row, dtype=np.int64)) * np.dtype(dtype).itemsize


def _fill(dtype: str) -> float:
    return float("nan") if np.dtype(dtype).kind == "f" else 0


def _little(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")
