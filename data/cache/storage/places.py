"""Paths and URLs as the storages that they name. A new place is a file beside this one and a line in `PLACES`."""

from collections.abc import Callable
from pathlib import Path

from dhkd.data.cache.storage.base import Storage
from dhkd.data.cache.storage.folder import Folder
from dhkd.data.errors import ConfigError


def _bucket(url: str) -> Storage:
    from dhkd.data.cache.storage.bucket import Bucket  # imports what only URLs need

    return Bucket(url)


# From a URL's scheme to the storage at such a URL; what has no scheme is a folder.
PLACES: dict[str, Callable[[str], Storage]] = {
    "s3": _bucket,
    "gs": _bucket,
    "az": _bucket,
    "http": _bucket,
    "https": _bucket,
}


def is_url(location: str | Path) -> bool:
    """Whether this is the URL of a place in the table, rather than a folder's path."""
    return _scheme(location) in PLACES


def storage_of(location: str | Path) -> Storage:
    """The storage at a path or URL; raises `ConfigError` for a URL with another scheme than those of `PLACES`."""
    scheme = _scheme(location)
    if scheme is None:
        return Folder(Path(location))
    if scheme not in PLACES:
        schemes = ", ".join(f"{name}://" for name in PLACES)
        raise ConfigError(
            f"{location}: expected a folder, or a URL that starts with one of {schemes}; got {scheme or 'no scheme'}"
        )
    return PLACES[scheme](str(location))


def _scheme(location: str | Path) -> str | None:
    """The scheme of a URL, in lower case; None of a path."""
    scheme, separator, _ = str(location).partition("://")
    return scheme.lower() if separator else None
