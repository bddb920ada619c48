"""The WebDataset store: one tar shard for each block of a signal. webdataset and tarfile can read the shards unchanged.

    manifest.json                           the manifest
    shards/logits/VIEW/BLOCK.tar            one WebDataset sample, which holds all rows of the block:
        VIEW-BLOCK.key.npy                  int32 (rows, 2): view and index of each row
        VIEW-BLOCK.logits.npy               (rows, K) for K classes; each further part has a member
        VIEW-BLOCK.seal.json                size and crc32c (a checksum) of all bytes before this member

The shards of a view are numbered in the order of the data set's samples. Members have fixed times, owners and order, so
that equal rows give equal bytes. The witness, a checksum of each row's rendered pixels, is stored in the same way as a
signal.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.manifest import Manifest, array_name
from dhkd.data.errors import CacheDamaged
from google_crc32c import extend
from google_crc32c import value as crc32c
from numpy.lib import format as npy

BLOCK_DIGITS, VIEW_DIGITS = 5, 5  # so that names sort like numbers; larger numbers are written in full
SEAL_BYTES = 64


class TarLayout:
    """One shard for each block of a signal or of the witness."""

    manifest_key: ClassVar[str] = "manifest.json"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._sizes: dict[tuple[str, int], int] = {}  # a shard's size in bytes, by array and number of rows

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """Decode the manifest, as plain JSON values."""
        tree: object = json.loads(content)
        return tree

    @staticmethod
    def objects_per_block(num_parts: int) -> int:
        """Return 1: one shard holds all parts."""
        return 1

    def structure(self) -> dict[str, bytes]:
        """Return the object that holds the manifest."""
        return {self.manifest_key: json.dumps(self._manifest.to_json(), indent=2, sort_keys=True).encode()}

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """Return the shard's size in bytes, by key; the size depends only on the array and the number of rows."""
        kind = (name, len(block))
        if kind not in self._sizes:
            zeros = {
                part: np.zeros((len(block), *row), dtype) for part, (dtype, row) in self._manifest.parts(name).items()
            }
            (shard,) = self.pack(name, block, zeros).values()
            self._sizes[kind] = len(shard)
        return {_shard(name, block): self._sizes[kind]}

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """Build the shard; its last member, the seal, holds the crc32c of all bytes before the seal."""
        index = np.arange(block.start, block.stop, dtype=np.int32)
        arrays: dict[str, Array] = {"key": np.stack([np.full_like(index, block.view), index], axis=1)}
        arrays |= {array_name(name, part): array for part, array in parts.items()}
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for array, values in arrays.items():
                _add(shard, f"{_sample(block)}.{array}.npy", _npy(values))
            sealed = stream.getvalue()
            seal = json.dumps({"bytes": len(sealed), "crc32c": f"{crc32c(sealed):08x}"})
            # Seals have a fixed length, so that a shard's size follows from its number of rows.
            _add(shard, f"{_sample(block)}.seal.json", seal.encode().ljust(SEAL_BYTES))
        return {_shard(name, block): stream.getvalue()}

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """Return the shard's arrays without copying them; raises `CacheDamaged` if the arrays aren't this block's."""
        key = _shard(name, block)
        content, parts = contents[key], self._manifest.parts(name)
        try:
            members = {member.name: member.offset_data for member in _members(content)}
            arrays = {
                part: _array(content, members[f"{_sample(block)}.{array_name(name, part)}.npy"]) for part in parts
            }
        except (KeyError, ValueError, tarfile.TarError) as error:
            raise CacheDamaged(f"{key}: not the shard of {block} ({error})") from error
        for part, (dtype, row) in parts.items():
            expected, got = ((len(block), *row), np.dtype(dtype)), (arrays[part].shape, arrays[part].dtype)
            if got != expected:
                raise CacheDamaged(f"{key}: {array_name(name, part)} expected {expected}, got {got}")
        return arrays

    def checksum(self, key: str, content: bytes) -> int:
        """Compute the whole shard's crc32c; raises `CacheDamaged` if the seal doesn't match the bytes before it."""
        try:
            *_, last = _members(content)
            seal = json.loads(content[last.offset_data : last.offset_data + last.size])
            end, sealed = int(seal["bytes"]), int(seal["crc32c"], 16)
            assert 0 < end == last.offset
        except (ValueError, KeyError, TypeError, AssertionError, tarfile.TarError) as error:
            raise CacheDamaged(f"{key}: no sealed shard") from error
        actual: int = crc32c(content[:end])
        if actual != sealed:
            raise CacheDamaged(f"{key}: crc32c of the rows expected {sealed:08x}, got {actual:08x}")
        return int(extend(actual, content[end:]))


def _shard(name: str, block: Block) -> str:
    return f"shards/{name}/{block.view:0{VIEW_DIGITS}}/{block.number:0{BLOCK_DIGITS}}.tar"


def _sample(block: Block) -> str:
    return f"{block.view:0{VIEW_DIGITS}}-{block.number:0{BLOCK_DIGITS}}"


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # by default, time 0 and owner 0
    member.size, member.mode = len(content), 0o444
    shard.addfile(member, io.BytesIO(content))


def _npy(values: Array) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _members(content: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as shard:
        return shard.getmembers()


def _array(content: bytes, start: int) -> Array:
    header = io.BytesIO(content[start : start + 4096])
    npy.read_magic(header)
    shape, fortran, dtype = npy.read_array_header_1_0(header)
    if fortran or dtype.hasobject:
        raise ValueError("an array in another order or of objects")
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(content, dtype, count, offset=start + header.tell()).reshape(shape)
