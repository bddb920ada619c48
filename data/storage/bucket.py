"""A cache's objects in a bucket (s3://, gs://, az://).

The library obstore makes the requests. Credentials, region and endpoint come from the environment, under the names that
each provider uses. Left out on purpose: settings that are only in a provider's configuration files (`~/.aws`), and
signed URLs, since a signed URL names a single object.
"""

import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, ClassVar, TypeVar
from urllib.parse import urlsplit

from dhkd.data.errors import StorageError
from dhkd.data.extras import needing
from dhkd.data.patience import PATIENCE, Patience
from dhkd.data.storage.base import LARGEST_OBJECT, require_size
from dhkd.data.storage.bucket_errors import REMEDIES, explained, may_pass, reason_of, status_of
from dhkd.data.storage.urls import require_plain, where_is

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

log = logging.getLogger("dhkd")

_LOGGED_S = 1.0  # shorter waits are not logged
PIECE = 8 << 20  # bytes of a download that are written at a time
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # how each provider's environment variables begin

# obstore's own retries continue a listing or a download that broke off, but they hardly wait: ten retries took 1.7 s.
# So `Bucket` repeats failed requests itself.
RESUMES = 2
RESUMES_S = 10.0  # obstore doesn't repeat a request that stalled for this long, since Ctrl-C would wait for the retry


