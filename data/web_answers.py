"""What a web server's answers say besides a file: where to ask instead, how long to wait, which part they hold."""

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urljoin, urlsplit

REDIRECTIONS = (301, 302, 303, 307, 308)
MAY_PASS = (408, 429)
# A signed address that has expired gives one of these; a new one has to be asked for where it came from.
EXPIRED = (400, 401, 403, 410)

Header = Callable[[str, str], str]  # returns a header of an answer by its name, or else the default

# draft-ietf-httpapi-ratelimit-headers-09: "resolvers";r=0;t=55, of which t is the number of seconds until the reset
_RESET = re.compile(r";\s*t\s*=\s*(\d{1,9})")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


def phrase(status: int) -> str:
    """Return the status with its standard name; the server's own text could be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def seconds_asked(header: Header) -> float:
    """Return how many seconds the server asks to wait before the next request; 0 if it doesn't say."""
    after = header("Retry-After", "").strip()
    if after.isdecimal() and after.isascii():
        return float(after[:9])
    if after:
        with contextlib.suppress(ValueError, OverflowError):  # it is no date either
            return max(0.0, (parsedate_to_datetime(after).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    reset = _RESET.search(header("RateLimit", ""))
    return float(reset[1]) if reset else 0.0


def first_byte(header: Header) -> int | None:
    """Return the number of the first byte that an answer with a part of a file holds; None if it doesn't say."""
    part = _CONTENT_RANGE.fullmatch(header("Content-Range", "").strip())
    return int(part[1]) if part else None


def tag_of(header: Header) -> str:
    """Return the tag by which the rest of the same file can be asked for later; "" if that isn't possible."""
    tag = header("ETag", "").strip()
    can = header("Accept-Ranges", "").strip().lower() == "bytes" and tag.startswith('"') and tag.isprintable()
    return tag if can and tag.isascii() else ""


def redirected(url: str, location: str) -> tuple[str, bool]:
    """Return where an answer redirects to, and whether that is another host or port.

    A user and a password in `url` are kept on the same host only. Raises `ValueError`, with the reason as its message,
    for another scheme than that of `url`, except from http to https.
    """
    before, after = urlsplit(url), urlsplit(urljoin(url, location))
    upgraded = (before.scheme, after.scheme) == ("http", "https")
    if after.scheme != before.scheme and not upgraded:
        raise ValueError(f"it redirects to {after.scheme or 'no'}://, expected {before.scheme}://")
    if not after.hostname:
        raise ValueError("it redirects to an address without a host")
    same_port = after.port == before.port or (before.port, after.port) in ((80, 443), (80, None), (None, 443))
    elsewhere = after.hostname != before.hostname or not same_port
    user = f"{before.netloc.rpartition('@')[0]}@" if "@" in before.netloc and not elsewhere else ""
    return after._replace(netloc=user + after.netloc.rpartition("@")[2]).geturl(), elsewhere


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, and not of this machine or a private network."""
    try:
        return ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False
