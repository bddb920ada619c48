"""Caches and runs are read from a hub: through redirections that expire, refusals for a while, and with a token."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from dhkd.data.cache.blocks import WITNESS
from dhkd.data.cache.reader import open_cache
from dhkd.data.errors import CacheIncomplete, ConfigError, DhkdError, StorageError
from dhkd.data.hub import access_hint, address_of, require_address_of_files, token_for
from dhkd.data.patience import Patience
from dhkd.data.runs.near import FINAL_WEIGHTS
from dhkd.data.runs.place import runs_at
from dhkd.data.storage.places import storage_of
from dhkd.data.storage.sums import SUMS, parsed_sums, sums_text
from dhkd.data.storage.web_server import WebServer

from tests.buckets import near_cache
from tests.caches import complete, manifest_of, writer_at
from tests.hubs import Hub, certified, hub
from tests.samples import files_of

__all__ = ["near_cache"]

REPOSITORY = "datasets/somebody/a-cache"
TOKEN = "hf_for-tests-only"
QUICK = Patience(retries=5, total_s=60, first_wait_s=0.01, longest_wait_s=0.02, connect_s=10, stall_s=20)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which is the one that the environment names; no token is set."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub(tmp_path / "hub") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def written(root: Path, store: str = "zarr") -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Write a cache of two views of 37 samples into the repository; return its logits (2, 37, 200)."""
    writer = writer_at(root / REPOSITORY, manifest_of(37, 200, 2, 20, "float32"), store)
    logits = np.random.default_rng(0).standard_normal((2, 37, 200), np.float32)
    for block in writer.plan.blocks():
        rows = slice(block.start, block.stop)
        witness = np.arange(block.start, block.stop, dtype=np.uint32)
        writer.write(block, {"logits": logits[block.view, rows], WITNESS: witness})
    complete(writer)
    return logits


def quick(url: str) -> WebServer:
    return WebServer(url, QUICK)


def put(served: Hub, name: str, content: bytes, repository: str = REPOSITORY) -> str:
    """Put a file into a repository; return the address of the repository's files."""
    file = served.root / repository / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return f"{served.url}/{repository}/resolve/main"


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_cache_is_read_from_a_hub(served: Hub, store: str) -> None:
    logits = written(served.root, store)
    reader = open_cache(f"{served.url}/{REPOSITORY}/resolve/main")
    assert np.array_equal(np.stack([reader.read_view(view) for view in range(2)]), logits)
    served.refuse, served.expired, served.broken = 1, 2, 1
    assert all(isinstance(result, int) for result in open_cache(f"hf://{REPOSITORY}@v1").damages())
    asked = [request for request in served.requests if request.startswith("elsewhere GET")]
    assert len(asked) >= 8  # the blocks of both arrays
    assert not any(request.startswith("GET") and "/resolve/" not in request for request in served.requests)
    assert served.ranges


def test_a_cache_is_read_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, certificate = certified(tmp_path)
    with hub(tmp_path / "hub", tls) as served:
        logits = written(served.root)
        with pytest.raises(StorageError, match="its certificate is not accepted"):
            open_cache(f"{served.url}/{REPOSITORY}/resolve/main")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        reader = open_cache(f"{served.url}/{REPOSITORY}/resolve/main")
        assert np.array_equal(reader.read_view(1), logits[1])


def test_an_address_that_expired_is_asked_for_anew(served: Hub) -> None:
    storage = quick(put(served, "block", b"x" * 5000))
    served.expired = 3
    assert storage.get("block") == b"x" * 5000
    assert served.requests[f"GET /{REPOSITORY}/resolve/main/block"] == 4


def test_another_host_that_refuses_every_address_is_named(served: Hub) -> None:
    storage = quick(put(served, "block", b"x" * 5000))
    served.expired = 1000
    with pytest.raises(StorageError) as caught:
        storage.get("block")
    assert "no access (403 Forbidden at 127.0.0.1, to which it redirects, asked 4 times)" in str(caught.value)
    assert "Signature" not in str(caught.value)