class Bucket:
    """Objects below a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX.

    Threads may share a bucket, and buckets can be pickled. A process can't use any bucket if it was forked from a
    process that had already used one: obstore's threads don't survive a fork, and a request would wait for ever. In
    such a process, every method raises `StorageError`.

    Raises `ConfigError` for a URL with a query, a fragment or a password, and if obstore is not installed.
    """

    streams = 8  # requests spend their time waiting for answers

    _used_by: ClassVar[int | None] = None  # the id of the process in which obstore's threads run

    def __init__(self, url: str, patience: Patience = PATIENCE) -> None:
        self.location = url.rstrip("/")
        self.patience = patience
        parts = urlsplit(self.location)
        self._scheme, self._host, self._prefix = parts.scheme.lower(), parts.netloc, parts.path.strip("/")
        assert self._scheme in REMEDIES, url
        require_plain(url)
        self._creates = True  # whether the store can create objects only if absent; assumed until the store refuses
        self._connected: ObjectStore | None = None
        self._obstore = _library(self.location)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str, Patience]]:
        return Bucket, (self.location, self.patience)

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        """Return the object's bytes; raises `FileNotFoundError` if there is no such object.

        Raises `ObjectRefused` if the object is larger than `largest` bytes.
        """

        def read(store: "ObjectStore") -> bytes:
            answer = self._obstore.get(store, key)
            require_size(where_is(self.location, key), int(answer.meta["size"]), largest)
            return bytes(answer.bytes())

        return self._ask(key, read)

    def download(self, key: str, out: BinaryIO, largest: int) -> None:
        """Write the object into `out` piece by piece; `out` is emptied before each attempt.

        Raises `FileNotFoundError` if there is no such object, and `ObjectRefused` as `get` does.
        """

        def read(store: "ObjectStore") -> None:
            answer = self._obstore.get(store, key)
            require_size(where_is(self.location, key), int(answer.meta["size"]), largest)
            out.seek(0)
            out.truncate()
            for piece in answer.stream(min_chunk_size=PIECE):
                out.write(piece)

        self._ask(key, read)

    def size(self, key: str) -> int:
        """Return the object's size in bytes, or -1 if there is no such object."""
        try:
            return self._ask(key, lambda store: int(self._obstore.head(store, key)["size"]))
        except FileNotFoundError:
            return -1

    def sizes(self) -> dict[str, int]:
        """Return every object's size, by key."""

        return {entry["path"]: int(entry["size"]) for entry in self._entries()}

    def stamps(self) -> dict[str, str]:
        """Return every object's size and entity tag, or the time of its last change, by key."""
        return {
            entry["path"]: f"{entry['size']} {entry['e_tag'] or entry['last_modified'].isoformat()}"
            for entry in self._entries()
        }

    def _entries(self) -> "list[ObjectMeta]":
        def list_all(store: "ObjectStore") -> "list[ObjectMeta]":
            return [entry for page in self._obstore.list(store) for entry in page]

        return self._ask("", list_all)

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Upload the object as a whole or not at all; return whether this call created or replaced it.

        Without `replace`, only one of several writers creates the object. If the store can't guarantee that, the last
        writer's object remains; it is complete, too.
        """
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
        """Remove the object, if it exists."""
        try:
            self._ask(key, lambda store: self._obstore.delete(store, key))
        except FileNotFoundError:
            return

    def _creation(self, key: str, content: bytes) -> Callable[["ObjectStore"], bool | None]:
        """Return a function that creates the object unless it exists.

        When called, the function returns whether it created the object, or None if the store can't do this in one step.
        """
        attempts = 0

        def create(store: "ObjectStore") -> bool | None:
            nonlocal attempts
            attempts += 1
            try:
                self._obstore.put(store, key, content, mode="create")
            except self._obstore.exceptions.AlreadyExistsError as error:
                size = self.size(key)
                if size < 0:  # AWS's 409: the object was being deleted, and nothing was written
                    raise ConnectionAbortedError("a conflicting request was under way") from error
                # An earlier attempt may have created the object although its answer was lost. So after a retry, an
                # existing object that holds `content` counts as created here, even if another writer put it there.
                retried = attempts > 1 or re.search(r"after \d+ retries", str(error)) is not None
                return retried and size == len(content) and self.get(key) == content
            except (NotImplementedError, self._obstore.exceptions.BaseError) as error:
                if isinstance(error, NotImplementedError | self._obstore.exceptions.NotSupportedError):
                    return None
                if status_of(error).startswith("501"):
                    return None
                raise
            return True

        return create

    def _ask(self, key: str, request: Callable[["ObjectStore"], T]) -> T:
        """Call `request` with the store and return its result; after a failure that may pass, wait and call it again.

        Raises `FileNotFoundError` if there is no object `key`, and `StorageError` for all other failures.
        """
        store, waits, start = self._store(), self.patience.waits(), time.monotonic()
        for attempt in itertools.count(1):
            try:
                return request(store)
            except StorageError:
                raise  # from another request inside this one
            except (self._obstore.exceptions.BaseError, ValueError, OSError, NotImplementedError) as error:
                wait = next(waits, None)
                if wait is None or not may_pass(error) or time.monotonic() - start > self.patience.total_s:
                    raise explained(self.location, key, error, attempt) from error
                if wait >= _LOGGED_S:
                    where = where_is(self.location, key)
                    log.warning("%s: %s; asking again in %.0f s", where, reason_of(error), wait)
                time.sleep(wait)
        raise AssertionError

    def _store(self) -> "ObjectStore":
        process = os.getpid()
        if Bucket._used_by not in (None, process):
            raise StorageError(
                f"{self.location}: this process was forked from one that had asked a store by URL already, and can't"
                f" ask any; fork earlier, or start it with spawn"
            )
        if self._connected is None:  # two threads may both connect; either connection will do
            self._connected = self._connect()
        Bucket._used_by = process
        return self._connected

    def _connect(self) -> "ObjectStore":
        from obstore.store import AzureStore, GCSStore, S3Store

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
            "timeout": timedelta(seconds=patience.total_s),  # obstore's default of 30 s cut off large objects
            "allow_http": self._unencrypted(),
        }
        try:
            prefix = self._prefix or None
            if self._scheme == "s3":
                return S3Store(self._host, prefix=prefix, client_options=client, retry_config=retry)
            if self._scheme == "gs":
                return GCSStore(self._host, prefix=prefix, client_options=client, retry_config=retry)
            return AzureStore(self._host, prefix=prefix, client_options=client, retry_config=retry)
        except (self._obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise explained(self.location, "", error) from error

    def _unencrypted(self) -> bool:
        """Return whether the user named an address without TLS."""
        return any(
            value.startswith("http://")
            for name, value in os.environ.items()
            if name.startswith(_VARIABLES[self._scheme]) and ("ENDPOINT" in name or "BASE_URL" in name)
        )


def _library(location: str) -> ModuleType:
    with needing("obstore", location):
        import obstore
        import obstore.exceptions
    return obstore
