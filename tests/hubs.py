"""A local server that behaves as a hub of models and data sets, and a second one to which it redirects.

What it does is what Hugging Face's hub is documented and seen to do: small files come from an address on the same host,
large ones from another host, at an address that is signed and expires; private repositories need a token; too many
requests give 429 with the header RateLimit; there are no listings, and every other address is a web page.
"""

import datetime
import hashlib
import hmac
import http.server
import ipaddress
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.servers import Quiet, range_of, serving

LIFETIME_S = 3600
COMMIT = "c" * 40


@dataclass
class Hub:
    """The hub's address, what it was asked, and how it will behave.

    `root` holds a folder for each repository: USER/NAME for models, datasets/USER/NAME for data sets. Files of at least
    `large` bytes, and those without an ending, come from the other host. `tokens` maps private repositories to the
    tokens that may read them.
    """

    root: Path
    large: int = 4096
    tokens: dict[str, str] = field(default_factory=dict)
    url: str = ""
    elsewhere: str = ""
    requests: Counter[str] = field(
        default_factory=Counter
    )  # "GET /path" of the hub, "elsewhere GET /path" of the other
    authorizations: list[tuple[str, str]] = field(default_factory=list)  # what was asked with which Authorization
    ranges: list[str] = field(default_factory=list)  # that were asked for at the other host
    refuse: int = 0  # this many further requests get 429
    refusal: dict[str, str] = field(default_factory=lambda: {"RateLimit": '"resolvers";r=0;t=0'})
    expired: int = 0  # this many further redirections lead to an address that has expired
    broken: int = 0  # this many further answers of the other host break off in the middle
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Return whether one of the counted misfortunes is due now."""
        with self.lock:
            left: int = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0

    def signature(self, path: str, expires: int) -> str:
        """Return the signature that makes an address of the other host valid until `expires`."""
        return hmac.new(self.secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()

    def noted(self, handler: http.server.BaseHTTPRequestHandler, prefix: str = "") -> None:
        """Count a request, and keep its header Authorization if it has one."""
        request = f"{prefix}{handler.command} {unquote(urlsplit(handler.path).path)}"
        with self.lock:
            self.requests[request] += 1
            if "Authorization" in handler.headers:
                self.authorizations.append((request, handler.headers["Authorization"]))


@contextmanager
def hub(root: Path, tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    """Start a hub that shows the repositories below `root`; with `tls`, over https."""
    served = Hub(root)
    with serving(_elsewhere(served), tls) as served.elsewhere, serving(_hub(served), tls) as served.url:
        yield served


def _hub(served: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(_Answering):
        def _serve(self) -> None:
            served.noted(self)
            path = unquote(urlsplit(self.path).path)
            cached = path.startswith("/api/resolve-cache/")
            repository, resolve, file = path.removeprefix("/api/resolve-cache").strip("/").partition("/resolve/")
            revision, _, name = file.partition("/")
            if not resolve or not revision or not name:
                self.answer(200, b"<html>a page", {"Content-Type": "text/html; charset=utf-8"})
            elif served.take("refuse"):
                self.answer(429, b"Too many requests", served.refusal)
            elif not self.may_read(repository):
                self.answer(401, b"Invalid credentials", {"X-Error-Code": "RepoNotFound"})
            else:
                self.resolve(served.root / repository / name, path, cached=cached)

        def may_read(self, repository: str) -> bool:
            token = served.tokens.get(repository)
            known = token is None or self.headers.get("Authorization") == f"Bearer {token}"
            return known and (served.root / repository).is_dir()

        def resolve(self, file: Path, path: str, *, cached: bool) -> None:
            if not file.is_file() or not file.resolve().is_relative_to(served.root.resolve()):
                self.answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
                return
            content = file.read_bytes()
            if file.suffix and len(content) < served.large:
                if cached:
                    self.answer(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
                else:  # to the same host
                    self.answer(307, b"Temporary Redirect", {"Location": quote(f"/api/resolve-cache{path}")})
                return
            signed = f"/{file.relative_to(served.root)}"
            expires = int(time.time()) + (-1 if served.take("expired") else LIFETIME_S)
            address = (
                f"{served.elsewhere}{quote(signed)}?Expires={expires}&Signature={served.signature(signed, expires)}"
            )
            sha = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha}"', "Location": address}
            self.answer(302, f"Found. Redirecting to {address}".encode(), linked)

        do_GET = do_HEAD = _serve

    return Handler


def _elsewhere(served: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(_Answering):
        def _serve(self) -> None:
            served.noted(self, "elsewhere ")
            parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
            path, expires = unquote(parts.path), int(query.get("Expires", ["0"])[0])
            valid = hmac.compare_digest(query.get("Signature", [""])[0], served.signature(path, expires))
            if not valid or expires < time.time() or self.command != "GET":
                self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
            elif "Authorization" in self.headers:  # as S3 does, which takes one kind of authorization
                self.answer(400, b"<Error><Code>InvalidArgument</Code></Error>", {"Content-Type": "application/xml"})
            else:
                self.send(served.root / path.lstrip("/"))

        do_GET = do_HEAD = _serve

        def send(self, file: Path) -> None:
            content = file.read_bytes()
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            wanted, headers = None, {"ETag": tag, "Accept-Ranges": "bytes"}
            if "Range" in self.headers:
                with served.lock:
                    served.ranges.append(self.headers["Range"])
                if self.headers.get("If-Range", tag) == tag:
                    wanted = range_of(self.headers["Range"], len(content))
            if wanted:
                headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(content)}"
                content = content[wanted.start : wanted.stop]
            half = len(content) // 2 if served.take("broken") else None
            self.answer(206 if wanted else 200, content, headers, cut=half)

    return Handler


class _Answering(Quiet):
    def answer(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        """Answer with these bytes; with `cut`, hang up after so many of them."""
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for 127.0.0.1; return what a server needs of it, and the file by which clients trust it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public
