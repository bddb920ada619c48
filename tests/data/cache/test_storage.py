"""Every storage keeps the same promises; one that fails is asked again, and named if that doesn't help."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.errors import ConfigError, DhkdError, StorageError
from dhkd.data.hub import HUB
from dhkd.data.patience import PATIENCE, Patience
from dhkd.data.storage.base import Storage
from dhkd.data.storage.bucket import RESUMES, Bucket
from dhkd.data.storage.folder import Folder
from dhkd.data.storage.nearby import Nearby
from dhkd.data.storage.places import PLACES, is_url, storage_of
from dhkd.data.storage.web_server import WebServer
from dhkd.data.web import WEB

from tests.buckets import bucket, proxied, s3_endpoint
from tests.servers import S3, Fault, Flaky, every, flaky, in_order, web

__all__ = ["bucket", "proxied", "s3_endpoint"]

# Quick to ask again, but not so impatient that a busy machine is taken for a store that stalls.
QUICK = Patience(retries=4, total_s=60, first_wait_s=0.01, longest_wait_s=0.04, connect_s=10, stall_s=20)
IMPATIENT = replace(QUICK, stall_s=0.5)
KEYS = ["a", "nested/deep/b.bin", "with space/ü%20+&=#?.json", "0/0.0.0", "~x/_-.(1)'"]


@pytest.fixture
def s3(bucket: S3) -> S3:
    return bucket


def nearby(storage: Storage, folder: Path, keep_bytes: int = 10**9) -> Nearby:
    return Nearby(storage, BoundedCopies(folder, keep_bytes))


# what every storage promises


@dataclass(frozen=True)
class Place:
    """A storage under test, and one that can write to it: itself, or for a web server the folder that it shows."""

    storage: Storage
    writer: Storage


@contextmanager
def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    if kind == "folder":
        storage: Storage = Folder(folder / "cache")
        yield Place(storage, storage)
    elif kind == "http":
        (folder / "shown" / "a cache").mkdir(parents=True)
        with web(folder / "shown") as server:
            yield Place(WebServer(f"{server.url}/a cache", QUICK), Folder(folder / "shown" / "a cache"))
    else:
        storage = Bucket(f"{request.getfixturevalue('s3').url}/pre fix%20/c.zarr", QUICK)
        if kind == "s3 nearby":
            storage = nearby(storage, folder / "copies")
        yield Place(storage, storage)


@pytest.fixture(params=["folder", "s3", "s3 nearby", "http"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, request, tmp_path) as place:
        yield place


@pytest.fixture(params=["folder", "s3", "s3 nearby"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """One that can be written to."""
    with place_of(request.param, request, tmp_path) as place:
        yield place.storage


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "one", "a megabyte"])
@pytest.mark.parametrize("key", KEYS)
def test_what_was_put_is_got(place: Place, key: str, content: bytes) -> None:
    assert place.writer.put(key, content, replace=False)
    got = place.storage.get(key)
    assert (type(got), got) == (bytes, content)
    assert place.storage.size(key) == len(content)


@pytest.mark.parametrize("key", [*KEYS, "nested", "nested/deep"])
def test_a_missing_object_is_reported(place: Place, key: str) -> None:
    if key not in KEYS:
        place.writer.put("nested/deep/b.bin", b"x", replace=True)
    assert place.storage.size(key) == -1
    with pytest.raises(FileNotFoundError) as caught:
        place.storage.get(key)
    assert not isinstance(caught.value, DhkdError)
    assert "\n" not in str(caught.value)
    assert key in str(caught.value)


def test_all_objects_are_listed_with_their_sizes(place: Place) -> None:
    if isinstance(place.storage, WebServer):
        assert place.storage.sizes() is None
        return
    assert place.storage.sizes() == {}
    for length, key in enumerate(KEYS):
        place.writer.put(key, b"x" * length, replace=True)
    assert place.storage.sizes() == {key: length for length, key in enumerate(KEYS)}


def test_an_object_is_replaced_only_on_request(storage: Storage) -> None:
    assert storage.put("a/b", b"first", replace=False) is True
    assert storage.put("a/b", b"second", replace=False) is False
    assert storage.put("a/b", b"first", replace=False) is False
    assert storage.get("a/b") == b"first"
    assert storage.put("a/b", b"third", replace=True) is True
    assert storage.get("a/b") == b"third"
    assert storage.put("c", b"new", replace=True) is True


def test_what_is_deleted_is_gone(storage: Storage) -> None:
    for key in ("a/b", "a/c"):
        storage.put(key, b"x", replace=True)
    storage.delete("a/b")
    assert storage.sizes() == {"a/c": 1}
    storage.delete("a/b")
    storage.delete("never/was")
    assert storage.put("a/b", b"again", replace=False)


def test_of_many_writers_one_makes_the_object(storage: Storage) -> None:
    contents = [bytes([writer]) * 100_000 for writer in range(8)]
    for round_ in range(5):
        ready, made = threading.Barrier(len(contents)), [False] * len(contents)

        def write(writer: int, key: str, ready: threading.Barrier = ready, made: list[bool] = made) -> None:
            ready.wait()
            made[writer] = storage.put(key, contents[writer], replace=False)

        threads = [threading.Thread(target=write, args=(writer, f"n/{round_}")) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(made) == 1
        assert storage.get(f"n/{round_}") == contents[made.index(True)]


def test_threads_share_a_storage(place: Place) -> None:
    for number in range(8):
        place.writer.put(f"n/{number}", bytes([number]) * 1000, replace=True)
    got: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda number=number: got.update({number: place.storage.get(f"n/{number}")}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: bytes([number]) * 1000 for number in range(8)}


# a bucket


def test_a_listing_has_more_than_a_page_and_nothing_beside_the_prefix(s3: S3, proxied: Flaky) -> None:
    inside = {f"{number % 7}/{number:04}": b"x" * (number % 3) for number in range(1203)}
    s3.fill({f"pre/{key}": content for key, content in inside.items()})
    s3.fill({"prefix": b"x", "pre.json": b"x", "other/pre/a": b"x"})
    assert Bucket(f"{s3.url}/pre/", QUICK).sizes() == {key: len(content) for key, content in inside.items()}
    assert proxied.count("GET") == 2
    assert len(Bucket(s3.url, QUICK).sizes() or ()) == 1206


def test_a_bucket_may_be_pickled_and_needs_no_slash_at_the_end(s3: S3) -> None:
    bucket = Bucket(f"{s3.url}/a/", QUICK)
    bucket.put("k", b"x", replace=False)
    again = pickle.loads(pickle.dumps(bucket))
    assert (again.location, again.patience, again.get("k")) == (f"{s3.url}/a", QUICK, b"x")
    assert Bucket(s3.url + "/", QUICK).get("a/k") == b"x"


def test_large_objects_are_uploaded_whole(s3: S3, proxied: Flaky) -> None:
    """Above 5 MB, objects that replace others are sent in parts."""
    content = os.urandom(12_000_000)
    bucket = Bucket(s3.url, QUICK)
    assert bucket.put("created", content, replace=False)
    proxied.faults = every(3, Fault("status", 503), "PUT")
    assert bucket.put("replaced", content, replace=True)
    assert bucket.get("created") == bucket.get("replaced") == content
    assert bucket.sizes() == {"created": len(content), "replaced": len(content)}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_the_endpoint_comes_from_the_environment(s3: S3, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, s3.endpoint)
    assert Bucket(s3.url, QUICK).put("k", b"x", replace=False)


# stores that fail

FAULTS = [
    Fault("status", 500),
    Fault("status", 503),
    Fault("status", 429),
    Fault("drop"),
    Fault("lose"),
    Fault("reply", 500),
    Fault("truncate", 20),
    Fault("delay", 1.0),  # longer than IMPATIENT waits
]


def some(fault: Fault) -> list[Fault]:
    """More of them than the library handles by itself, except those that take long."""
    return [fault] * (2 if fault.kind == "delay" else RESUMES + 2)


def patience_for(fault: Fault) -> Patience:
    """One that gives up on a delay."""
    return IMPATIENT if fault.kind == "delay" else QUICK


METHODS: dict[str, Callable[[Storage], object]] = {
    "get": lambda storage: storage.get("here"),
    "size": lambda storage: storage.size("here"),
    "sizes": lambda storage: storage.sizes(),
    "create": lambda storage: storage.put("created", b"y" * 1000, replace=False),
    "replace": lambda storage: storage.put("here", b"y" * 1000, replace=True),
    "delete": lambda storage: storage.delete("here"),
}
ANSWERS = {"get": b"x" * 1000, "size": 1000, "sizes": {"here": 1000}, "create": True, "replace": True, "delete": None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_store_that_fails_for_a_while_is_asked_again(s3: S3, proxied: Flaky, fault: Fault, method: str) -> None:
    bucket = Bucket(f"{s3.url}/p", patience_for(fault))
    bucket.put("here", b"x" * 1000, replace=False)
    asked = proxied.count()
    proxied.faults = in_order(some(fault))
    assert METHODS[method](bucket) == ANSWERS[method]
    proxied.faults = in_order([])
    assert proxied.count() > asked + (fault.kind != "truncate"), "nothing went wrong"
    after = {"create": {"here": 1000, "created": 1000}, "delete": {}}
    assert bucket.sizes() == after.get(method, {"here": 1000})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_web_server_that_fails_for_a_while_is_asked_again(tmp_path: Path, fault: Fault) -> None:
    content = os.urandom(100_000)
    (tmp_path / "here").write_bytes(content)
    with web(tmp_path) as server, flaky(server.url, in_order(some(fault))) as proxy:
        assert WebServer(proxy.url, patience_for(fault)).get("here") == content
        assert proxy.count() == len(some(fault)) + 1


def test_many_requests_to_a_store_that_often_fails(s3: S3, proxied: Flaky) -> None:
    bucket, contents = Bucket(s3.url, QUICK), {f"k/{number}": os.urandom(500) for number in range(20)}
    proxied.faults = every(3, Fault("drop"))
    for key, content in contents.items():
        assert bucket.put(key, content, replace=False)
    assert {key: bucket.get(key) for key in contents} == contents
    assert proxied.count() > 50


@pytest.mark.parametrize("fault", [Fault("lose"), Fault("reply", 500), Fault("delay", 1.0)], ids=str)
def test_a_creation_whose_answer_was_lost_is_distinguished_from_another_writers(
    s3: S3, proxied: Flaky, fault: Fault
) -> None:
    bucket = Bucket(s3.url, patience_for(fault))
    proxied.faults = in_order([fault], "PUT")
    assert bucket.put("new", b"mine", replace=False) is True
    bucket.put("another's", b"them", replace=True)
    proxied.faults = in_order([fault], "PUT")
    assert bucket.put("another's", b"mine", replace=False) is False
    assert bucket.get("another's") == b"them"


def test_a_conflict_that_made_nothing_is_no_object(s3: S3, proxied: Flaky) -> None:
    proxied.faults = in_order([Fault("status", 409)], "PUT")
    assert Bucket(s3.url, QUICK).put("k", b"x", replace=False) is True
    assert Bucket(s3.url, QUICK).get("k") == b"x"


@pytest.mark.parametrize("source", ["the store", "the environment"])
def test_a_store_that_can_not_create_is_asked_what_is_there(
    s3: S3, proxied: Flaky, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    bucket = Bucket(s3.url, QUICK)
    if source == "the store":
        proxied.faults = in_order([Fault("status", 501)] * (RESUMES + 1), "PUT")
    else:
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    assert bucket.put("k", b"first", replace=False) is True
    assert bucket.put("k", b"second", replace=False) is False
    assert bucket.get("k") == b"first"
    assert proxied.count("PUT") == (RESUMES + 2 if source == "the store" else 1)


def refused(ask: Callable[[], object], *parts: str) -> str:
    """The message of the `StorageError` that this soon raises: one line that has all these parts."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        ask()
    message = str(caught.value)
    assert time.monotonic() - start < 30, "usually a store is asked for longer than that"
    assert "\n" not in message
    assert len(message) < 600
    assert [part for part in parts if part not in message] == [], message
    return message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status", 503), "can't be reached (503 Service Unavailable, asked 5 times)"),
        (Fault("drop"), "can't be reached ("),
        (Fault("status", 403), "no access (403 Forbidden)"),
        (Fault("status", 400), "refused (400 Bad Request)"),
    ],
    ids=str,
)
def test_a_store_that_always_fails_is_named(s3: S3, proxied: Flaky, fault: Fault, reason: str, method: str) -> None:
    bucket = Bucket(f"{s3.url}/p", QUICK)
    proxied.faults = every(1, fault)
    refused(lambda: METHODS[method](bucket), f"{s3.url}/p", reason, "AWS_ENDPOINT_URL")
    if fault.amount in (400, 403):
        assert proxied.count() == 1
    else:
        assert QUICK.retries < proxied.count() <= (QUICK.retries + 1) * (RESUMES + 1)


