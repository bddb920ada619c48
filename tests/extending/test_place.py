"""The example place of docs/extending.md passes the suites of storages and caches once it has a line in `PLACES`."""

import pytest
from dhkd.data.errors import ConfigError
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import PLACES, is_url, storage_of

from tests.conformance import test_store
from tests.conformance.places import Place
from tests.data.cache import test_storage
from tests.extending.examples import example, suite_of


@pytest.fixture(params=["zarr", "webdataset"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The new place, with each layout in turn."""
    monkeypatch.setitem(PLACES, "memory", example("A place")["Memory"])
    layout = request.param.partition(" ")[0]  # a test may name another place after it, which is not taken here
    return Place(layout, "memory://caches", "memory://caches")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The storage of the new place, without a cache."""
    monkeypatch.setitem(PLACES, "memory", example("A place")["Memory"])
    return storage_of("memory://objects/")


SUITES = {**suite_of("place", test_store), **suite_of("storage", test_storage)}
globals().update(SUITES)


def test_the_suites_are_run() -> None:
    assert len(suite_of("place", test_store)) > 20
    assert len(suite_of("storage", test_storage)) >= 3


def test_its_urls_are_urls_only_with_its_line(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_url("memory://objects")
    assert storage.location == "memory://objects"
    monkeypatch.delitem(PLACES, "memory")
    assert not is_url("memory://objects")
    with pytest.raises(ConfigError, match="got memory"):
        storage_of("memory://objects")
