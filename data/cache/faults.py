"""What can be wrong with one object of a cache."""

from collections.abc import Iterator
from contextlib import contextmanager

from dhkd.data.cache.index import LARGEST_INDEX
from dhkd.data.errors import ObjectRefused, StorageError
from dhkd.data.storage.base import Storage
from dhkd.data.strict_json import decode


def describes_another_array(content: bytes, expected: bytes) -> bool:
    """Return whether an array's metadata contradicts the manifest. The number of views may differ, because it grows.

    dhkd reads arrays by the manifest, and other programs by this metadata. Libraries may write it with more or fewer
    fields.
    """
    try:
        got, wanted = decode(content), decode(expected)
    except ValueError:
        return content != expected
    if not (isinstance(got, dict) and isinstance(wanted, dict) and "shape" in wanted):
        return False
    shape = got.get("shape")
    same = isinstance(shape, list) and shape[1:] == wanted["shape"][1:]
    return not same or any(got.get(field) != wanted.get(field) for field in ("data_type", "chunk_grid"))


class Fault(Exception):
    """What is wrong with an object."""


def get_object(storage: Storage, key: str, size: int) -> bytes:
    """Return an object's bytes, at most `size` of them; raises `Fault` for an object that can't be read."""
    with faults(size):
        return storage.get(key, size)


@contextmanager
def faults(size: int) -> Iterator[None]:
    """Raise `Fault` for an object that is absent or can't be read, where `size` bytes were expected."""
    try:
        yield
    except FileNotFoundError as error:
        raise Fault(f"expected {size} bytes, got no object" if size != LARGEST_INDEX else "missing") from error
    except ObjectRefused as error:
        raise Fault(str(error)) from error
    except StorageError:
        raise  # of the whole storage, not of one object
    except OSError as error:
        raise Fault(f"can't be read ({error.strerror or error})") from error
