"""Expands patterns to shard names, and keeps local copies of remote shards.

A data root is a folder or a URL of a web server or bucket. Left out on purpose: webdataset's own ways to open a URL,
which start programs and shells.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.regular import open_regular
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.shown import redacted
from dhkd.data.web import WEB, WebError, fetch

BUCKETS = ("s3", "gs", "az")
MOST_SHARDS = 1_000_000
_COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # how URLs and webdataset's commands begin: pipe:, file:, s3://
_COUNTED = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")


def expand(root: str, pattern: str) -> list[str]:
    """Return the shards that a pattern names below `root`.

    In a pattern, {000..127} stands for the numbers 000 to 127, {a,b} for a and b, while * and ? match local files.
    """
    _require_place(root)
    urls: list[str] = []
    for name in _names(pattern):
        if not any(letter in name for letter in "*?["):
            urls.append(_below(root, name))
        elif is_remote(root):
            raise DataError(
                f"webdataset: {_below(root, name)}: files at a URL can't be listed; name the shards with data.train and"
                f" data.test, counting in braces: train/{{000000..001281}}.tar"
            )
        else:
            urls += sorted(str(path) for path in Path(root).glob(name))
    if not urls:
        raise DataError(
            f"webdataset: {root}/{pattern}: expected tar files, found none; check --data-root, data.train and data.test"
            f"{_hint(root, pattern)}"
        )
    return urls


def _hint(root: str, pattern: str) -> str:
    """Return a clause that names a compressed shard in this place, or shards near it, or else an empty text."""
    if is_remote(root):
        return ""
    below, stem = Path(root), pattern.removesuffix(".tar")
    compressed = sorted([*below.glob(f"{stem}.t*gz"), *below.glob(f"{stem}.tar.*")])
    if compressed:
        return f"; {compressed[0].name} is compressed: unpack it to a plain .tar file"
    near = (path for place in (below, below.absolute().parent) for kind in _NEAR for path in place.glob(kind))
    first = next(near, None)
    return f"; {first} exists" if first else ""


_NEAR = ("*.tar", "*/*.tar", "*/*/*.tar")  # where shards may be if the root is one folder too high or too low


def is_remote(url: str) -> bool:
    """Return whether a shard has to be fetched before it is read."""
    return "://" in url


def reason_of(error: BaseException) -> str:
    """Return an error's message as one line of at most 200 characters, or the error's type if the message is empty."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True)
class ShardCopies:
    """Opens local shards directly, and remote shards through copies in `folder`, a folder that all processes share.

    The copies take at most about `keep_bytes`; the least recently used copies are removed first. A shard that is larger
    by itself is refused.
    """

    folder: Path
    keep_bytes: int

    def open(self, url: str) -> BinaryIO:
        """Open a local shard or a remote shard's copy. A missing copy is fetched; raises `DataError` if this fails."""
        if not is_remote(url):
            return open_regular(url)
        with _failing_to_fetch(url):
            return self._copies.open(_copy_name(url), partial(_download, url, largest=self.keep_bytes))

    def fetch(self, url: str) -> Path:
        """Return the path of a remote shard's copy. A missing copy is fetched; raises `DataError` if this fails."""
        with _failing_to_fetch(url):
            return self._copies.fetch(_copy_name(url), partial(_download, url, largest=self.keep_bytes))

    def forget(self, url: str) -> None:
        """Remove the copy of a remote shard, so that the shard is fetched again; a local shard stays."""
        if is_remote(url):
            self._copies.forget(_copy_name(url))

    @property
    def _copies(self) -> BoundedCopies:
        return BoundedCopies(self.folder, self.keep_bytes)


def _require_place(root: str) -> None:
    """Raise `ConfigError` unless the data root is a folder or a URL from which shards are fetched."""
    command = _COMMAND.match(root)
    if command is None or Path(root).is_dir():
        return
    scheme, separator, rest = root.partition("://")
    if "#" in rest:
        raise ConfigError(
            f"webdataset: --data-root {root}: expected a URL without #, got one; leave out what follows it"
        )
    if not separator or scheme not in (*WEB, *BUCKETS):
        raise ConfigError(
            f"webdataset: --data-root expected a folder, or a URL that starts with"
            f" {', '.join(f'{name}://' for name in (*WEB, *BUCKETS))}, got {command[0]}…; dhkd runs no command and"
            f" opens no other URL: fetch the shards, and name their folder"
        )


def _names(pattern: str) -> list[str]:
    """Return the names that a pattern stands for; raises `ConfigError` for anything but places below the data root."""
    from webdataset.shardlists import expand_urls

    try:
        count = sum(map(_count, pattern.split("::")))
        names = expand_urls(pattern) if count <= MOST_SHARDS else []
    except ValueError as error:
        reason = reason_of(error)
        raise ConfigError(
            f"webdataset: {pattern}: expected a pattern like train/{{000..127}}.tar ({reason})"
        ) from error
    if count > MOST_SHARDS:
        raise ConfigError(f"webdataset: {pattern}: expected at most {MOST_SHARDS:,} shards, got more")
    for name in names:
        if name.startswith("/"):
            raise ConfigError(f"webdataset: {pattern}: expected a place below --data-root, got an absolute path")
        if _COMMAND.match(name) or "://" in name or ".." in name.split("/"):
            raise ConfigError(
                f"webdataset: {pattern}: expected a place below --data-root, got a URL, a command or a path with '..'"
            )
    return names


def _count(pattern: str) -> int:
    """Return how many names braces stand for at most, before they are expanded: a short pattern can mean billions."""
    if "$" in pattern:  # webdataset would insert variables of the environment
        raise ValueError("a dollar sign")
    count, rest = 1, pattern
    while innermost := re.search(r"\{([^{}]*)\}", rest):
        count *= _alternatives(innermost[1])
        rest = f"{rest[: innermost.start()]}_{rest[innermost.end() :]}"
    if "{" in rest or "}" in rest:
        raise ValueError("a brace without its partner")
    return count


def _alternatives(inside: str) -> int:
    counted = _COUNTED.fullmatch(inside)
    if counted:
        first, last, step = int(counted[1]), int(counted[2]), int(counted[3] or 1) or 1
        return abs(last - first) // step + 1
    return inside.count(",") + 1  # without a comma, the braces stay as they are


def _below(root: str, name: str) -> str:
    """Return the place `name` below the root; a URL's query, such as a signature, stays at the end."""
    if not is_remote(root):
        return f"{root.rstrip('/')}/{name}"
    place, mark, query = root.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def _copy_name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"


def _download(url: str, out: BinaryIO, *, largest: int) -> None:
    scheme = urlsplit(url).scheme
    if scheme in WEB:
        return fetch(url, out, largest)
    from dhkd.data.storage.bucket import Bucket  # late, since only buckets need its imports

    place, _, key = url.rpartition("/")
    return Bucket(place).download(key, out, largest)


@contextlib.contextmanager
def _failing_to_fetch(url: str) -> Iterator[None]:
    try:
        yield
    except WebError as error:
        raise DataError(f"webdataset: {url} could not be fetched ({error.reason})") from error
    except (OSError, ValueError) as error:
        raise DataError(f"webdataset: {redacted(url)} could not be fetched ({reason_of(error)})") from error
