"""The WebDataset store: a tar shard for each block of a signal, which webdataset and tarfile read as they are.

    manifest.json                           the manifest
    shards/logits/VIEW/BLOCK.tar            a sample of many rows, its members named VIEW-BLOCK.*:
        VIEW-BLOCK.key.npy                  int32 (rows, 2): view and index of each row
        VIEW-BLOCK.logits.npy               (rows, K), and one member for each further part
        VIEW-BLOCK.seal.json                crc32c and size of all bytes before it

Shards follow the order of the samples, so those of one view belong to consecutive samples of the image shards. Members
have fixed times, owners and order, so that equal rows are equal bytes.
"""

import io
import json
import tarfile
from collections.abc import Mapping

import numpy as np
from dhkd.data.cache.blocks import Array, Block
from dhkd.data.cache.manifest import Manifest, array_name
from dhkd.data.errors import CacheDamaged
from google_crc32c import extend
from google_crc32c import value as crc32c
from numpy.lib import format as npy

MANIFEST_KEY = "manifest.json"
BLOCK_DIGITS, VIEW_DIGITS = 5, 5  # so that names sort as numbers do; larger numbers are written in full
SEAL_BYTES = 64


class TarLayout:
    """One shard for each block of a signal, and of the witness."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._sizes: dict[tuple[str, int], int] = {}

    def structure(self) -> dict[str, bytes]:
        """The manifest."""
        return {MANIFEST_KEY: json.dumps(self._manifest.to_json(), indent=2, sort_keys=True).encode()}

    def objects(self, name: str, block: Block) -> dict[str, int]:
        """The shard; its size follows from how many rows it holds."""
        known = (name, len(block))
        if known not in self._sizes:
            parts = {
                part: np.zeros((len(block), *row), dtype) for part, (dtype, row) in self._manifest.parts(name).items()
            }
            (shard,) = self.pack(name, block, parts).values()
            self._sizes[known] = len(shard)
        return {_shard(name, block): self._sizes[known]}

    def pack(self, name: str, block: Block, parts: Mapping[str, Array]) -> dict[str, bytes]:
        """The shard, sealed with the crc32c of what comes before the seal."""
        index = np.arange(block.start, block.stop, dtype=np.int32)
        arrays: dict[str, Array] = {"key": np.stack([np.full_like(index, block.view), index], axis=1)}
        arrays |= {array_name(name, part): array for part, array in parts.items()}
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for array, values in arrays.items():
                _add(shard, f"{_sample(block)}.{array}.npy", _npy(values))
            sealed = stream.getvalue()
            seal = json.dumps({"bytes": len(sealed), "crc32c": f"{crc32c(sealed):08x}"})
            # Of one length, so that a shard's size follows from its number of rows.
            _add(shard, f"{_sample(block)}.seal.json", seal.encode().ljust(SEAL_BYTES))
        return {_shard(name, block): stream.getvalue()}

    def unpack(self, name: str, block: Block, contents: Mapping[str, bytes]) -> dict[str, Array]:
        """The members' arrays, without a copy. Raises `CacheDamaged` for a shard that holds something else."""
        key = _shard(name, block)
        content, parts = contents[key], self._manifest.parts(name)
        try:
            members = {member.name: member.offset_data for member in _members(content)}
            found = {part: _array(content, members[f"{_sample(block)}.{array_name(name, part)}.npy"]) for part in parts}
        except (KeyError, ValueError, tarfile.TarError) as error:
            raise CacheDamaged(f"{key}: not the shard of {block} ({error})") from error
        for part, (dtype, row) in parts.items():
            expected, got = ((len(block), *row), np.dtype(dtype)), (found[part].shape, found[part].dtype)
            if got != expected:
                raise CacheDamaged(f"{key}: {array_name(name, part)} expected {expected}, got {got}")
        return found

    def checksum(self, key: str, content: bytes) -> int:
        """The crc32c of the whole shard, of which the seal checks all that holds values."""
        try:
            *_, last = _members(content)
            seal = json.loads(content[last.offset_data : last.offset_data + last.size])
            end, said = int(seal["bytes"]), int(seal["crc32c"], 16)
            assert 0 < end == last.offset
        except (ValueError, KeyError, TypeError, AssertionError, tarfile.TarError) as error:
            raise CacheDamaged(f"{key}: no sealed shard") from error
        found: int = crc32c(content[:end])
        if found != said:
            raise CacheDamaged(f"{key}: crc32c of the rows expected {said:08x}, got {found:08x}")
        return int(extend(found, content[end:]))


def manifest_tree(content: bytes) -> object:
    """The manifest, as plain JSON values."""
    tree: object = json.loads(content)
    return tree


def _shard(name: str, block: Block) -> str:
    return f"shards/{name}/{block.view:0{VIEW_DIGITS}}/{block.number:0{BLOCK_DIGITS}}.tar"


def _sample(block: Block) -> str:
    return f"{block.view:0{VIEW_DIGITS}}-{block.number:0{BLOCK_DIGITS}}"


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of time 0 and nobody's, unless told otherwise
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
