"""Fetching a file from a web server, within limits of time, size and direction, whatever the server does.

The standard library's client is used, because it works in forked processes, says every redirection before it is
followed, and hands over each piece of a body as it arrives. Hubs redirect to another host, with addresses that expire.
So each attempt begins at the first address, and credentials go to no other host. Left out on purpose: other schemes.
"""

import base64
import http.client
import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from dhkd.data.hub import token_for
from dhkd.data.patience import PATIENCE, Patience
from dhkd.data.shown import shown
from dhkd.data.web_answers import (
    EXPIRED,
    MAY_PASS,
    REDIRECTIONS,
    first_byte,
    is_public,
    phrase,
    redirected,
    seconds_asked,
    tag_of,
)

log = logging.getLogger("dhkd")

WEB = ("http", "https")
PATIENT = replace(PATIENCE, stall_s=30.0)
SLOWEST = 1000  # bytes/s over a whole body; a server that sends less would keep a command waiting for days
MOST_REDIRECTIONS = 5
MOST_EXPIRED = 3  # attempts that another host refuses, as it does with a signed address that has expired
PIECE = 1 << 20
_LOGGED_S = 1.0  # shorter waits are not logged
_KEPT = "/%:@!$&'()*+,;=~[]-._"  # characters of a path that are sent as they are


class WebError(OSError):
    """A file that could not be fetched. `status` is that of the answer, or 0 without one.

    `wait_s` is how many seconds the server asks to wait. If `expired`, the address came from a redirection, and a new
    one may work.
    """

    def __init__(
        self,
        reason: str,
        status: int = 0,
        *,
        may_pass: bool = False,
        wait_s: float = 0.0,
        expired: bool = False,
    ) -> None:
        super().__init__(shown(reason))
        self.reason, self.status, self.may_pass = shown(reason), status, may_pass
        self.wait_s, self.expired = wait_s, expired


class TooLarge(WebError):
    """A file that is larger than it may be."""


@dataclass
class _Received:
    """What has been received of a file: `size` bytes of what the server calls `tag`, "" if it can't send the rest."""

    size: int = 0
    tag: str = ""


def fetch(url: str, out: BinaryIO, largest: int, patience: Patience = PATIENT) -> None:
    """Write the file at `url` into `out`, which is emptied first.

    A user and a password in the URL are sent to its host alone. Raises `WebError` if the server announces or sends more
    than `largest` bytes, sends less than it announced, stalls, redirects to another scheme or from the internet into a
    private network, answers with a web page, or fails in another way. What may pass is tried again, as `patience` says;
    a server that can send the rest of the same file is asked for that only.
    """
    received = _Received()

    def transfer() -> None:
        if not received.tag:
            received.size = 0
        out.seek(received.size)
        out.truncate()
        _transfer(url, out, largest, patience, received)

    _repeated(transfer, url, patience)


def size_at(url: str, patience: Patience = PATIENT) -> int:
    """Return the size in bytes that the server announces for the file at `url`; raises `WebError` as `fetch` does."""
    sizes: list[int] = []

    def ask() -> None:
        with _answer("HEAD", url, patience, {}) as (response, _):
            # A hub says the size of a large file beside the redirection to it.
            length = response.getheader("X-Linked-Size", "") or response.getheader("Content-Length", "")
            if not length.isdecimal():
                raise WebError("an answer that doesn't say how long the file is", response.status)
            sizes.append(int(length))

    _repeated(ask, url, patience)
    return sizes[0]


def _repeated(attempt: Callable[[], None], url: str, patience: Patience) -> None:
    waits, start, expired, asked_s = patience.waits(), time.monotonic(), 0, 0.0
    for attempts in itertools.count(1):
        try:
            return attempt()
        except WebError as error:
            late = time.monotonic() - start - asked_s > patience.total_s
            wait, asked_s, expired = next(waits, None), asked_s + error.wait_s, expired + error.expired
            if wait is None or late or not error.may_pass or asked_s > patience.asked_s or expired > MOST_EXPIRED:
                asked = f", it asks to wait {error.wait_s:,.0f} s" if error.wait_s else ""
                times = f", asked {attempts} times" if attempts > 1 else ""
                raise type(error)(error.reason + asked + times, error.status, may_pass=error.may_pass) from error
            wait += error.wait_s
            if wait >= _LOGGED_S:
                log.warning("%s: %s; asking again in %.0f s", shown(url), error.reason, wait)
            time.sleep(wait)
    raise AssertionError


