"""The example layout of docs/extending.md passes the conformance suite of caches once it has a line in `LAYOUTS`."""

from pathlib import Path

import pytest
from dhkd.data.cache.layouts import LAYOUTS
from dhkd.data.cache.reader import open_cache
from dhkd.stages.cache.convert import convert_blocks, converted

from tests.caches import writer_at
from tests.conformance import test_store
from tests.conformance.places import Place
from tests.extending.examples import example, suite_of
from tests.samples import files_of

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place where caches have the new layout, in a folder."""
    monkeypatch.setitem(LAYOUTS, "raw", example("A layout")["RawLayout"])
    return Place("raw", str(tmp_path), str(tmp_path))


SUITE = suite_of("place", test_store)
globals().update(SUITE)


def test_the_suite_is_run() -> None:
    assert len(SUITE) > 20


def test_a_cache_is_converted_to_it_and_back(place: Place, tmp_path: Path) -> None:
    """A cache with every codec, converted to the new layout and back, equals the golden cache byte for byte."""
    name = "version-2-tar"
    for source, target, store in (
        (GOLDEN / name, tmp_path / "raw", "raw"),
        (tmp_path / "raw", tmp_path / name, "webdataset"),
    ):
        reader = open_cache(source)
        convert_blocks(reader, writer_at(target, converted(reader, None, allow_loss=False), store))
        assert open_cache(target).store == store
    assert files_of(tmp_path / name) == files_of(GOLDEN / name)
    assert len(files_of(tmp_path / "raw")) == len(files_of(GOLDEN / name)), "a file for each block of each array"
