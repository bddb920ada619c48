"""The storage for each path or URL. To add a kind of place, add a file beside this one and a line in `PLACES`."""

from collections.abc import Callable
from pathlib import Path

from dhkd.data.errors import ConfigError
from dhkd.data.hub import HUB
from dhkd.data.storage.base import Storage
from dhkd.data.storage.folder import Folder
from dhkd.data.storage.web_server import WebServer


def _bucket(url: str) -> Storage:
    from dhkd.data.storage.bucket import Bucket  # late, since only buckets need its imports

    return Bucket(url)


# The storage for each scheme of URLs; a location without a scheme is a folder.
PLACES: dict[str, Callable[[str], Storage]] = {
    "s3": _bucket,
    "gs": _bucket,
    "az": _bucket,
    "http": WebServer,
    "https": WebServer,
    HUB: WebServer,
}


def is_url(location: str | Path) -> bool:
    """Return whether `location` is a URL with a scheme in `PLACES`, rather than a folder's path."""
    return _scheme(location) in PLACES


def storage_of(location: str | Path) -> Storage:
    """Build the storage for a path or URL; raises `ConfigError` for a URL whose scheme is not in `PLACES`."""
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
    """Return the scheme of a URL in lower case, or None for a path."""
    scheme, separator, _ = str(location).partition("://")
    return scheme.lower() if separator else None
