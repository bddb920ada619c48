"""`dhkd serve DIR`: serve the results page while a sweep runs, to this machine only."""

import hashlib
import logging
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dhkd.data.errors import ConfigError, DhkdError
from dhkd.data.runs.names import CONFIG, FAILED, METRICS, RESULT, SWEEP
from dhkd.data.runs.read import read_runs
from dhkd.pipeline.report.page import page_of

log = logging.getLogger("dhkd")

ADDRESS = "127.0.0.1"
WATCHED = (CONFIG, METRICS, RESULT, FAILED, SWEEP)


def server_of(folder: Path, port: int, baseline: str | None = None) -> ThreadingHTTPServer:
    """Create a server of `folder`'s page for requests from this machine only; port 0 takes any free port.

    `baseline` is "AXIS=VALUE", as in `compare`. Raises `ConfigError` if the port can't be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A web site could make its domain name point to this address, so the Host header must name this machine.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (ADDRESS, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                version = version_of(folder)  # taken before the runs are read, so that later changes alter the version
                try:
                    self._answer(page_of(read_runs(folder), folder, baseline, version), "text/html")
                except DhkdError as error:
                    self._answer(str(error), "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
            elif self.path == "/version":
                self._answer(version_of(folder), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            log.debug(format, *values)

    read_runs(folder)  # so that a wrong folder raises now, not at the first request
    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for any that is free") from error


def version_of(folder: Path) -> str:
    """Compute a hash that changes when a run begins, finishes an epoch, ends or fails, or an analysis is written."""
    files = [file for name in WATCHED for file in folder.rglob(name)]
    files += [file for file in (folder / "report").glob("*") if file.suffix in (".csv", ".npz")]
    facts = []
    for file in sorted(files):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue  # the file has been removed or replaced since it was listed
        facts.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
