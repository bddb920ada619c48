"""A folder shows the runs at a URL: everything that reports read, fetched once, and only what has changed."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from dhkd.data.errors import ConfigError, StorageError
from dhkd.data.runs import near
from dhkd.data.runs.near import FINAL_WEIGHTS, KEPT_WEIGHTS, NearRuns
from dhkd.data.runs.place import RunsAtUrl, RunsInFolder, runs_at
from dhkd.data.runs.read import read_runs
from dhkd.data.storage.base import LARGEST_OBJECT
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.folder import Folder

from tests.buckets import bucket, near_cache, proxied, s3_endpoint
from tests.samples import files_of
from tests.servers import S3, Flaky
from tests.soak.many_runs import write_runs

__all__ = ["bucket", "near_cache", "proxied", "s3_endpoint"]

FILES = {
    "sweep.json": b"{}",
    "results.csv": b"run\n",
    "report/etf.csv": b"kind\n",
    "report/etf.png": b"picture",
    "a/config.yaml": b"run: {}",
    "a/metrics.jsonl": b"{}\n",
    "a/checkpoint/state.pt": b"tensors",
    "a/weights/epoch-0001.safetensors": b"first",
    "a/student.safetensors": b"last",
    "a/tracking/events.1": b"events",
    "a/lock.1": b"{}",
    "b/failed.txt": b"out of memory",
}
SHOWN = ("sweep.json", "report/etf.csv", "a/config.yaml", "a/metrics.jsonl", "b/failed.txt")
EMPTY = ("a/checkpoint/state.pt", "a/weights/epoch-0001.safetensors", "a/student.safetensors")


@pytest.fixture
def place(bucket: S3, proxied: Flaky) -> RunsAtUrl:
    """Runs at a URL."""
    bucket.fill({f"runs/{key}": content for key, content in FILES.items()})
    return RunsAtUrl(f"{bucket.url}/runs")


def test_it_shows_what_reports_read_and_an_empty_file_for_weights(place: RunsAtUrl) -> None:
    place.refresh()
    assert place.folder.name == "runs"
    assert files_of(place.folder) == {key: FILES[key] for key in SHOWN} | dict.fromkeys(EMPTY, b"")


def test_weights_are_fetched_when_they_are_asked_for(place: RunsAtUrl) -> None:
    place.refresh()
    place.refresh(FINAL_WEIGHTS)
    assert files_of(place.folder)["a/student.safetensors"] == b"last"
    place.refresh(KEPT_WEIGHTS)
    assert files_of(place.folder)["a/weights/epoch-0001.safetensors"] == b"first"
    place.refresh()
    assert files_of(place.folder)["a/student.safetensors"] == b"last", "what is near stays near"
    place.storage.put("a/student.safetensors", b"new!", replace=True)
    place.refresh()
    assert files_of(place.folder)["a/student.safetensors"] == b"", "but not when it is no longer what lies there"


def test_only_what_changed_is_fetched(place: RunsAtUrl, proxied: Flaky) -> None:
    place.refresh()
    assert (proxied.count("GET"), proxied.count("HEAD")) == (1 + len(SHOWN), 0)
    proxied.requests.clear()
    place.refresh()
    assert sum(proxied.requests.values()) == 1, "a listing"
    place.storage.put("a/metrics.jsonl", b"[]\n", replace=True)  # as long as before
    place.storage.put("b/config.yaml", b"run: {}", replace=True)
    place.storage.delete("b/failed.txt")
    proxied.requests.clear()
    place.refresh()
    assert sum(proxied.requests.values()) == 3
    files = files_of(place.folder)
    assert (files["a/metrics.jsonl"], files["b/config.yaml"]) == (b"[]\n", b"run: {}")
    assert "b/failed.txt" not in files


def test_a_damaged_index_or_a_lost_file_is_fetched_again(place: RunsAtUrl) -> None:
    place.refresh()
    (place.folder / "a/config.yaml").unlink()
    place.refresh()
    assert files_of(place.folder)["a/config.yaml"] == FILES["a/config.yaml"]
    (place.folder.parent / "index.json").write_bytes(b"[")
    place.refresh()
    assert files_of(place.folder)["a/config.yaml"] == FILES["a/config.yaml"]


class Hostile(Folder):
    """A store in which somebody put objects with keys that lead elsewhere; obstore lists none that has such keys."""

    KEYS = ("../config.yaml", "a/../../config.yaml", "/config.yaml", "a//config.yaml", "./config.yaml", "a/config.yaml")
    LONG = f"{'n' * 256}/config.yaml"

    def stamps(self) -> dict[str, str]:
        return dict.fromkeys((*self.KEYS, self.LONG, "a/config.yaml/config.yaml"), "1")

    def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
        return b"run: {}"


def test_keys_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    shown = NearRuns(Hostile(tmp_path / "runs"))
    shown.refresh()
    cache = shown.folder.parent.parent.parent
    found = [path for path in cache.rglob("config.yaml") if path.is_file()]
    assert found == [shown.folder / "a/config.yaml"]


def test_what_was_not_used_for_longest_makes_room(
    bucket: S3, place: RunsAtUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.fill({"others/a/config.yaml": b"run: {}"})
    place.refresh()
    monkeypatch.setattr(near, "KEEP_BYTES", 10)
    other = RunsAtUrl(f"{bucket.url}/others")
    other.refresh()
    assert place.folder.exists(), "it was used a moment ago"
    long_ago = time.time() - 2 * near.KEEP_SECONDS
    os.utime(place.folder.parent / "index.json", (long_ago, long_ago))
    other.refresh()
    assert not place.folder.exists()
    assert files_of(other.folder) == {"a/config.yaml": b"run: {}"}


def test_places_that_cannot_be_listed_or_read_are_refused(bucket: S3) -> None:
    with pytest.raises(ConfigError, match="expected a folder, or a URL that starts with"):
        runs_at("ftp://host/runs")
    with pytest.raises(StorageError, match="there is no bucket nowhere"):
        runs_at("s3://nowhere/runs").refresh()
    assert runs_at("runs") == RunsInFolder(Path("runs"))


def test_many_runs_are_read_as_those_of_a_folder(tmp_path: Path, bucket: S3, proxied: Flaky) -> None:
    write_runs(tmp_path / "runs", runs=10, epochs=2)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "metrics.jsonl").write_text("no metrics\n\n")
    bucket.fill({f"runs/{key}": content for key, content in files_of(tmp_path / "runs").items()})
    place = RunsAtUrl(f"{bucket.url}/runs")
    place.refresh()
    runs = read_runs(place.folder, place.shown)
    expected = read_runs(tmp_path / "runs")
    at_url = [replace(run, path=tmp_path / "runs" / run.path.relative_to(place.folder)) for run in runs]
    broken = expected.pop(0)
    assert at_url.pop(0) == replace(broken, damage=str(broken.damage).replace(str(tmp_path / "runs"), place.location))
    assert at_url == expected
    assert len(expected) == 10


def test_errors_name_the_url(place: RunsAtUrl) -> None:
    with pytest.raises(ConfigError) as caught, place.named():
        raise ConfigError(f"{place.folder}/a: broken")
    assert str(caught.value) == f"{place.location}/a: broken"


def test_near_copies_of_one_url_are_shared(place: RunsAtUrl) -> None:
    NearRuns(Bucket(f"{place.location}/")).refresh()
    assert (place.folder / "a/config.yaml").exists()
    shutil.rmtree(place.folder)
    place.refresh()
    assert (place.folder / "a/config.yaml").exists()
