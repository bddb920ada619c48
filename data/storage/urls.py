"""The URLs of caches, and how messages name objects at them."""

from urllib.parse import urlsplit

from dhkd.data.errors import ConfigError
from dhkd.data.hub import HUB
from dhkd.data.web import WEB


def require_plain(url: str) -> None:
    """Raise `ConfigError` unless the URL consists of a scheme, a host and a path, without secrets."""
    try:
        parts = urlsplit(url.rstrip("/"))
    except ValueError as error:
        raise ConfigError(f"{url}: expected a URL ({error})") from error
    scheme, host, prefix = parts.scheme.lower(), parts.netloc, parts.path.strip("/")
    if "@" in host:
        raise ConfigError(
            f"{scheme}://…@{host.rpartition('@')[2]}: a URL can't hold a user's name or password, which would be shown"
            f" in messages; leave them out"
        )
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        # What follows is usually a signature, so the message does not show it.
        raise ConfigError(
            f"{url.partition('?')[0].partition('#')[0]}: expected a URL without ? and #, which name one object and not"
            f" the place of many; leave out what follows them, or copy the cache to a folder"
        )
    if not host:
        raise ConfigError(f"{url}: expected {scheme}://, then a {kind_of(scheme)}, got none")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ConfigError(f"{url}: expected names between single slashes, got {prefix}")


def where_is(location: str, key: str) -> str:
    """Return an object's URL, or `location` if `key` is empty."""
    return f"{location}/{key}" if key else location


def kind_of(scheme: str) -> str:
    """Return what a provider calls the first part of a URL, e.g. a bucket."""
    return "host" if scheme in WEB else "repository" if scheme == HUB else "container" if scheme == "az" else "bucket"