def test_a_server_that_is_not_there_is_named() -> None:
    url = "http://127.0.0.1:1/a"
    reason = f"{url}/k/1: can't be reached (Connection refused, asked 5 times); check the network"
    refused(lambda: WebServer(url, QUICK).get("k/1"), reason, "run the same command again")


def test_a_web_server_that_stalls_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"x")
    with web(tmp_path) as server, flaky(server.url, every(1, Fault("delay", 2))) as proxy:
        refused(lambda: WebServer(proxy.url, replace(QUICK, stall_s=0.2)).get("k"), f"{proxy.url}/k: can't be reached")


def test_usually_a_store_is_asked_again_for_minutes() -> None:
    assert (PATIENCE.retries, PATIENCE.total_s) == (14, 180)
    assert 60 < sum(PATIENCE.waits()) < PATIENCE.total_s


def test_waiting_for_a_store_is_seen(
    s3: S3, proxied: Flaky, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    bucket = Bucket(s3.url, replace(PATIENCE, retries=10, longest_wait_s=2))
    proxied.faults = every(1, Fault("status", 503))
    with caplog.at_level("WARNING"):
        refused(lambda: bucket.get("k"), "asked 11 times")
    lines = [record.getMessage() for record in caplog.records if record.name == "dhkd"]
    assert len(lines) == 6, "as many waits are longer than a second"
    assert set(lines) <= {f"{s3.url}/k: 503 Service Unavailable; asking again in {wait} s" for wait in (1, 2)}


@pytest.mark.parametrize("method", METHODS)
def test_wrong_credentials_are_named(s3: S3, method: str) -> None:
    with s3.asking_for_known_keys():
        message = refused(lambda: METHODS[method](Bucket(f"{s3.url}/p", QUICK)), "no access (403 Forbidden")
    assert message.startswith(f"{s3.url}/p")
    assert "AWS_ACCESS_KEY_ID" in message
    assert "secret" not in message


def test_missing_credentials_are_named(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    message = refused(lambda: Bucket(s3.url, QUICK).get("k"), f"{s3.url}/k: no access (", "AWS_ACCESS_KEY_ID")
    assert "asked" not in message, "asking again doesn't help here"


def test_a_missing_azure_account_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    refused(lambda: Bucket("az://container/p", QUICK).get("k"), "az://container/p: no access", "AZURE_STORAGE_ACCOUNT")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "size"])
def test_a_bucket_that_is_not_there_is_named(s3: S3, method: str) -> None:
    message = refused(lambda: METHODS[method](Bucket("s3://no-such-bucket/p", QUICK)), "no bucket no-such-bucket")
    assert message.startswith("s3://no-such-bucket/p")