def test_a_download_that_breaks_off_goes_on(served: Hub) -> None:
    storage = quick(put(served, "block", bytes(range(256)) * 40))
    served.broken = 2
    assert storage.get("block") == bytes(range(256)) * 40
    assert served.ranges == ["bytes=5120-", "bytes=7680-"]


@pytest.mark.parametrize("refusal", [{"RateLimit": '"resolvers";r=0;t=0'}, {"Retry-After": "0"}, {}])
def test_a_hub_that_refuses_for_a_while_is_asked_again(served: Hub, refusal: dict[str, str]) -> None:
    storage = quick(put(served, "index.json", b"{}"))
    served.refuse, served.refusal = 3, refusal
    assert storage.get("index.json") == b"{}"


def test_the_wait_that_a_hub_asks_for_is_told_and_kept(served: Hub, caplog: pytest.LogCaptureFixture) -> None:
    storage = quick(put(served, "index.json", b"{}"))
    served.refuse, served.refusal = 1, {"RateLimit": '"resolvers";r=0;t=1'}
    with caplog.at_level(logging.WARNING, logger="dhkd"):
        assert storage.get("index.json") == b"{}"
    assert "429 Too Many Requests; asking again in 1 s" in caplog.text


def test_a_wait_that_is_too_long_ends_at_once(served: Hub) -> None:
    storage = quick(put(served, "index.json", b"{}"))
    served.refuse, served.refusal = 1000, {"Retry-After": "86400"}
    with pytest.raises(StorageError, match=r"429 Too Many Requests, it asks to wait 86,400 s\)"):
        storage.get("index.json")
    assert sum(served.requests.values()) == 1


def test_a_size_comes_from_the_hub_itself(served: Hub) -> None:
    put(served, "small.json", b"{}")
    storage = quick(put(served, "block", b"x" * 5000))
    assert [storage.size(key) for key in ("block", "small.json", "none", "no/ne")] == [5000, 2, -1, -1]
    assert not any(request.startswith("elsewhere") for request in served.requests)


# tokens


