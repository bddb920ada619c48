"""Buckets of one server like S3 for tests of runs at URLs, each reached through a proxy that counts and fails."""

import os
from collections.abc import Iterator

import pytest

from tests.conformance.places import s3_endpoint
from tests.servers import S3, Flaky, flaky, make_bucket

__all__ = ["bucket", "near_cache", "proxied", "s3_endpoint"]


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket, and the environment that leads to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    bucket = make_bucket(s3_endpoint)
    for name, value in bucket.env().items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def proxied(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """The way to the bucket: a proxy that counts requests, and fails on demand."""
    with flaky(bucket.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(autouse=True)
def near_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's cache folder for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
