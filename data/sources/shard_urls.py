"""Expands patterns to shard names, and keeps local copies of remote shards.

Every use of the webdataset package is in this file, where it expands patterns and opens URLs. The package is not used
to read samples, because its pipelines only stream them in order, while this program reads any sample by its number.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.progress import progress

MEGABYTE = 10**6


def expand(root: str, pattern: str) -> list[str]:
    """Return the shards that a pattern names below `root`.

    In a pattern, {000..127} stands for the numbers 000 to 127, while * and ? match local files.
    """
    from webdataset.shardlists import expand_urls

    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise ConfigError(f"webdataset: {pattern}: expected a pattern like train/{{000..127}}.tar ({error})") from error
    if any(name.startswith("/") for name in names):
        raise ConfigError(f"webdataset: {pattern}: expected a place below --data-root, got an absolute path")
    urls: list[str] = []
    for name in names:
        if not any(letter in name for letter in "*?["):
            urls.append(f"{root.rstrip('/')}/{name}")
        elif is_remote(root):
            raise DataError(
                f"webdataset: {root}/{name}: files at a URL can't be listed; name the shards with data.train and"
                f" data.test, counting in braces: train/{{000000..001281}}.tar"
            )
        else:
            urls += sorted(str(path) for path in Path(root).glob(name))
    if not urls:
        raise DataError(
            f"webdataset: {root}/{pattern}: expected tar files, found none; check --data-root, data.train and data.test"
        )
    return urls


def is_remote(url: str) -> bool:
    """Return whether a shard has to be fetched before it is read."""
    return "://" in url or url.startswith("pipe:")


def reason_of(error: BaseException) -> str:
    """Return an error's message as one line of at most 200 characters, or the error's type if the message is empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True)
class ShardCopies:
    """Opens local shards directly, and remote shards through copies in `folder`, a folder that all processes share.

    The copies take at most about `keep_bytes`; the least recently used copies are removed first.
    """

    folder: Path
    keep_bytes: int

    def open(self, url: str) -> BinaryIO:
        """Open a local shard or a remote shard's copy. A missing copy is fetched; raises `DataError` if this fails."""
        if not is_remote(url):
            return Path(url).open("rb")
        with _failing_to_fetch(url):
            return self._copies.open(_copy_name(url), partial(_download, url))

    def fetch(self, url: str) -> Path:
        """Return the path of a remote shard's copy. A missing copy is fetched; raises `DataError` if this fails."""
        with _failing_to_fetch(url):
            return self._copies.fetch(_copy_name(url), partial(_download, url))

    def forget(self, url: str) -> None:
        """Remove the copy of a remote shard, so that the shard is fetched again; a local shard stays."""
        if is_remote(url):
            self._copies.forget(_copy_name(url))

    @property
    def _copies(self) -> BoundedCopies:
        return BoundedCopies(self.folder, self.keep_bytes)


def _copy_name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"


def _download(url: str, out: BinaryIO) -> None:
    from webdataset.gopen import gopen

    # In MB, because bytes are too many to read at a glance.
    with gopen(url, "rb") as stream, progress(f"fetching {url}, MB", None, bar=False) as advance:
        while content := stream.read(MEGABYTE):
            out.write(content)
            advance(1)


@contextlib.contextmanager
def _failing_to_fetch(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"webdataset: {url} could not be fetched ({reason_of(error)})") from error
