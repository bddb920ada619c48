"""WebDataset shards: tar files whose members NAME.jpg (or png, …) and NAME.cls (the label, a number) make a sample.

Sample `index` is the order in which the shards, as they are named, hold them, so a run of indices is a run of bytes of
one or two shards. Where each image lies in its shard is found once, by reading the tar headers, and kept in the user's
cache folder. Shards at a URL are fetched one by one into a bounded folder, shortly before they are read.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dhkd.data.errors import DataError
from dhkd.data.files import user_cache_folder, write_atomically
from dhkd.data.photographs import PhotoSet
from dhkd.data.sources.image_folder import SUFFIXES
from numpy.typing import NDArray

log = logging.getLogger("dhkd")

RUN = 256  # consecutive samples that should hold mixed classes
LEAST_MIXED = 0.5  # share of the classes that as many shuffled samples would hold


@dataclass(frozen=True)
class Index:
    """Where every sample is: shard number, first byte and length of its image, label, name."""

    shard_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    name_N: NDArray[np.bytes_]
    bytes_of_shard: NDArray[np.int64]


class ShardFiles:
    """Images inside tar files. `urls` names the shards, each a local path or a URL.

    At most about `keep_bytes` of fetched shards are kept in `folder`, shared by all processes of the machine.
    """

    def __init__(self, urls: Sequence[str], index: Index, folder: Path, keep_bytes: int) -> None:
        self._urls, self._index, self._folder, self._keep_bytes = urls, index, folder, keep_bytes

    def read(self, index: int) -> bytes:
        """The image's bytes. Raises `DataError` where the shard ends before them."""
        where = self._index
        size = int(where.size_N[index])
        with self._local(int(where.shard_N[index])).open("rb") as shard:
            shard.seek(int(where.offset_N[index]))
            content = shard.read(size)
        if len(content) != size:
            raise DataError(f"a shard that ends after {len(content)} of the image's {size} bytes")
        return content

    def name(self, index: int) -> str:
        """The shard and the sample's name in it."""
        name = os.fsdecode(bytes(self._index.name_N[index]))
        return f"{self._urls[int(self._index.shard_N[index])]}, sample {name}"

    def names(self, num_samples: int) -> bytes:
        """The samples' names."""
        return b"\n".join(self._index.name_N[:num_samples].tolist())

    def expect(self, index_B: torch.Tensor) -> None:
        """Fetch the shards of these samples, those that are not here."""
        shards = np.unique(self._index.shard_N[index_B.numpy()]).tolist()
        if any(_is_remote(self._urls[shard]) for shard in shards):
            with ThreadPoolExecutor(max_workers=4, thread_name_prefix="fetch") as threads:
                list(threads.map(self._local, shards))

    def _local(self, shard: int) -> Path:
        if not _is_remote(self._urls[shard]):
            return Path(self._urls[shard])
        path = fetch(self._urls[shard], self._folder, self._keep_bytes)
        expected = int(self._index.bytes_of_shard[shard])
        if path.stat().st_size != expected:
            path.unlink(missing_ok=True)
            raise DataError(
                f"{self._urls[shard]}: expected {expected:,} bytes, as when it was indexed, got another size;"
                f" delete {_index_path(self._urls)} to index the shards anew"
            )
        return path


def load(
    split: str,
    urls: Sequence[str],
    num_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    keep_bytes: int,
) -> PhotoSet:
    """The samples of the shards at `urls`, in this order.

    Raises `DataError` for shards that are missing, damaged or hold anything but images with labels, for labels beyond
    `num_classes`, and for a training split whose samples are sorted by label.
    """
    folder = user_cache_folder() / "shards"
    index = _index(urls, folder, keep_bytes)
    least, most = int(index.label_N.min()), int(index.label_N.max())
    if least < 0 or most >= num_classes:
        raise DataError(
            f"webdataset: {urls[0]} …: labels expected 0 to {num_classes - 1}, got {least} to {most};"
            f" set data.num_classes"
        )
    if split == "train":
        _require_mixed(urls[0], index.label_N)
    files = ShardFiles(urls, index, folder, keep_bytes)
    return PhotoSet("webdataset", split, files, torch.from_numpy(index.label_N), num_classes, mean, std)


def expand(pattern: str) -> list[str]:
    """The shards that a pattern names: {000..127} counts, and * and ? match local files."""
    from webdataset.shardlists import expand_urls

    urls: list[str] = []
    for url in expand_urls(pattern):
        if _is_remote(url) or not any(letter in url for letter in "*?["):
            urls.append(url)
        else:
            urls += sorted(str(path) for path in Path("/" if url.startswith("/") else ".").glob(url.lstrip("/")))
    if not urls:
        raise DataError(f"webdataset: {pattern}: expected tar files, found none; check --data-root and data.train")
    return urls