def test_the_size_of_an_object_in_no_bucket_is_that_of_none(s3: S3) -> None:
    """The answer to HEAD has no body that could say so."""
    assert Bucket("s3://no-such-bucket/p", QUICK).size("k") == -1


def test_a_web_server_is_only_read(tmp_path: Path) -> None:
    with web(tmp_path) as server:
        bucket = WebServer(f"{server.url}/c", QUICK)
        for ask in (lambda: bucket.put("k", b"x", replace=True), lambda: bucket.delete("k")):
            refused(ask, f"{server.url}/c/k: a web server is only read; write to a folder or to a bucket (s3://")
        assert server.count() == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://host/a", "got ftp"),
        ("file:///a", "got file"),
        ("s3://", "expected s3://, then a bucket, got none"),
        ("https:///a", "expected https://, then a host"),
        ("https://host/a?X-Signature=hidden", "without ? and #"),
        ("s3://bucket/a#hidden", "without ? and #"),
        ("https://user:hidden@host/a", "a user's name or password"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/a/../b", "single slashes"),
    ],
)
def test_an_impossible_url_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage_of(url)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_every_scheme_of_the_table_is_a_url_and_anything_else_a_folder_or_refused(tmp_path: Path) -> None:
    for scheme in PLACES:
        assert is_url(f"{scheme}://host/a")
        assert isinstance(storage_of(f"{scheme.upper()}://host/a"), WebServer if scheme in (*WEB, HUB) else Bucket)
    assert not is_url(tmp_path)
    assert isinstance(storage_of(tmp_path), Folder)
    with pytest.raises(ConfigError, match=r"^ftp://host/a: expected a folder, or a URL .* s3://.*hf://; got ftp$"):
        storage_of("ftp://host/a")


