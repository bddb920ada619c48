"""What users call a place, a path or a URL, as the storage that it is."""

from pathlib import Path

from dhkd.data.cache.storage.base import Storage
from dhkd.data.cache.storage.folder import Folder


def is_url(location: str | Path) -> bool:
    """Whether this names a bucket or a web server rather than a folder."""
    return "://" in str(location)


def storage_of(location: str | Path) -> Storage:
    """The storage at a path or a URL (s3://, gs://, az://, and to read only https://)."""
    if not is_url(location):
        return Folder(Path(location))
    from dhkd.data.cache.storage.bucket import Bucket  # needs what only a URL needs

    return Bucket(str(location))