def fetch(url: str, folder: Path, keep_bytes: int) -> Path:
    """The local copy of a shard, fetched when it isn't there; older copies go where `keep_bytes` would be exceeded."""
    from webdataset.gopen import gopen

    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)  # the longest unused go first
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with (path.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one fetches
        if not path.exists():
            try:
                with gopen(url, "rb") as stream:
                    write_atomically(path, lambda out: shutil.copyfileobj(stream, out, 1 << 20))
            except (OSError, ValueError) as error:
                raise DataError(f"webdataset: {url} could not be fetched ({_reason(error)})") from error
            _forget_oldest(folder, keep_bytes, path)
    return path


def _forget_oldest(folder: Path, keep_bytes: int, newest: Path) -> None:
    copies = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            copies.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in copies)
    for _, size, path in sorted(copies):
        if total <= keep_bytes:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
            total -= size


def _index(urls: Sequence[str], folder: Path, keep_bytes: int) -> Index:
    path = _index_path(urls)
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(path) as arrays:
        return Index(**{name: arrays[name] for name in Index.__annotations__})
    if len(urls) > 1:
        log.info("webdataset: reading the headers of %d shards, once", len(urls))

    def local(url: str) -> Path:
        return fetch(url, folder, keep_bytes) if _is_remote(url) else Path(url)

    columns: dict[str, list[int] | list[bytes]] = {name: [] for name in Index.__annotations__}
    for number, url in enumerate(urls):
        shard = local(url)
        for name, offset, size, label in _samples(url, shard):
            for column, value in zip(Index.__annotations__, (number, offset, size, label, name), strict=False):
                columns[column].append(value)  # type: ignore[arg-type]
        columns["bytes_of_shard"].append(shard.stat().st_size)  # type: ignore[arg-type]
    index = Index(
        np.array(columns["shard_N"], dtype=np.int32),
        np.array(columns["offset_N"], dtype=np.int64),
        np.array(columns["size_N"], dtype=np.int64),
        np.array(columns["label_N"], dtype=np.int64),
        np.array(columns["name_N"], dtype=np.bytes_),
        np.array(columns["bytes_of_shard"], dtype=np.int64),
    )
    if not len(index.label_N):
        raise DataError(f"webdataset: {urls[0]} …: expected samples, found none")
    arrays = {name: getattr(index, name) for name in Index.__annotations__}
    with contextlib.suppress(OSError):  # a cache folder that can't be written to costs time alone
        write_atomically(path, lambda stream: np.savez(stream, **arrays))
    return index


def _samples(url: str, path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, first byte and length of the image, and label of each sample of a shard, in order."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                name = folder + slash + stem
                if f".{suffix.lower()}".endswith(SUFFIXES):
                    images[name] = (member.offset_data, member.size)
                elif suffix == "cls":
                    content = shard.extractfile(member)
                    assert content is not None
                    labels[name] = int(content.read())
                shard.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
    except FileNotFoundError as error:
        raise DataError(
            f"webdataset: {url}: expected a tar file, found none; check --data-root and data.train"
        ) from error
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"webdataset: {url}: the shard is damaged or none ({_reason(error)})") from error
    lonely = sorted(images.keys() ^ labels.keys())
    if lonely or not images:
        found = f"sample {lonely[0]} has only one of them" if lonely else "it has neither"
        raise DataError(f"webdataset: {url}: expected samples of an image and a .cls file, {found}")
    for name, (offset, size) in images.items():
        yield os.fsencode(name), offset, size, labels[name]


def _index_path(urls: Sequence[str]) -> Path:
    """Named by what the shards are called and, where that can be seen, how large and how old they are."""
    digest = hashlib.sha256()
    for url in urls:
        digest.update(url.encode() + b"\n")
        if not _is_remote(url):
            with contextlib.suppress(OSError):
                facts = os.stat(url)
                digest.update(f"{os.path.abspath(url)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return user_cache_folder() / "shard-indices" / f"{digest.hexdigest()[:32]}.npz"


def _require_mixed(url: str, label_N: NDArray[np.int64]) -> None:
    run = min(RUN, max(2, len(label_N) // 4))
    runs = label_N[: len(label_N) // run * run].reshape(-1, run)
    if len(runs) < 2:
        return
    distinct = float(np.mean([len(np.unique(labels)) for labels in runs]))
    share_K = np.bincount(label_N) / len(label_N)
    shuffled = float((1 - (1 - share_K) ** run).sum())
    if distinct < LEAST_MIXED * shuffled:
        raise DataError(
            f"webdataset: {url} …: samples are sorted by label: {run} consecutive ones hold {distinct:.1f} classes on"
            f" average, shuffled ones would hold {shuffled:.1f}, and training needs mixed blocks; shuffle the list of"
            f" samples before packing it into shards"
        )


def _is_remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