def test_without_obstore_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"^s3://b/p: expected obstore .* 'dhkd\[remote\]'$"):
        Bucket("s3://b/p")


FORKS = """
import os, pickle, signal, sys
from dhkd.data.storage.bucket import Bucket
from dhkd.data.errors import StorageError

bucket = Bucket(sys.argv[1])

def forked(ask):
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # it would hang
        print(ask(), flush=True)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def refused():
    try:
        return bucket.get("k")
    except StorageError as error:
        return error

print(forked(lambda: bucket.get("k")), flush=True)
print(forked(lambda: pickle.loads(pickle.dumps(bucket)).get("k")), flush=True)
print(bucket.get("k"), flush=True)
print(forked(refused), flush=True)
print(forked(lambda: "nothing asked"), flush=True)
print(bucket.get("k"), flush=True)
"""


def test_a_fork_can_ask_unless_its_parent_had(s3: S3) -> None:
    Bucket(f"{s3.url}/p", QUICK).put("k", b"x", replace=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORKS, f"{s3.url}/p"], capture_output=True, text=True, timeout=240, check=True
    )
    refusal = f"{s3.url}/p: this process was forked from one that had asked a store by URL already"
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(refusal)] == [
        *["b'x'", "0"] * 2,
        "b'x'",
        "0",
        "nothing asked",
        "0",
        "b'x'",
    ]
    assert lines[5].startswith(refusal)


