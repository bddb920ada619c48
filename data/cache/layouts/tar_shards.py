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
import math
import tarfile
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from dhkd.data.cache.blocks import Array, Block, Part
from dhkd.data.cache.manifest import Manifest, array_name
from dhkd.data.disk.mapped import Content
from dhkd.data.errors import CacheDamaged
from dhkd.data.strict_json import decode
from google_crc32c import extend
from google_crc32c import value as crc32c
from numpy.lib import format as npy

BLOCK_DIGITS, VIEW_DIGITS = 5, 5  # so that names sort like numbers; larger numbers are written in full
SEAL_BYTES = 64
KEY_PART: Part = ("int32", (2,))
NAME_BYTES, SIZE_AT, SIZE_END = 100, 124, 136  # fields of a tar header
TAIL = 12_288  # more than the seal and what tarfile adds at the end of a file


class TarLayout:
    """One shard for each block of a signal or of the witness."""

    manifest_key: ClassVar[str] = "manifest.json"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._sizes: dict[tuple[str, int], int] = {}  # a shard's size in bytes, by array and number of rows

    @staticmethod
    def manifest_tree(content: bytes) -> object:
        """Decode the manifest, as plain JSON values."""
        return decode(content)

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
            sizes = [size for _, _, size in self._members(name, block)]
            sealed = sum(tarfile.BLOCKSIZE + _padded(size, tarfile.BLOCKSIZE) for size in (*sizes, SEAL_BYTES))
            self._sizes[kind] = _padded(sealed + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)  # as tarfile ends a file
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

    def unpack(self, name: str, block: Block, contents: Mapping[str, Content]) -> dict[str, Array]:
        """Return the shard's arrays without copying them; raises `CacheDamaged` if the arrays aren't this block's."""
        key, position = _shard(name, block), 0
        content, arrays = contents[key], dict[str, Array]()
        arrays_of = ("key", *self._manifest.parts(name))
        for array, (member, header, size) in zip(arrays_of, self._members(name, block), strict=True):
            start = position + tarfile.BLOCKSIZE
            name_and_size = (
                content[position : position + NAME_BYTES],
                content[position + SIZE_AT : position + SIZE_END],
            )
            if name_and_size != (member.encode().ljust(NAME_BYTES, b"\0"), f"{size:011o}\0".encode()):
                raise CacheDamaged(f"{key}: not the shard of {block} (expected {member} of {size} bytes)")
            if content[start : start + len(header)] != header:
                raise CacheDamaged(f"{key}: {member} expected {header[10:].decode().strip()}, got another array")
            position = start + _padded(size, tarfile.BLOCKSIZE)
            if array != "key":
                dtype, row = self._manifest.parts(name)[array]
                count = len(block) * math.prod(row)
                values = np.frombuffer(content, dtype, count, offset=start + len(header))
                arrays[array] = values.reshape(len(block), *row)
        return arrays

    def checksum(self, key: str, content: bytes) -> int:
        """Compute the whole shard's crc32c; raises `CacheDamaged` if the seal doesn't match the bytes before it."""
        after_last = len(content) - len(content[-TAIL:]) + len(content[-TAIL:].rstrip(b"\0"))
        start = after_last - SEAL_BYTES
        end = start - tarfile.BLOCKSIZE  # where the seal's own header begins
        try:
            member = content[end : end + NAME_BYTES].rstrip(b"\0")
            seal = decode(content[start:after_last])
            assert isinstance(seal, dict)
            sealed = int(seal["crc32c"], 16)
            assert end > 0
            assert end % tarfile.BLOCKSIZE == 0
            assert (seal["bytes"], member.endswith(b".seal.json")) == (end, True)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise CacheDamaged(f"{key}: no sealed shard") from error
        actual: int = crc32c(content[:end])
        if actual != sealed:
            raise CacheDamaged(f"{key}: crc32c of the rows expected {sealed:08x}, got {actual:08x}")
        return int(extend(actual, content[end:]))

    def _members(self, name: str, block: Block) -> list[tuple[str, bytes, int]]:
        """Return each array's file name, .npy header and size in bytes, in the order of the shard."""
        arrays = {"key": KEY_PART}
        arrays |= {array_name(name, part): described for part, described in self._manifest.parts(name).items()}
        members = []
        for array, (dtype, row) in arrays.items():
            header = _npy_header(dtype, (len(block), *row))
            size = len(header) + len(block) * math.prod(row) * np.dtype(dtype).itemsize
            members.append((f"{_sample(block)}.{array}.npy", header, size))
        return members


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


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    described = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, described)
    return stream.getvalue()


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
