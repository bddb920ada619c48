"""Fetching a file from a web server, within limits of time, size and direction, whatever the server does.

The standard library's client is used, because it works in forked processes, says every redirection before it is
followed, and hands over each piece of a body as it arrives. Left out on purpose: other schemes, and resuming a download
in the middle.
"""

import base64
import http.client
import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from dhkd.data.patience import PATIENCE, Patience
from dhkd.data.shown import shown

log = logging.getLogger("dhkd")

WEB = ("http", "https")
PATIENT = replace(PATIENCE, stall_s=30.0)
SLOWEST = 1000  # bytes/s over a whole body; a server that sends less would keep a command waiting for days
MOST_REDIRECTIONS = 5
PIECE = 1 << 20
_LOGGED_S = 1.0  # shorter waits are not logged
_KEPT = "/%:@!$&'()*+,;=~[]-._"  # characters of a path that are sent as they are
_REDIRECTIONS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 429)


class WebError(OSError):
    """A file that could not be fetched. `status` is that of the answer, or 0 without one."""

    def __init__(self, reason: str, status: int = 0, *, may_pass: bool = False) -> None:
        super().__init__(shown(reason))
        self.reason, self.status, self.may_pass = shown(reason), status, may_pass


class TooLarge(WebError):
    """A file that is larger than it may be."""


def fetch(url: str, out: BinaryIO, largest: int, patience: Patience = PATIENT) -> None:
    """Write the file at `url` into `out`, which is emptied before each attempt.

    A user and a password in the URL are sent to its host. Raises `WebError` if the server announces or sends more than
    `largest` bytes, sends less than it announced, stalls, redirects to another host or scheme, answers with a web page,
    or fails in another way. What may pass is tried again, as `patience` says.
    """

    def transfer() -> None:
        out.seek(0)
        out.truncate()
        _transfer(url, out, largest, patience)

    _repeated(transfer, url, patience)


def size_at(url: str, patience: Patience = PATIENT) -> int:
    """Return the size in bytes that the server announces for the file at `url`; raises `WebError` as `fetch` does."""
    sizes: list[int] = []

    def ask() -> None:
        with _answer("HEAD", url, patience) as (response, _):
            length = response.getheader("Content-Length", "")
            if not length.isdecimal():
                raise WebError("an answer that doesn't say how long the file is", response.status)
            sizes.append(int(length))

    _repeated(ask, url, patience)
    return sizes[0]


def _repeated(attempt: Callable[[], None], url: str, patience: Patience) -> None:
    waits, start = patience.waits(), time.monotonic()
    for attempts in itertools.count(1):
        try:
            return attempt()
        except WebError as error:
            wait = next(waits, None)
            if wait is None or not error.may_pass or time.monotonic() - start > patience.total_s:
                times = f", asked {attempts} times" if attempts > 1 else ""
                raise type(error)(error.reason + times, error.status, may_pass=error.may_pass) from error
            if wait >= _LOGGED_S:
                log.warning("%s: %s; asking again in %.0f s", shown(url), error.reason, wait)
            time.sleep(wait)
    raise AssertionError


def _transfer(url: str, out: BinaryIO, largest: int, patience: Patience) -> None:
    began = time.monotonic()
    with _answer("GET", url, patience) as (response, connection):
        announced, received = response.length, 0
        if announced is not None and announced > largest:
            raise TooLarge(f"it announces {announced:,} bytes, expected at most {largest:,}")
        while received != announced:
            with _in_time(connection, patience):
                piece = response.read1(PIECE if announced is None else min(PIECE, announced - received))
            if not piece:
                break
            received += len(piece)
            if received > largest:
                raise TooLarge(f"it sends more than {largest:,} bytes")
            if time.monotonic() - began > patience.stall_s + received / SLOWEST:
                raise WebError(f"only {received:,} bytes came in {time.monotonic() - began:.0f} s", may_pass=True)
            out.write(piece)
        if announced is not None and received != announced:
            raise WebError(f"it broke off after {received:,} of {announced:,} bytes", may_pass=True)


@contextmanager
def _answer(method: str, url: str, patience: Patience) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Ask for a file, follow redirections on the same host, and yield a successful answer and its connection."""
    for _ in range(MOST_REDIRECTIONS + 1):
        with _failures():
            parts = urlsplit(url)
        with _asked(method, parts, patience) as (response, connection):
            if response.status in _REDIRECTIONS:
                url = _redirected(url, response.getheader("Location", ""))
                continue
            if response.status != HTTPStatus.OK:
                transient = response.status >= 500 or response.status in _MAY_PASS
                raise WebError(_phrase(response.status), response.status, may_pass=transient)
            if response.getheader("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
                raise WebError("it answers with a web page instead of the file", response.status)
            yield response, connection
            return
    raise WebError(f"it redirects more than {MOST_REDIRECTIONS} times")


@contextmanager
def _asked(
    method: str, parts: SplitResult, patience: Patience
) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Send one request and yield its answer, whatever it says."""
    connection, target, headers = _connection(parts, patience)
    try:
        with _failures():
            connection.connect()
            connected: socket.socket = connection.sock
            connected.settimeout(patience.stall_s)
        with _in_time(connected, patience):
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
        with response:
            yield response, connected
    finally:
        connection.close()


def _connection(parts: SplitResult, patience: Patience) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """Return an unconnected connection to the host or to its proxy, and the request's target and headers."""
    headers = {"User-Agent": "dhkd", "Accept-Encoding": "identity", "Connection": "close"}
    with _failures():
        host, port = parts.hostname, parts.port
    if not host or parts.scheme not in WEB:
        raise WebError("expected http:// or https://, and a host")
    headers |= _authorization("Authorization", parts)
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


def _redirected(url: str, location: str) -> str:
    """Return where an answer redirects to; raises `WebError` for another host, port or scheme."""
    with _failures():
        before, after = urlsplit(url), urlsplit(urljoin(url, location))
        same_port = after.port == before.port or (before.port, after.port) in ((80, 443), (80, None), (None, 443))
    upgraded = (before.scheme, after.scheme) == ("http", "https")
    if after.scheme != before.scheme and not upgraded:
        raise WebError(f"it redirects to {after.scheme or 'no'}://, expected {before.scheme}://")
    if after.hostname != before.hostname or not same_port:
        raise WebError(f"it redirects to another host, {after.hostname}; give that host's URL if it is the right one")
    user = f"{before.netloc.rpartition('@')[0]}@" if "@" in before.netloc else ""
    return after._replace(netloc=user + after.netloc.rpartition("@")[2]).geturl()


def _phrase(status: int) -> str:
    """Return the status with its standard name; the server's own text could be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


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