# nearby


def checksum(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:4])


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


@dataclass(frozen=True)
class Kept:
    """Objects of a bucket, of which copies are kept."""

    bucket: Bucket
    proxy: Flaky
    folder: Path

    def put(self, key: str, content: bytes) -> None:
        self.bucket.put(key, content, replace=True)

    def get(self, key: str, content: bytes, keep_bytes: int = 10**9) -> bytes:
        """Ask for the object, which is to hold this content."""
        storage = nearby(self.bucket, self.folder, keep_bytes)
        return storage.get_checked(key, len(content), checksum(content), lambda got: got == content)

    @property
    def fetched(self) -> int:
        return self.proxy.count("GET")


@pytest.fixture
def kept(s3: S3, proxied: Flaky, tmp_path: Path) -> Kept:
    return Kept(Bucket(f"{s3.url}/c", QUICK), proxied, tmp_path / "copies")


def test_an_object_is_fetched_once(kept: Kept) -> None:
    for key, content in (("a", b"one"), ("b/c", b"two"), ("empty", b"")):
        kept.put(key, content)
        assert [kept.get(key, content) for _ in range(3)] == [content] * 3
    assert kept.fetched == 3
    assert len(copies(kept.folder)) == 3


def test_what_was_replaced_is_fetched_anew(kept: Kept) -> None:
    kept.put("a", b"old")
    assert kept.get("a", b"old") == b"old"
    kept.put("a", b"new")
    storage = nearby(kept.bucket, kept.folder)
    assert storage.get_checked("a", 3, checksum(b"new")) == b"new", (
        "although it has the same size, and its content is not looked at"
    )


def test_another_place_has_other_copies(kept: Kept, s3: S3) -> None:
    other = Kept(Bucket(f"{s3.url}/d", QUICK), kept.proxy, kept.folder)
    for place in (kept, other):
        place.put("a", b"same")
        assert place.get("a", b"same") == b"same"
    assert kept.fetched == 2


