"""The addresses of files on hubs of models and data sets, and the token that the user has for a hub.

A hub shows a file of a repository at https://HOST/[datasets/]USER/NAME/resolve/REVISION/FILE. HOST is huggingface.co,
or the host of the environment variable HF_ENDPOINT. For large files, it redirects to another host, with an address that
is signed and soon expires. For private repositories, it needs the token in HF_TOKEN, which is sent to no other host.
Left out on purpose: listings, since what dhkd reads has an index, and tokens in the files of other programs.
"""

import os
import re
from urllib.parse import SplitResult, quote, urlsplit

from dhkd.data.errors import ConfigError

ENDPOINT, TOKEN = "HF_ENDPOINT", "HF_TOKEN"  # variables of the environment
DEFAULT_ENDPOINT = "https://huggingface.co"
HUB = "hf"  # the scheme of short addresses

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPOSITORY = rf"(?:datasets/)?(?!(?:datasets|spaces|buckets)/){_NAME}/{_NAME}"
_SHORT = re.compile(rf"({_REPOSITORY})(?:@([^/@]+))?(?:/(.*))?")
_PAGE = re.compile(rf"/({_REPOSITORY})/?(?:(?:tree|blob|raw)/([^/]+)/?(.*))?")


def endpoint() -> str:
    """Return the hub's address, without a slash at its end."""
    return (os.environ.get(ENDPOINT, "").strip() or DEFAULT_ENDPOINT).rstrip("/")


def is_of_hub(parts: SplitResult) -> bool:
    """Return whether an address is on the hub: its scheme, host and port are those of the hub."""
    try:
        hub = urlsplit(endpoint())
        return (parts.scheme, parts.hostname, _port(parts)) == (hub.scheme, hub.hostname, _port(hub))
    except ValueError:  # a port that is no number
        return False


def token_for(parts: SplitResult) -> str | None:
    """Return the token to send with a request for this address, or None; raises `ConfigError` if it can't be one."""
    token = os.environ.get(TOKEN, "").strip()
    if not token or not is_of_hub(parts):
        return None
    if not (token.isascii() and token.isprintable() and " " not in token):  # the message must not show it
        raise ConfigError(f"{TOKEN}: expected a token without spaces and control characters, got others; set it anew")
    return token


def access_hint(url: str) -> str:
    """Return what to do about an address that can't be read for want of rights."""
    parts = urlsplit(url)
    if not is_of_hub(parts):
        return "check the URL; only what is public can be read"
    if token_for(parts) is None:
        return f"check the URL; if the repository is private, set {TOKEN} to a token that may read it"
    return f"check the URL, and that the token in {TOKEN} may read the repository and its conditions are accepted"


def address_of(short: str) -> str:
    """Return the address of files for hf://[datasets/]USER/NAME[@REVISION][/FOLDER]; the revision is main if not given.

    Raises `ConfigError` for anything else.
    """
    match = _SHORT.fullmatch(short.partition("://")[2].rstrip("/"))
    if match is None:
        raise ConfigError(
            f"{short}: expected {HUB}://datasets/USER/NAME or {HUB}://USER/NAME, perhaps with @REVISION and"
            f" /FOLDER, got something else"
        )
    repository, revision, folder = match[1], match[2] or "main", match[3]
    address = f"{endpoint()}/{repository}/resolve/{quote(revision, safe='%')}"
    return f"{address}/{folder}" if folder else address


def require_address_of_files(url: str) -> None:
    """Raise `ConfigError` for the address of a hub's page, which shows no files; name the address of its files."""
    parts = urlsplit(url)
    page = _PAGE.fullmatch(parts.path.rstrip("/")) if is_of_hub(parts) else None
    if page is None:
        return
    rest = f"/{page[3].rstrip('/')}" if page[3] else ""
    raise ConfigError(
        f"{url}: expected the address of a hub's files, got that of a page; use"
        f" {endpoint()}/{page[1]}/resolve/{page[2] or 'main'}{rest}"
    )


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