def _transfer(url: str, out: BinaryIO, largest: int, patience: Patience, received: _Received) -> None:
    """Append to `out` what is missing after `received`, or write the file anew if the server sends it as a whole."""
    rest = {"Range": f"bytes={received.size}-", "If-Range": received.tag} if received.size else {}
    received.tag = ""  # if this attempt fails before a body comes, the next one begins anew
    began, count = time.monotonic(), 0
    with _answer("GET", url, patience, rest) as (response, connection):
        if response.status == HTTPStatus.OK and received.size:
            received.size = 0
            out.seek(0)
            out.truncate()
        received.tag = rest["If-Range"] if received.size else tag_of(response.getheader)
        announced = None if response.length is None else received.size + response.length
        if announced is not None and announced > largest:
            raise TooLarge(f"it announces {announced:,} bytes, expected at most {largest:,}")
        while received.size != announced:
            with _in_time(connection, patience):
                piece = response.read1(PIECE if announced is None else min(PIECE, announced - received.size))
            if not piece:
                break
            count += len(piece)
            if received.size + len(piece) > largest:
                raise TooLarge(f"it sends more than {largest:,} bytes")
            if time.monotonic() - began > patience.stall_s + count / SLOWEST:
                raise WebError(f"only {count:,} bytes came in {time.monotonic() - began:.0f} s", may_pass=True)
            out.write(piece)
            received.size += len(piece)
        if announced is not None and received.size != announced:
            raise WebError(f"it broke off after {received.size:,} of {announced:,} bytes", may_pass=True)


@contextmanager
def _answer(
    method: str, url: str, patience: Patience, rest: Mapping[str, str]
) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Ask for a file, or its `rest`, follow redirections, and yield a successful answer and its connection.

    The answer to HEAD may be a redirection to another host, if it says the file's size.
    """
    host, public = "", False  # the host of a redirection, and whether a server before it is on the internet
    for _ in range(MOST_REDIRECTIONS + 1):
        with _failures():
            parts = urlsplit(url)
        with _asked(method, parts, patience, rest, inside=not (host and public)) as (response, connection):
            public = public or _is_public(connection)
            if response.status in REDIRECTIONS:
                with _failures():
                    url, elsewhere = redirected(url, response.getheader("Location", ""))
                if elsewhere:
                    if method == "HEAD" and response.getheader("X-Linked-Size"):
                        yield response, connection
                        return
                    host = urlsplit(url).hostname or ""
                continue
            _require_file(response, host, rest)
            yield response, connection
            return
    raise WebError(f"it redirects more than {MOST_REDIRECTIONS} times")


def _require_file(response: http.client.HTTPResponse, host: str, rest: Mapping[str, str]) -> None:
    """Raise `WebError` unless the answer holds the file, or its `rest`; `host` is that of a redirection, or ""."""
    status = response.status
    if status == HTTPStatus.PARTIAL_CONTENT and rest:
        same = response.getheader("ETag", rest["If-Range"]).strip() == rest["If-Range"]
        if same and f"bytes={first_byte(response.getheader)}-" == rest["Range"]:
            return
        raise WebError("it sends another part than was asked for", status, may_pass=True)
    if status != HTTPStatus.OK:
        expired = bool(host) and status in EXPIRED
        changed = bool(rest) and status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        transient = status >= 500 or status in MAY_PASS or expired or changed
        wait_s = seconds_asked(response.getheader) if status in (429, 503) else 0.0
        at = f" at {host}, to which it redirects" if host else ""
        raise WebError(phrase(status) + at, status, may_pass=transient, wait_s=wait_s, expired=expired)
    if response.getheader("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise WebError("it answers with a web page instead of the file", status)


@contextmanager
def _asked(
    method: str, parts: SplitResult, patience: Patience, rest: Mapping[str, str], *, inside: bool
) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Send one request and yield its answer, whatever it says; unless `inside`, only to a server on the internet."""
    connection, target, headers = _connection(parts, patience)
    try:
        with _failures():
            connection.connect()
            connected: socket.socket = connection.sock
            connected.settimeout(patience.stall_s)
        if not inside and not _is_public(connected):
            raise WebError(f"it redirects into a private network, to {parts.hostname}")
        with _in_time(connected, patience):
            connection.request(method, target, headers={**headers, **rest})
            response = connection.getresponse()
        with response:
            yield response, connected
    finally:
        connection.close()