def test_copies_are_bounded_and_the_longest_unused_go_first(kept: Kept) -> None:
    contents = {key: key.encode() * 100 for key in "abcd"}
    for key, content in contents.items():
        kept.put(key, content)
    for key in "abc":
        kept.get(key, contents[key], keep_bytes=300)
    for age, path in enumerate(sorted(copies(kept.folder), key=lambda path: path.read_bytes(), reverse=True)):
        os.utime(path, (1000 + age, 1000 + age))  # c is oldest now
    kept.get("c", contents["c"], keep_bytes=300)
    kept.get("d", contents["d"], keep_bytes=300)
    assert {path.read_bytes() for path in copies(kept.folder)} == {contents[key] for key in "acd"}
    assert kept.fetched == 4
    assert len(list(kept.folder.iterdir())) == 6, "what is gone leaves no lock"


def test_one_copy_is_kept_where_none_fits(kept: Kept) -> None:
    for key in ("a", "b"):
        kept.put(key, b"x" * 100)
        assert kept.get(key, b"x" * 100, keep_bytes=0) == b"x" * 100
    assert len(copies(kept.folder)) == 1


@pytest.mark.parametrize("damage", [b"", b"one", b"wrong size", b"ONE!"])
def test_a_damaged_copy_is_fetched_anew(kept: Kept, damage: bytes) -> None:
    kept.put("a", b"one!")
    kept.get("a", b"one!")
    (copy,) = copies(kept.folder)
    copy.write_bytes(damage)
    assert [kept.get("a", b"one!") for _ in range(2)] == [b"one!"] * 2
    assert kept.fetched == 2
    assert [path.read_bytes() for path in copies(kept.folder)] == [b"one!"]


def test_a_size_alone_is_checked_too(kept: Kept) -> None:
    kept.put("a", b"one!")
    storage = nearby(kept.bucket, kept.folder)
    storage.get_checked("a", 4, 7)
    (copy,) = copies(kept.folder)
    copy.write_bytes(b"one")
    assert storage.get_checked("a", 4, 7) == b"one!"


def test_an_object_that_is_not_as_promised_is_given_and_not_kept(kept: Kept) -> None:
    kept.put("a", b"damaged")
    assert kept.get("a", b"promised") == b"damaged"
    assert copies(kept.folder) == []
    kept.put("a", b"promised")
    assert kept.get("a", b"promised") == b"promised"


def test_what_can_not_be_fetched_leaves_nothing(kept: Kept) -> None:
    with pytest.raises(FileNotFoundError):
        kept.get("a", b"x")
    kept.proxy.faults = every(1, Fault("status", 503))
    refused(lambda: kept.get("a", b"x"), "can't be reached")
    assert copies(kept.folder) == []
    kept.proxy.faults = in_order([])
    kept.put("a", b"x")
    assert kept.get("a", b"x") == b"x"


def test_threads_fetch_an_object_once(kept: Kept) -> None:
    kept.put("a", b"x" * 1000)
    kept.proxy.faults = every(1, Fault("delay", 0.2))
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(kept.get("a", b"x" * 1000))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"x" * 1000] * 6
    assert kept.fetched == 1


FETCH = """
import sys
from pathlib import Path
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.nearby import Nearby
from dhkd.data.disk.copies import BoundedCopies

nearby = Nearby(Bucket(sys.argv[1]), BoundedCopies(Path(sys.argv[2]), 10**9))
print(nearby.get_checked("a", 1000, int(sys.argv[3])) == b"x" * 1000)
"""


def test_processes_share_the_copies(kept: Kept) -> None:
    content = b"x" * 1000
    kept.put("a", content)
    kept.proxy.faults = every(1, Fault("delay", 0.5))
    command = [sys.executable, "-P", "-c", FETCH, kept.bucket.location, str(kept.folder), str(checksum(content))]
    fetchers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [fetcher.communicate(timeout=240)[0] for fetcher in fetchers] == ["True\n"] * 2
    assert kept.fetched == 1
    assert kept.get("a", content) == content
    assert kept.fetched == 1
