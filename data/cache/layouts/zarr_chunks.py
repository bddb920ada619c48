"""The Zarr store: one uncompressed chunk with a checksum for each block of each array. Only this module imports zarr.

    zarr.json                         the manifest, as the group's attribute "dhkd"
    signals/logits/c/VIEW/BLOCK/0     a block's rows of the array (V, N, K), then their crc32c
    witness/c/VIEW/BLOCK              a block's rows of the array (V, N), uint32, then their crc32c

V is the number of views, N of samples and K of classes; crc32c is a checksum. The witness is a checksum of each row's
rendered pixels. zarr makes the metadata. Chunks have the bytes that zarr would write, but this module assembles them,
with one copy and one checksum for a whole block. zarr reads a missing chunk as the fill value without an error, so only
the listing of objects, never the values, shows whether a block exists. The sharding codec is not used: it reads a
zero-length file as NaN, and a shard can't be repaired by overwriting one block.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import zarr
from dhkd.data.cache.blocks import WITNESS, Array, Block, Part
from dhkd.data.cache.manifest import Manifest, array_name
from dhkd.data.disk.mapped import Content
from dhkd.data.errors import CacheDamaged
from dhkd.data.strict_json import decode
from google_crc32c import value as crc32c
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

MANIFEST_ATTRIBUTE = "dhkd"
SIGNALS_GROUP = "signals/zarr.json"
CHECKSUM = struct.Struct("<I")  # crc32c, at the end of each chunk
RESIDUE = 0x48674BC7  # the crc32c of any bytes followed by their crc32c


class ZarrLayout:
    """One array for each part of a signal, and one chunk for each block of the array."""

    manifest_key: ClassVar[str] = "zarr.json"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._chunks: dict[str, list[tuple[str, str, int]]] = {}  # of an array's parts: how keys begin and end, size

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """Return the manifest in the root group's metadata, as plain JSON values; return None if there is none."""
        tree = decode(content)
        attributes = tree.get("attributes") if isinstance(tree, dict) else None
        return attributes.get(MANIFEST_ATTRIBUTE) if isinstance(attributes, dict) else None

    @staticmethod
    def objects_per_block(num_parts: int) -> int:
        """Return `num_parts`, because each part of a block is one chunk."""
        return num_parts

    def structure(self) -> dict[str, bytes]:
        """Return the metadata of arrays and groups; the root group, which holds the manifest, comes last."""
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
        """Return the sizes in bytes of the block's chunks, one for each stored array, by key.

        All chunks of an array have the same size, because the last chunk of a view is padded.
        """
        if name not in self._chunks:  # what all blocks share is computed once: a cache may have a million chunks
            rows = self._manifest.block_rows
            self._chunks[name] = [
                (f"{array}/c/", "/0" * len(part[1]), rows * _row_size(part) + CHECKSUM.size)
                for array, part in _arrays(self._manifest, name).items()
            ]
        return {f"{begin}{block.view}/{block.number}{end}": size for begin, end, size in self._chunks[name]}

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """Build the chunks: little-endian values in C order, padded with the fill value, then their crc32c."""
        chunks = {}
        arrays = _arrays(self._manifest, name).values()
        for key, part, (dtype, row) in zip(self.objects(name, block), parts, arrays, strict=True):
            filling = np.full((self._manifest.block_rows - len(block), *row), _fill(dtype), _little(dtype))
            content = parts[part].astype(_little(dtype), copy=False).tobytes() + filling.tobytes()
            chunks[key] = content + CHECKSUM.pack(crc32c(content))
        return chunks

    def unpack(self, name: str, block: Block, contents: Mapping[str, Content]) -> dict[str, Array]:
        """Return the block's rows, without the padding."""
        parts: dict[str, Array] = {}
        described = self._manifest.parts(name)
        for key, (part, (dtype, row)) in zip(self.objects(name, block), described.items(), strict=True):
            content = contents[key]
            count = len(block) * math.prod(row)
            values = np.frombuffer(content, _little(dtype), count).reshape(len(block), *row)
            parts[part] = values.astype(dtype, copy=False)
        return parts

    def checksum(self, key: str, content: bytes) -> int:
        """Read the crc32c at the end of the chunk; raises `CacheDamaged` if the bytes before it have another."""
        (stored,) = CHECKSUM.unpack(content[-CHECKSUM.size :])
        if crc32c(content) != RESIDUE:
            raise CacheDamaged(f"{key}: its values and its crc32c don't agree")
        return int(stored)


def _arrays(manifest: Manifest, name: str) -> dict[str, Part]:
    """Return the arrays that hold a signal or the witness: dtype and row shape, by the array's path."""
    prefix = "" if name == WITNESS else "signals/"
    return {f"{prefix}{array_name(name, part)}": described for part, described in manifest.parts(name).items()}


def _row_size(part: Part) -> int:
    dtype, row = part
    return math.prod(row) * np.dtype(dtype).itemsize


def _fill(dtype: str) -> float:
    return float("nan") if np.dtype(dtype).kind == "f" else 0


def _little(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")
