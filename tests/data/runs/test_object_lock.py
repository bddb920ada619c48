"""The lock of a run at a URL: one holder at a time, and free again however the holder ended."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dhkd.data.errors import RunTaken, StorageError
from dhkd.data.patience import PATIENCE
from dhkd.data.runs import object_lock
from dhkd.data.runs.object_lock import held_at
from dhkd.data.storage.base import Storage
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.folder import Folder

from tests.buckets import bucket, near_cache, proxied, s3_endpoint
from tests.servers import S3, Fault, Flaky, every

__all__ = ["bucket", "near_cache", "proxied", "s3_endpoint"]

HOLDER = "import sys, time; from dhkd.data.runs.object_lock import held_at\n"
HOLDER += "from dhkd.data.storage.places import storage_of\n"
HOLDER += "with held_at(storage_of(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Objects that are created by one writer only."""
    return Folder(tmp_path / "run") if request.param == "folder" else Bucket(request.getfixturevalue("bucket").url)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds shorter than those for real machines."""
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(object_lock, "SILENT_SECONDS", 0.5)


def refusal(storage: Storage) -> str:
    with pytest.raises(RunTaken) as caught, held_at(storage):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def keys(storage: Storage) -> list[str]:
    return sorted(storage.sizes() or {})


def test_one_holder_at_a_time_also_in_one_process(storage: Storage) -> None:
    for _ in range(2):
        with held_at(storage) as lock:
            assert keys(storage) == ["lock.1"]
            assert f"run at {storage.location}: expected nobody to train there, got process" in refusal(storage)
            lock.require()
        assert keys(storage) == []


def test_a_killed_process_leaves_the_lock_free(bucket: S3) -> None:
    """At once, on its own machine."""
    holder = subprocess.Popen([sys.executable, "-P", "-c", HOLDER, bucket.url], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        storage = Bucket(bucket.url)
        assert f"got process {holder.pid} on" in refusal(storage)
    finally:
        holder.kill()
        holder.communicate()
    with held_at(storage):
        assert keys(storage) == ["lock.2"]
    assert keys(storage) == []


def left(storage: Storage, **changes: Any) -> str:
    """Leave the lock of another machine's process behind, and return the key of its second object."""
    with held_at(storage):
        content = json.loads(storage.get("lock.1"))
    content |= {"machine": "another boot", "token": "stranger", **changes}
    storage.put("lock.1", json.dumps(content).encode() + b"\n", replace=True)
    return "lock.1.stranger"


@pytest.mark.parametrize("beats", [0, 3])
def test_a_stranger_that_is_silent_is_dead(beats: int, quick: None, storage: Storage) -> None:
    beat = left(storage)
    if beats:
        storage.put(beat, b"3", replace=True)
    with held_at(storage):
        # The new holder's second object may be there already, or be in the making.
        assert {".".join(key.split(".")[:2]) for key in keys(storage)} == {"lock.2"}
    assert keys(storage) == []


def test_a_stranger_that_goes_on_writing_lives(quick: None, monkeypatch: pytest.MonkeyPatch, storage: Storage) -> None:
    monkeypatch.setattr(object_lock, "SILENT_SECONDS", 20)
    monkeypatch.setattr(object_lock, "LOOKS", 200)
    beat, ended = left(storage), threading.Event()

    def write() -> None:
        number = 0
        while not ended.wait(0.05):
            storage.put(beat, str(number := number + 1).encode(), replace=True)

    beats = threading.Thread(target=write)
    beats.start()
    try:
        assert "expected nobody to train there" in refusal(storage)
    finally:
        ended.set()
        beats.join()


def test_what_another_version_wrote_is_not_taken_for_dead(storage: Storage) -> None:
    left(storage, further=1)
    assert "a process that says nothing about itself in lock.1" in refusal(storage)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("never")


def test_a_holder_shows_that_it_lives(quick: None, storage: Storage) -> None:
    def beats() -> list[str]:
        return [key for key in keys(storage) if key.startswith("lock.1.")]

    with held_at(storage):
        until(lambda: len(beats()) == 1)
        first = storage.get(beats()[0])
        until(lambda: storage.get(beats()[0]) != first)
    assert keys(storage) == []


def test_of_many_that_begin_at_once_at_most_one_gets_it(storage: Storage) -> None:
    barrier, won = threading.Barrier(6), []
    with ExitStack() as stack:

        def begin() -> None:
            barrier.wait()
            try:
                stack.enter_context(held_at(storage))
            except RunTaken:
                return
            won.append(1)

        threads = [threading.Thread(target=begin) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_a_holder_that_stood_still_too_long_writes_no_more(storage: Storage) -> None:
    """Its machine was suspended, so that another machine took it for dead."""
    with held_at(storage) as first:
        content = json.loads(storage.get("lock.1"))
        storage.delete("lock.1")
        storage.put("lock.1", json.dumps({**content, "token": "other"}).encode(), replace=False)
        with pytest.raises(RunTaken, match=r"expected its lock lock\.1, found none: another process took the run"):
            first.require()
    assert keys(storage) == ["lock.1"], "the other's lock stays"


def test_a_store_that_refuses_for_a_while_doesnt_end_the_lock(quick: None, proxied: Flaky, bucket: S3) -> None:
    storage = Bucket(bucket.url, replace(PATIENCE, retries=1, first_wait_s=0.01))
    with held_at(storage) as lock:
        proxied.faults = every(1, Fault("status", 503))
        with pytest.raises(StorageError, match="can't be reached"):
            lock.require()
        proxied.faults = lambda request: None
        lock.require()
    assert keys(storage) == []
