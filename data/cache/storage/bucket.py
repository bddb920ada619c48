"""A cache's objects in a bucket (s3://, gs://, az://), or below a URL of a web server, which is read only.

Credentials, region and endpoint come from the environment, as each provider names them. Left out on purpose: what
can only be said in a program's own configuration files (`~/.aws`), and signed URLs, which name one object each.
"""

import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypeVar
from urllib.parse import urlsplit

from dhkd.data.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

log = logging.getLogger("dhkd")

_RANDOM = random.SystemRandom()  # no seed: processes that were started alike must differ
_SEEN_S = 1.0  # a shorter wait is not worth a line

WEB = ("http", "https")

# By scheme, what to look at when the place refuses.
_REMEDIES = {
    "s3": (
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL ('aws configure"
        " export-credentials --format env' prints what ~/.aws holds; AWS_SKIP_SIGNATURE=true reads a public bucket)"
    ),
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS (GOOGLE_SKIP_SIGNATURE=true reads a public bucket)",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
    **dict.fromkeys(WEB, "check the URL; only what is public can be read"),
}
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # whose environment variables begin so


# The library's own retries go on where a listing or a body broke off, but hardly wait: ten of them were over in 1.7 s.
RESUMES = 2
RESUMES_S = 10.0  # a request that stalled for long is not repeated there, where Ctrl-C waits for its end


@dataclass(frozen=True)
class Patience:
    """How long a store that fails or is slow is asked again, before it counts as out of reach."""

    retries: int = 10  # with the waits below about 50 s: longer than a load balancer takes to replace a server
    total_s: float = 180.0  # no retry starts later
    first_wait_s: float = 0.1  # doubled from retry to retry
    longest_wait_s: float = 15.0
    connect_s: float = 10.0
    # Without a byte of the answer. An upload counts whole: 60 s pass 60 MB at 1 MB/s.
    stall_s: float = 60.0

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each retry: at random, so that many processes don't come back at once."""
        for retry in range(self.retries):
            yield min(self.first_wait_s * 2**retry, self.longest_wait_s) * _RANDOM.uniform(0.7, 1.0)


PATIENCE = Patience()


class Bucket:
    """Objects below a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, http(s)://HOST/PATH.

    Threads may share it, and it may be pickled. A process forked from one that has already asked a store can't ask any:
    the library's threads don't survive a fork, and it would wait for ever. There every method raises `StorageError`.

    Raises `ConfigError` for another scheme, for a URL with a query, a fragment or a password, and without obstore.
    """

    streams = 8  # requests wait for each other's answers otherwise

    _asked_by: ClassVar[int | None] = None  # the process whose library has threads

    def __init__(self, url: str, patience: Patience = PATIENCE) -> None:
        self.location = url.rstrip("/")
        self.patience = patience
        parts = urlsplit(self.location)
        self._scheme, self._host, self._prefix = parts.scheme.lower(), parts.netloc, parts.path.strip("/")
        self._readonly = self._scheme in WEB
        self._creates = True
        self._made: ObjectStore | None = None
        if self._scheme not in _REMEDIES:
            raise ConfigError(
                f"{url}: expected a folder, or a URL that starts with s3://, gs://, az:// or, to be read only,"
                f" https://; got {self._scheme or 'no scheme'}"
            )
        if "@" in self._host:
            raise ConfigError(
                f"{self._scheme}://…@{self._host.rpartition('@')[2]}: a URL can't hold a user's name or password, which"
                f" would be shown in messages; leave them out"
            )
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            # What follows is a signature, as a rule: it is not shown.
            raise ConfigError(
                f"{url.partition('?')[0].partition('#')[0]}: expected a URL without ? and #, which name one object and"
                f" not the place of many; leave out what follows them, or copy the cache to a folder"
            )
        if not self._host:
            raise ConfigError(f"{url}: expected {self._scheme}://, then a {_kind(self._scheme)}, got none")
        if self._prefix and any(part in ("", ".", "..") for part in self._prefix.split("/")):
            raise ConfigError(f"{url}: expected names between single slashes, got {self._prefix}")
        self._obstore = _library(self.location)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str, Patience]]:
        return Bucket, (self.location, self.patience)

    def get(self, key: str) -> bytes:
        """The object's bytes; raises `FileNotFoundError` when there is none."""
        return self._ask(key, lambda store: bytes(self._obstore.get(store, key).bytes()))

    def size(self, key: str) -> int:
        """The object's size in bytes, -1 when there is none."""
        try:
            return self._ask(key, lambda store: int(self._obstore.head(store, key)["size"]))
        except FileNotFoundError:
            return -1

    def sizes(self) -> dict[str, int] | None:
        """Every object's size, by its key; None of a web server, which can't be listed."""
        if self._readonly:
            return None

        def listed(store: "ObjectStore") -> dict[str, int]:
            return {entry["path"]: int(entry["size"]) for page in self._obstore.list(store) for entry in page}

        return self._ask("", listed)

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Upload the object, whole or not at all.

        Without `replace`, of several writers one makes it; where the store can't promise that, the last one's bytes
        remain, which are whole too.
        """
        self._require_writable(key)
        if not replace and self._creates:
            created = self._ask(key, self._creation(key, content))
            if created is not None:
                return created
            self._creates = False
        if not replace and self.size(key) >= 0:
            return False
        self._ask(key, lambda store: self._obstore.put(store, key, content, mode="overwrite"))
        return True

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""
        self._require_writable(key)
        try:
            self._ask(key, lambda store: self._obstore.delete(store, key))
        except FileNotFoundError:
            return

    def _creation(self, key: str, content: bytes) -> Callable[["ObjectStore"], bool | None]:
        """Make the object unless it exists; None where the store can't do that in one step."""
        attempts = 0

        def create(store: "ObjectStore") -> bool | None:
            nonlocal attempts
            attempts += 1
            try:
                self._obstore.put(store, key, content, mode="create")
            except self._obstore.exceptions.AlreadyExistsError as error:
                size = self.size(key)
                if size < 0:  # AWS's 409: a delete of this object was under way; nothing was made
                    raise ConnectionAbortedError("a conflicting request was under way") from error
                # An attempt whose answer was lost may have made it. Whoever else put the same bytes doesn't matter.
                retried = attempts > 1 or re.search(r"after \d+ retries", str(error)) is not None
                return retried and size == len(content) and self.get(key) == content
            except (NotImplementedError, self._obstore.exceptions.BaseError) as error:
                if isinstance(error, NotImplementedError | self._obstore.exceptions.NotSupportedError):
                    return None
                if _status(error).startswith("501"):
                    return None
                raise
            return True

        return create

    def _ask(self, key: str, ask: Callable[["ObjectStore"], T]) -> T:
        """What the store answers; a failure that may pass is waited for."""
        store, waits, start = self._store(), self.patience.waits(), time.monotonic()
        for attempt in itertools.count(1):
            try:
                return ask(store)
            except StorageError:
                raise  # of another question that this one asked
            except (self._obstore.exceptions.BaseError, ValueError, OSError, NotImplementedError) as error:
                wait = next(waits, None)
                if wait is None or not _passing(error) or time.monotonic() - start > self.patience.total_s:
                    raise self._told(key, error, attempt) from error
                if wait >= _SEEN_S:
                    log.warning("%s: %s; asking again in %.0f s", self._where(key), _reason(error), wait)
                time.sleep(wait)
        raise AssertionError

    def _where(self, key: str) -> str:
        return f"{self.location}/{key}" if key else self.location

    def _told(self, key: str, error: Exception, attempts: int = 1) -> OSError:
        where = self._where(key)
        text, status, remedy = str(error), _status(error), _REMEDIES[self._scheme]
        address = "the endpoint (AWS_ENDPOINT_URL)" if self._scheme == "s3" else "the URL"
        if any(name in text for name in _NO_BUCKET):
            return StorageError(
                f"{where}: there is no {_kind(self._scheme)} {self._host}; make it, or check its name and {address}"
            )
        if isinstance(error, FileNotFoundError) and key:
            return FileNotFoundError(f"{where}: no object")
        reason = _reason(error) + (f", asked {attempts} times" if attempts > 1 else "")
        if status[:3] in ("401", "403") or any(name in text for name in _NO_CREDENTIALS):
            return StorageError(f"{where}: no access ({reason}); {remedy}")
        if status and not status.startswith("5"):
            return StorageError(f"{where}: refused ({reason}); {remedy}")
        return StorageError(
            f"{where}: can't be reached ({reason}); check the network and {address}, then run the same command again"
        )

    def _require_writable(self, key: str) -> None:
        if self._readonly:
            raise StorageError(
                f"{self.location}/{key}: a web server is only read; write to a folder or to a bucket (s3://, gs://,"
                f" az://), and let the server show that"
            )

    def _store(self) -> "ObjectStore":
        process = os.getpid()
        if Bucket._asked_by not in (None, process):
            raise StorageError(
                f"{self.location}: this process was forked from one that had asked a store by URL already, and can't"
                f" ask any; fork earlier, or start it with spawn"
            )
        if self._made is None:  # two threads may both make one: either will do
            self._made = self._connected()
        Bucket._asked_by = process
        return self._made

    def _connected(self) -> "ObjectStore":
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

        patience = self.patience
        retry: RetryConfig = {
            "max_retries": RESUMES,
            "retry_timeout": timedelta(seconds=RESUMES_S),
            "backoff": {
                "init_backoff": timedelta(seconds=patience.first_wait_s),
                "max_backoff": timedelta(seconds=patience.longest_wait_s),
                "base": 2,
            },
        }
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=patience.connect_s),
            "read_timeout": timedelta(seconds=patience.stall_s),
            "timeout": timedelta(seconds=patience.total_s),  # the library's own 30 s cut off large objects
            "allow_http": self._unencrypted(),
        }
        try:
            if self._readonly:
                return HTTPStore(self.location, client_options=client, retry_config=retry)
            prefix = self._prefix or None
            if self._scheme == "s3":
                return S3Store(self._host, prefix=prefix, client_options=client, retry_config=retry)
            if self._scheme == "gs":
                return GCSStore(self._host, prefix=prefix, client_options=client, retry_config=retry)
            return AzureStore(self._host, prefix=prefix, client_options=client, retry_config=retry)
        except (self._obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise self._told("", error) from error

    def _unencrypted(self) -> bool:
        """Whether the user named an address without TLS."""
        if self._readonly:
            return self._scheme == "http"
        return any(
            value.startswith("http://")
            for name, value in os.environ.items()
            if name.startswith(_VARIABLES[self._scheme]) and ("ENDPOINT" in name or "BASE_URL" in name)
        )


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# The first two are where machines of a cloud get theirs, which is asked when nothing else is set.
_NO_CREDENTIALS = ("latest/api/token", "latest/meta-data", "token request", "Account must be specified")


def _library(location: str) -> ModuleType:
    try:
        import obstore
        import obstore.exceptions
    except ImportError as error:
        raise ConfigError(f"{location}: caches by URL need obstore; install dhkd[remote]") from error
    return obstore


def _kind(scheme: str) -> str:
    return "host" if scheme in WEB else "container" if scheme == "az" else "bucket"


def _status(error: Exception) -> str:
    """The HTTP status with its name; empty where there was no answer, or one that broke off."""
    found = re.search(r"non-2xx status code: (\d{3}[ \w-]*)", str(error))
    return found[1].strip() if found else ""


def _passing(error: Exception) -> bool:
    """Whether asking again may help."""
    text, status = str(error), _status(error)
    if any(name in text for name in _NO_CREDENTIALS):
        return False  # as a rule there are none, and each try takes as long as a connection may
    lost = "HTTP error: " in text and "builder error" not in text
    return lost or status.startswith("5") or status[:3] in ("408", "429") or isinstance(error, ConnectionError)


def _reason(error: Exception) -> str:
    """In one line what the library says in many, in its own words."""
    text = str(error)
    told = [*re.findall(r"<Code>([^<]+)</Code>", text)[:1], *re.findall(r"<Message>([^<]+)</Message>", text)[:1]]
    if status := _status(error):
        reason = ": ".join([status, *told])
    elif "TimedOut" in text or "kind: Timeout" in text:
        reason = "no answer in time"
    elif found := re.findall(r'(?:message|error): "([^"]+)"', text):
        reason = found[-1]
    else:
        reason = text.partition("\n")[0].rpartition(" - ")[2]
    return " ".join(reason.split())[:200] or type(error).__name__
