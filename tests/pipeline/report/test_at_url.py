"""Reports of runs at a URL are those of the same runs in a folder, byte for byte."""

import re
from pathlib import Path

import pytest
from dhkd.data.patience import Patience
from dhkd.data.runs.place import runs_at
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.places import PLACES
from dhkd.pipeline.report import serve
from dhkd.pipeline.report.serve import Pages

from tests.buckets import bucket, near_cache, proxied, s3_endpoint
from tests.e2e.command_line import assert_one_line, dhkd, done
from tests.samples import files_of
from tests.servers import S3, Fault, Flaky, web
from tests.soak.many_runs import write_run, write_runs

__all__ = ["bucket", "near_cache", "proxied", "s3_endpoint"]


@pytest.fixture
def folder(tmp_path: Path, bucket: S3) -> Path:
    """A folder of runs that lie at the URL BUCKET/runs, too."""
    write_runs(tmp_path / "runs", runs=4, epochs=3, seeds=2)
    bucket.fill({f"runs/{key}": content for key, content in files_of(tmp_path / "runs").items()})
    return tmp_path / "runs"


def files_at(url: str) -> dict[str, bytes]:
    storage = Bucket(url)
    return {key: storage.get(key) for key in sorted(storage.sizes())}


def comparable(files: dict[str, bytes]) -> dict[str, object]:
    """Identifiers inside of an SVG file, and so their order, differ whenever one process draws it again."""
    return {
        name: sorted(re.sub(rb"[0-9a-f]{10}", b"", content).splitlines()) if name.endswith(".svg") else content
        for name, content in files.items()
    }


def test_reports_are_equal_byte_for_byte(folder: Path, bucket: S3, tmp_path: Path) -> None:
    url, pages, printed = f"{bucket.url}/runs", [], []
    for place in (str(folder), url):
        page = tmp_path / "page.html"
        texts = done("report", place, "--html", page).out, done("report", "collapse", place, "--json").out
        printed.append([text.replace(place, "PLACE") for text in texts])
        pages.append(page.read_bytes())
    assert printed[0] == printed[1]
    assert pages[0] == pages[1]
    assert comparable(files_at(url)) == comparable(files_of(folder))


def test_what_cannot_be_reported_is_one_line(bucket: S3, tmp_path: Path) -> None:
    url = f"{bucket.url}/nothing"
    assert_one_line(dhkd("report", url), 1, [f"{url}: expected finished runs of train-student or sweep, found none"])
    assert_one_line(dhkd("report", "collapse", url, "--out", url), 2, [f"--out {url}: expected a path, got a URL"])
    with web(tmp_path) as server:
        assert_one_line(dhkd("serve", f"{server.url}/runs"), 2, ["a place whose files can't be listed"])


def test_the_page_follows_the_url(
    folder: Path, bucket: S3, proxied: Flaky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PLACES, "s3", lambda url: Bucket(url, Patience(retries=0, total_s=5)))
    monkeypatch.setattr(serve, "REFRESH_SECONDS", -1.0)
    pages = Pages(runs_at(f"{bucket.url}/runs"), None)
    first, version = pages.page(), pages.version()
    assert b"4 finished" in first
    write_run(tmp_path / "more", "dhkd", "0.05", 0, 3)
    bucket.fill({f"runs/{key}": content for key, content in files_of(tmp_path / "more").items()})
    assert pages.version() != version
    assert b"5 finished" in (second := pages.page())
    proxied.faults = lambda request: Fault("status", 503)
    assert pages.page() == second, "a URL out of reach is shown as it was"
