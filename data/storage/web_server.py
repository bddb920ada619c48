"""A cache's objects below a URL of a web server or a hub, which is only read and can't list its objects."""

from io import BytesIO
from urllib.parse import quote

from dhkd.data.errors import ObjectRefused, StorageError
from dhkd.data.hub import HUB, access_hint, address_of, require_address_of_files
from dhkd.data.patience import Patience
from dhkd.data.storage.base import LARGEST_OBJECT
from dhkd.data.storage.sums import LARGEST_SUMS, SUMS, parsed_sums
from dhkd.data.storage.urls import require_plain, where_is
from dhkd.data.web import PATIENT, TooLarge, WebError, fetch, size_at

ABSENT = (404, 410)
NO_ACCESS = (401, 403)


class WebServer:
    """Objects below a URL: http(s)://HOST/PATH, or hf:// for a hub. Threads and processes may share it.

    `address` is where they are, beginning with http(s). Raises `ConfigError` for a URL with a query, a fragment or a
    password, and for the page of a hub.
    """

    streams = 8  # requests spend their time waiting for answers

    def __init__(self, url: str, patience: Patience = PATIENT) -> None:
        require_plain(url)
        scheme, _, rest = url.rstrip("/").partition("://")
        self.location, self.patience = f"{scheme.lower()}://{rest}", patience
        self.address = address_of(self.location) if scheme.lower() == HUB else self.location
        require_address_of_files(self.address)

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        """Return the object's bytes; raises `FileNotFoundError` if there is no such object.

        Raises `ObjectRefused` if the server sends or announces more than `largest` bytes, and `StorageError` if it
        fails.
        """
        content = BytesIO()
        try:
            fetch(self._url(key), content, largest, self.patience)
        except TooLarge as error:
            where = where_is(self.location, key)
            raise ObjectRefused(
                f"{where}: expected at most {largest:,} bytes, got more ({error.reason}); copy it again"
            ) from error
        except WebError as error:
            raise self._explained(key, error) from error
        return content.getvalue()

    def size(self, key: str) -> int:
        """Return the object's size in bytes, or -1 if there is no such object."""
        try:
            return size_at(self._url(key), self.patience)
        except WebError as error:
            if error.status in ABSENT:
                return -1
            raise self._explained(key, error) from error

    def sizes(self) -> None:
        """Return None: a web server can't list its objects."""
        return

    def stamps(self) -> dict[str, str] | None:
        """Return the checksums that `dhkd share` wrote into a file, by key; None if there is no such file."""
        try:
            return parsed_sums(self.get(SUMS, LARGEST_SUMS))
        except FileNotFoundError:
            return None

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        """Raise `StorageError`."""
        raise self._readonly(key)

    def delete(self, key: str) -> None:
        """Raise `StorageError`."""
        raise self._readonly(key)

    def _url(self, key: str) -> str:
        return f"{self.address}/{quote(key)}"

    def _explained(self, key: str, error: WebError) -> OSError:
        where, reason = where_is(self.location, key), error.reason
        if error.status in ABSENT:
            return FileNotFoundError(f"{where}: no object")
        if error.status in NO_ACCESS:
            return StorageError(f"{where}: no access ({reason}); {access_hint(self.address)}")
        if not error.may_pass:
            return StorageError(f"{where}: refused ({reason}); check the URL, or copy the cache to a folder")
        return StorageError(
            f"{where}: can't be reached ({reason}); check the network and the URL, then run the same command again"
        )

    def _readonly(self, key: str) -> StorageError:
        return StorageError(
            f"{where_is(self.location, key)}: a web server is only read; write to a folder or to a bucket (s3://, gs://,"
            f" az://), and let the server show that"
        )