def test_a_token_is_sent_to_the_hub_alone(
    served: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(served, "index.json", b"{}")
    storage = quick(put(served, "block", b"x" * 5000))
    served.tokens[REPOSITORY] = TOKEN
    errors = []
    for token in (None, "hf_another"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(StorageError) as caught:
            storage.get("index.json")
        errors.append(str(caught.value))
    assert "if the repository is private, set HF_TOKEN" in errors[0]
    assert "the token in HF_TOKEN may read the repository" in errors[1]
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    served.authorizations.clear()
    served.expired = served.refuse = 1
    with caplog.at_level(logging.DEBUG):
        assert (storage.get("block"), storage.get("index.json")) == (b"x" * 5000, b"{}")
    assert served.authorizations
    assert all(request.startswith("GET /") and sent == f"Bearer {TOKEN}" for request, sent in served.authorizations)
    assert served.requests[f"elsewhere GET /{REPOSITORY}/block"] == 2
    assert TOKEN not in caplog.text + "".join(errors)


def test_a_token_is_not_sent_to_another_server(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = quick(put(served, "index.json", b"{}"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_ENDPOINT")
    assert storage.get("index.json") == b"{}"
    assert not served.authorizations
    assert access_hint(storage.location) == "check the URL; only what is public can be read"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://huggingface.co/a", True),
        ("https://HUGGINGFACE.co:443/a", True),
        ("http://huggingface.co/a", False),
        ("https://huggingface.co:8443/a", False),
        ("https://cdn.huggingface.co/a", False),
        ("https://huggingface.co.example/a", False),
        ("https://huggingface.co@example.com/a", False),
        ("https://huggingface.co:port/a", False),
    ],
)
def test_only_the_hub_gets_the_token(monkeypatch: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert token_for(urlsplit(url)) == (TOKEN if sent else None)


@pytest.mark.parametrize("token", ["hf_a\r\nX: y", "hf_ä", "hf_a b"])
def test_a_token_that_is_none_is_refused_without_showing_it(
    served: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    storage = quick(put(served, "index.json", b"{}"))
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DhkdError) as caught:
        storage.get("index.json")
    assert str(caught.value).startswith("HF_TOKEN: expected a token")
    assert "hf_" not in str(caught.value)


# addresses


@pytest.mark.parametrize(
    ("short", "address"),
    [
        ("hf://datasets/u/c", "https://huggingface.co/datasets/u/c/resolve/main"),
        ("hf://u/m", "https://huggingface.co/u/m/resolve/main"),
        ("hf://u/m@v1.0/runs/a/", "https://huggingface.co/u/m/resolve/v1.0/runs/a"),
        ("hf://datasets/u/c@refs%2Fpr%2F1", "https://huggingface.co/datasets/u/c/resolve/refs%2Fpr%2F1"),
    ],
)
def test_a_short_address_stands_for_that_of_files(monkeypatch: pytest.MonkeyPatch, short: str, address: str) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert address_of(short) == WebServer(short).address == address
    assert storage_of(short).location == short.rstrip("/")


@pytest.mark.parametrize(
    "short", ["hf://", "hf://u", "hf://spaces/u/m/../x", "hf://datasets/u", "hf://u/m@", "hf://u//m"]
)
def test_what_is_no_repository_is_refused(short: str) -> None:
    with pytest.raises(ConfigError):
        storage_of(short)


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("datasets/u/c", "datasets/u/c/resolve/main"),
        ("datasets/u/c/tree/v1", "datasets/u/c/resolve/v1"),
        ("datasets/u/c/tree/main/caches/a/", "datasets/u/c/resolve/main/caches/a"),
        ("u/m/blob/main/run", "u/m/resolve/main/run"),
        ("u/m", "u/m/resolve/main"),
    ],
)
def test_the_address_of_a_page_is_refused_with_that_of_its_files(served: Hub, page: str, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_of(f"{served.url}/{page}")
    assert str(caught.value).endswith(f"got that of a page; use {served.url}/{address}")
    require_address_of_files(f"{served.url}/{address}")
    require_address_of_files(f"https://example.com/{page}")


def test_a_repository_without_a_cache(served: Hub) -> None:
    address = put(served, "README.md", b"nothing else")
    with pytest.raises(CacheIncomplete, match="expected a dhkd cache, found none"):
        open_cache(address)


# runs


def test_a_run_is_read_by_its_list_of_checksums(served: Hub) -> None:
    files = {"config.yaml": b"run: {}", "metrics.jsonl": b"{}\n", "student.safetensors": b"x" * 5000}
    files |= {"../outside.csv": b"", "/etc/config.yaml": b""}
    for name, content in files.items():
        address = put(served, f"run/{name.strip('./')}", content, "somebody/a-model")
    put(served, f"run/{SUMS}", sums_text(dict.fromkeys(files, "0" * 64)).encode(), "somebody/a-model")
    place = runs_at(f"{address}/run")
    place.refresh(FINAL_WEIGHTS)
    assert files_of(place.folder) == {
        name: files[name] for name in ("config.yaml", "metrics.jsonl", "student.safetensors")
    }


def test_runs_without_a_list_are_refused(served: Hub) -> None:
    address = put(served, "config.yaml", b"run: {}")
    with pytest.raises(ConfigError, match="got a place whose files can't be listed"):
        runs_at(address).refresh()


def test_lines_that_are_no_checksums_are_left_out() -> None:
    sums = {"a b": "0" * 64, "c": "f" * 64}
    assert parsed_sums(sums_text(sums).encode() + b"\xff\n" + b"1" * 64 + b"  \n" + b"zz  d\n") == sums


def test_a_long_patience_is_the_default() -> None:
    assert WebServer("https://h/a").patience.asked_s >= 300  # over which a hub counts
    assert replace(QUICK).asked_s == Patience().asked_s
