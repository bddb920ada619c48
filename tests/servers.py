"""Local servers for tests of caches at URLs: an S3 server, a plain web server, and a proxy that injects faults.

Each server is a context manager that listens on a free port of 127.0.0.1 and stops at the end. The proxy can stand in
front of either other server; a test chooses the fault for each request.
"""

import http.client
import http.server
import logging
import secrets
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

REGION = "us-east-1"  # the default region: a request to create a bucket needn't name it


@dataclass
class Counted:
    """A server's address, and the number of requests of each kind that it got, e.g. `requests["GET /a/b"]`."""

    url: str
    requests: Counter[str] = field(default_factory=Counter)

    def count(self, start: str = "") -> int:
        """Return the number of requests so far that begin with `start`: a method, or a method and a path."""
        return sum(number for request, number in self.requests.items() if request.startswith(start))


# S3


@dataclass(frozen=True)
class S3:
    """An S3-compatible server, and a bucket on it that was empty at first."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        """The bucket's URL, as users write it."""
        return f"s3://{self.bucket}"

    def env(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the environment variables to reach the server, or another `endpoint`, such as a proxy."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": REGION,
        }

    def fill(self, objects: Mapping[str, bytes]) -> None:
        """Put many objects into the bucket without requests; sending them one by one would take too long."""
        from moto.s3.models import s3_backends

        for key, content in objects.items():
            s3_backends["123456789012"]["aws"].put_object(self.bucket, key, content)

    @contextmanager
    def asking_for_known_keys(self) -> Iterator[None]:
        """Make the server refuse all access keys: it refuses keys that it hasn't issued, and it has issued none."""
        self._let_pass("0")
        try:
            yield
        finally:
            self._let_pass("inf")

    def _let_pass(self, requests: str) -> None:
        url, kind = f"{self.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(url, requests.encode(), kind, method="POST")):
            pass


@contextmanager
def s3_endpoint() -> Iterator[str]:
    """Start an S3-compatible server without a bucket, in about a second. The server keeps everything in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # otherwise it logs every request on stderr
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint: str) -> S3:
    """Create a bucket with a random name, so that tests may share the server."""
    bucket = f"bucket-{secrets.token_hex(4)}"
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")):
        return S3(endpoint, bucket)


@contextmanager
def s3() -> Iterator[S3]:
    """Start an S3-compatible server with one bucket."""
    with s3_endpoint() as endpoint:
        yield make_bucket(endpoint)


# the web


@contextmanager
def web(root: Path) -> Iterator[Counted]:
    """Start a web server for a folder's files, with GET, HEAD and ranges. A request for a folder gives 404."""
    server = Counted("")

    class Handler(Quiet):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            server.requests[f"{self.command} {unquote(self.path)}"] += 1
            file = root / unquote(urlsplit(self.path).path).lstrip("/")
            if not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
                self.send_error(404)
                return
            content = file.read_bytes()
            wanted = range_of(self.headers.get("Range"), len(content))
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {wanted.start}-{wanted.stop - 1}/{len(content)}")
                content = content[wanted.start : wanted.stop]
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
            self.send_header("ETag", f'"{file.stat().st_mtime_ns:x}-{file.stat().st_size:x}"')
            self.end_headers()
            if with_body:
                self.wfile.write(content)

    with serving(Handler) as server.url:
        yield server


def range_of(header: str | None, size: int) -> range | None:
    """Return which of `size` bytes the header Range asks for; None for all of them."""
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1 if last else size, size))


# faults


@dataclass(frozen=True)
class Fault:
    """What the proxy does wrong with one request.

    `status` answers with the status `amount` and passes nothing on; `drop` closes the connection and passes nothing on;
    `lose` passes the request on and closes the connection instead of answering; `truncate` cuts the answer's body off
    after `amount` bytes; `delay` answers correctly after `amount` seconds; `reply` passes the request on and answers
    with the status `amount`.
    """

    kind: Literal["status", "drop", "lose", "truncate", "delay", "reply"]
    amount: float = 0


Faults = Callable[[str], Fault | None]


def every(period: int, fault: Fault, start: str = "") -> Faults:
    """Return faults that hit each `period`-th of the requests that begin with `start`."""
    lock, seen = threading.Lock(), 0

    def fault_of(request: str) -> Fault | None:
        nonlocal seen
        with lock:
            seen += request.startswith(start)
            return fault if request.startswith(start) and seen % period == 0 else None

    return fault_of


def in_order(faults: Iterable[Fault | None], start: str = "") -> Faults:
    """Return faults that hit the requests that begin with `start`, one fault per request, and then none."""
    lock, rest = threading.Lock(), iter(list(faults))

    def fault_of(request: str) -> Fault | None:
        with lock:
            return next(rest, None) if request.startswith(start) else None

    return fault_of


@dataclass
class Flaky(Counted):
    """A proxy's address, the requests that it got, and the faults of its next requests."""

    faults: Faults = lambda request: None


@contextmanager
def flaky(upstream: str, faults: Faults = lambda request: None) -> Iterator[Flaky]:
    """Start a proxy in front of `upstream`, http://host:port; `faults` gets each request as "GET /path?query"."""
    proxy = Flaky("", faults=faults)

    class Handler(Quiet):
        def _answer(self) -> None:
            request = f"{self.command} {unquote(self.path)}"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.requests[request] += 1
            fault = proxy.faults(request) or Fault("delay", 0)
            if fault.kind == "status":
                self.send_error(int(fault.amount))
            elif fault.kind == "drop":
                self._hang_up()
            else:
                self._pass_on(body, fault)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

        def _pass_on(self, body: bytes, fault: Fault) -> None:
            connection = http.client.HTTPConnection(upstream.removeprefix("http://"), timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault.kind == "lose":
                self._hang_up()
                return
            if fault.kind == "reply":
                self.send_error(int(fault.amount))
                return
            if fault.kind == "delay":
                time.sleep(fault.amount)
            self.send_response_only(answer.status, answer.reason)
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            if self.command != "HEAD":  # an answer to HEAD gives the length of a body that isn't sent
                kept["Content-Length"] = str(len(content))
            elif answer.getheader("Content-Length"):
                kept["Content-Length"] = answer.headers["Content-Length"]
            for name, value in kept.items():
                self.send_header(name, value)
            self.end_headers()
            if fault.kind == "truncate":
                self.wfile.write(content[: int(fault.amount)])
                self._hang_up()
            else:
                self.wfile.write(content)

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True

    with serving(Handler) as proxy.url:
        yield proxy


_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}


class Quiet(http.server.BaseHTTPRequestHandler):
    """Handles requests without logging them."""

    protocol_version = "HTTP/1.1"  # connections stay open, as with real servers
    disable_nagle_algorithm = True  # headers and body are written separately, which would take 40 ms for each answer

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # many threads may ask at once

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error, because test clients hang up on purpose."""


@contextmanager
def serving(
    handler: Callable[..., http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1, with https if `tls` is given, and yield the address."""
    server = _Server(("127.0.0.1", 0), partial(handler))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
