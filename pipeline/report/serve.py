"""`dhkd serve DIR`: serve the results page while a sweep runs, to this machine only."""

import contextlib
import hashlib
import logging
import os
import re
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dhkd.data.errors import ConfigError, DhkdError, StorageError
from dhkd.data.runs.names import CONFIG, FAILED, METRICS, RESULT, SWEEP
from dhkd.data.runs.place import Runs
from dhkd.data.runs.read import RunReader
from dhkd.pipeline.report.page import page_of

log = logging.getLogger("dhkd")

ADDRESS = "127.0.0.1"
# A web site could make its domain name point to this address, so the Host header must name this machine. The port may
# be another one, because it may be forwarded, or missing, where it is 80.
HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
PATIENCE = 10  # seconds that a connection may take to say what it wants
REFRESH_SECONDS = 5.0  # between two listings of a URL, which cost money
WATCHED = (CONFIG, METRICS, RESULT, FAILED, SWEEP)
ANALYSES = (".csv", ".npz")


class Pages:
    """The page of a folder's runs, which is built again only when a file has changed, from the runs that changed."""

    def __init__(self, place: Runs, baseline: str | None) -> None:
        """`baseline` is "AXIS=VALUE", as in `compare`. Raises `RunMismatch` if there is no folder of runs."""
        self._place, self._baseline = place, baseline
        self._reader = RunReader(place.folder, place.shown)
        place.refresh()
        self._reader.read()  # so that a wrong folder raises now, not at the first request
        self._refreshed = time.monotonic()
        self._lock = threading.Lock()
        self._version = ""
        self._page = b""

    def page(self) -> bytes:
        """Return the page as HTML. Raises `DhkdError` if the runs can't be compared."""
        with self._lock:  # several requests at once build it once
            version = self._version_now()  # before the runs are read, so that later changes alter the version
            if version != self._version:
                text = page_of(self._reader.read(), self._place.folder, self._baseline, version)
                self._page, self._version = text.encode(errors="backslashreplace"), version
            return self._page

    def version(self) -> str:
        """Return a text that changes when the page does."""
        with self._lock:
            return self._version_now()

    def _version_now(self) -> str:
        """Look for changes, at a URL only every few seconds; one that can't be reached is shown as it was."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            try:
                self._place.refresh()
            except StorageError as error:
                log.warning("%s; the page shows what was there before", error)
            self._refreshed = time.monotonic()
        return version_of(self._place.folder)


class _Server(ThreadingHTTPServer):
    """A thread for each connection, so that an idle one keeps nobody waiting."""

    request_queue_size = 128  # connections that may wait to be accepted


def server_of(place: Runs, port: int, baseline: str | None = None) -> ThreadingHTTPServer:
    """Create a server of the page of a folder of runs, for requests from this machine only; port 0 takes any free port.

    `baseline` is "AXIS=VALUE", as in `compare`. Raises `ConfigError` if the port can't be used.
    """
    pages = Pages(place, baseline)

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def handle(self) -> None:
            # However slowly a client sends its request, byte by byte, the connection ends.
            deadline = threading.Timer(PATIENCE, _hang_up, [self.connection])
            deadline.daemon = True
            deadline.start()
            self._deadline = deadline
            try:
                super().handle()
            except OSError as error:  # the client is gone, or the deadline has passed
                log.debug("connection ended: %s", error)
            finally:
                deadline.cancel()

        def do_GET(self) -> None:
            self._deadline.cancel()  # the request is complete; building the page may take longer
            if not HOST.fullmatch(self.headers.get("Host", "")):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                try:
                    self._answer(pages.page(), "text/html")
                except DhkdError as error:
                    self._answer(str(error).encode(), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
            elif self.path == "/version":
                self._answer(pages.version().encode(), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            log.debug(format, *values)

    try:
        return _Server((ADDRESS, port), Handler)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for any that is free") from error


def version_of(folder: Path) -> str:
    """Compute a hash that changes when a run begins, finishes an epoch, ends or fails, or an analysis is written."""
    facts = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        in_report = Path(place) == folder / "report"
        for name in sorted(names):
            if name not in WATCHED and not (in_report and name.endswith(ANALYSES)):
                continue
            try:
                status = os.stat(file := os.path.join(place, name))
            except FileNotFoundError:
                continue  # the file has been removed or replaced since it was listed
            facts.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)