def _is_public(connection: socket.socket) -> bool:
    """Return whether the other end is on the internet. If there is a proxy, that is the proxy."""
    try:
        return is_public(str(connection.getpeername()[0]))
    except OSError:  # the connection was lost, which the request will say
        return False


def _connection(parts: SplitResult, patience: Patience) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """Return an unconnected connection to the host or to its proxy, and the request's target and headers."""
    headers = {"User-Agent": "dhkd", "Accept-Encoding": "identity", "Connection": "close"}
    with _failures():
        host, port = parts.hostname, parts.port
    if not host or parts.scheme not in WEB:
        raise WebError("expected http:// or https://, and a host")
    headers |= _authorization("Authorization", parts) or _bearer(parts)
    target = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=f'{_KEPT}?')}" if parts.query else "")
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
    if not proxy:
        return kinds[parts.scheme](host, port, timeout=patience.connect_s), target, headers
    by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    with _failures():
        connection = kinds[parts.scheme](by.hostname or "", by.port, timeout=patience.connect_s)
    if parts.scheme == "https":
        connection.set_tunnel(host, port, headers=_authorization("Proxy-Authorization", by))
        return connection, target, headers
    place = f"{host}:{port}" if port else host
    return connection, f"http://{place}{target}", headers | _authorization("Proxy-Authorization", by)


def _authorization(header: str, parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _bearer(parts: SplitResult) -> dict[str, str]:
    token = token_for(parts)
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _in_time(connection: socket.socket, patience: Patience) -> Iterator[None]:
    """Cut the connection if the body of this context takes longer than a stall.

    The socket's own limit starts anew with each byte, so a server could keep a single read busy for days.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        try:
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS's socket, too
        except OSError:
            return  # it is closed

    timer = threading.Timer(patience.stall_s, cut)
    timer.daemon = True
    timer.start()
    try:
        with _failures():
            yield
    except WebError as error:
        if late.is_set() or isinstance(error.__cause__, TimeoutError):
            raise WebError(_stalled(patience), may_pass=True) from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise WebError(_stalled(patience), may_pass=True)


def _stalled(patience: Patience) -> str:
    return f"nothing received for {patience.stall_s:g} s"


@contextmanager
def _failures() -> Iterator[None]:
    """Raise a failed connection, and anything that is not HTTP, as `WebError`."""
    try:
        yield
    except WebError:
        raise
    except TimeoutError as error:
        raise WebError("no answer in time", may_pass=True) from error
    except ssl.SSLCertVerificationError as error:
        raise WebError(f"its certificate is not accepted: {error.verify_message}") from error
    except http.client.InvalidURL as error:
        raise WebError("a URL with characters that no URL can have") from error
    except http.client.HTTPException as error:
        raise WebError(_reason(error) or "the connection was lost", may_pass=True) from error
    except (OSError, ValueError) as error:  # UnicodeError of a host's name is a ValueError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise WebError(reason or type(error).__name__, may_pass=isinstance(error, OSError)) from error


def _reason(error: http.client.HTTPException) -> str:
    return "the connection was lost" if isinstance(error, http.client.IncompleteRead) else type(error).__name__
