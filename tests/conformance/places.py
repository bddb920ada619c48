"""The layouts and places on which every promise of a cache is tested. A new one needs a line in `PLACES`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.layouts.base import Layout
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of

from tests import servers
from tests.caches import writer_at


@dataclass(frozen=True)
class Place:
    """A store, where its caches are written, and where they are read: at the same place, or by another way to it."""

    store: str
    written_at: str
    read_at: str

    def writer(self, manifest: Manifest, name: str = "c") -> LogitWriter:
        """A writer of all signals of the cache `name`."""
        return writer_at(f"{self.written_at}/{name}", manifest, self.store)

    def reader(self, name: str = "c") -> LogitReader:
        """A reader of the complete cache `name`."""
        return open_cache(f"{self.read_at}/{name}")

    def raw(self, name: str = "c") -> Storage:
        """The cache's objects, to be damaged."""
        return storage_of(f"{self.written_at}/{name}")

    def contents(self, name: str = "c") -> dict[str, bytes]:
        """Every stored object, by key."""
        raw = self.raw(name)
        sizes = raw.sizes()
        assert sizes is not None
        return {key: raw.get(key) for key in sorted(sizes)}

    def layout(self, manifest: Manifest) -> Layout:
        """How the store lays the cache out."""
        return layout_of(self.store, manifest)

    def key(self, manifest: Manifest, block: Block, name: str = "logits") -> str:
        """The first object of a block."""
        return next(iter(self.layout(manifest).objects(name, block)))


@contextmanager
def place_of(kind: str, folder: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The place `kind`, with nothing in it yet."""
    store, _, where = kind.partition(" ")
    with ExitStack() as stack:
        written = read = str(folder)
        if where == "over S3":
            bucket = servers.make_bucket(endpoint)
            for name, value in bucket.env().items():
                monkeypatch.setenv(name, value)
            written = read = f"{bucket.url}/caches"
        elif where == "over HTTP":
            read = stack.enter_context(servers.web(folder)).url
        yield Place(store, written, read)


# Each layout and each kind of place, but not each of their pairs: those are in the soak.
PLACES = (
    *("zarr", "webdataset", "zarr over S3", "webdataset over HTTP"),
    *(pytest.param(place, marks=pytest.mark.soak) for place in ("zarr over HTTP", "webdataset over S3")),
)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """One server like S3 for all tests of this process."""
    pytest.importorskip("obstore", reason="caches by URL need obstore")
    pytest.importorskip("moto.server", reason="a server like S3 needs moto")
    with servers.s3_endpoint() as endpoint:
        yield endpoint


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    endpoint = request.getfixturevalue("s3_endpoint") if "S3" in request.param else ""
    with place_of(request.param, tmp_path, endpoint, monkeypatch) as place:
        yield place
