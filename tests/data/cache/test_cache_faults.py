"""However a cache is interrupted or damaged, it is never taken for a finished one, and writing again finishes it.

Writers run in forks of the test's process, where a hook sees every change of the file system before it happens.
"""

import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dhkd.data.cache.blocks import WITNESS, Block
from dhkd.data.cache.find import find
from dhkd.data.cache.layouts import layout_of
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheDamaged, CacheIncomplete, StorageError
from dhkd.data.patience import Patience
from dhkd.data.storage.base import LARGEST_OBJECT
from dhkd.data.storage.bucket import Bucket
from dhkd.data.storage.folder import Folder

from tests import caches, servers
from tests.caches import complete, damages_of, writer_at
from tests.disks import small_disk
from tests.few import few
from tests.servers import Fault, Flaky, every
from tests.soak import kills

SAMPLES, CLASSES, VIEWS, BLOCK_ROWS = 5, 3, 2, 3
STORES = ("zarr", "webdataset")
NOBODY = 65534
CHANGES = {"os.mkdir": 0, "os.link": 1, "os.rename": 1, "os.remove": 0}  # event: which argument is the changed path


def manifest_of(views: int = VIEWS, *signals: str) -> Manifest:
    described = dict.fromkeys(signals or ["logits"], ("float16", (CLASSES,)))
    return caches.manifest_of(SAMPLES, CLASSES, views, BLOCK_ROWS, signals=described)


# What is done to a cache: the manifest that it has before, if any, and the one that is wanted.
STEPS: dict[str, tuple[Manifest | None, Manifest]] = {
    "begun": (None, manifest_of()),
    "more views": (manifest_of(1), manifest_of(2)),
    "another signal": (manifest_of(1), manifest_of(1, "b.logits")),
}

every_store = pytest.mark.parametrize("store", STORES)
every_step = pytest.mark.parametrize("step", STEPS)


def values_of(block: Block, name: str) -> np.ndarray:
    """Values that differ by signal, view, index and class, and that float16 represents exactly."""
    index = np.arange(block.start, block.stop)
    values = 1 + block.view * 100 + index[:, None] + np.arange(CLASSES) / 8
    return (-values if name == "b.logits" else values).astype(np.float32)


def rows_of(block: Block, signals: list[str]) -> dict[str, np.ndarray]:
    witness = (np.arange(block.start, block.stop) * 7 + block.view).astype(np.uint32)
    return {**{name: values_of(block, name) for name in signals}, WITNESS: witness}


def write(place: Path | str, store: str, manifest: Manifest) -> list[Block]:
    """Begin, write what is missing, check, finish; the blocks that were missing."""
    return write_with(writer_at(place, manifest, store))


def write_with(writer: LogitWriter) -> list[Block]:
    missing = writer.missing()
    for block in missing:
        writer.write(block, rows_of(block, writer.signals))
    complete(writer)
    return missing


def read_all(reader: LogitReader) -> None:
    """Every value, each of which has to be right."""
    for block in reader.plan.blocks():
        for name in reader.manifest.signals:
            indices = np.arange(block.start, block.stop)
            assert (reader.read(block.view, indices, name) == values_of(block, name)).all()
        assert (reader.witness(block) == rows_of(block, [])[WITNESS]).all()
    assert damages_of(reader) == []


def read_or_incomplete(place: Path | str, *, complete_before: bool) -> bool:
    """Whether the cache can be read: if so, all values have to be right; it has to be, if it was complete before."""
    try:
        reader = open_cache(place)
    except CacheIncomplete:
        assert not complete_before
        return False
    read_all(reader)
    return True


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file except what kills leave behind."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".partial"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def partials_of(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def blocks_there(place: Path, store: str, manifest: Manifest) -> tuple[set[Block], dict[str, int]]:
    """The finished blocks, and the inode of every whole object's file."""
    layout, folder, blocks, files = layout_of(store, manifest), Folder(place), set[Block](), dict[str, int]()
    for block in manifest.plan.blocks():
        objects = {key: size for name in manifest.names for key, size in layout.objects(name, block).items()}
        whole = [key for key, size in objects.items() if folder.size(key) == size]
        files |= {key: (place / key).stat().st_ino for key in whole}
        if len(whole) == len(objects):
            blocks.add(block)
    return blocks, files


def in_fork(work: Callable[[], object]) -> int:
    """The exit code of a fork that does this: an `OSError`'s number, or negative if a signal ended it."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 255
    try:
        work()
        code = 0
    except OSError as error:
        code = error.errno or 254
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def watch(folder: Path, changing: Callable[[str], None]) -> None:
    """Call `changing` with the event's name before each change below the folder. It can't be undone: use a fork."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = arguments[0]
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        else:
            return
        if isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(folder):
            changing(event)

    sys.addaudithook(hook)


def interrupted(folder: Path, work: Callable[[], object], at: int, error: int | None) -> int:
    """Do this in a fork that makes `at` changes, and is then killed, or fails at every further one except removals."""

    def start() -> None:
        seen = 0

        def changing(event: str) -> None:
            nonlocal seen
            seen += 1
            if seen > at and error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if seen > at and error is not None and event != "os.remove":
                raise OSError(error, os.strerror(error))

        watch(folder, changing)
        work()

    return in_fork(start)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if the machine has one: on a disk, these tests would mostly wait for it."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def finished(memory: Path, store: str, step: str) -> dict[str, bytes]:
    """The files of a cache that nothing interrupted."""
    before, wanted = STEPS[step]
    if before:
        write(memory / "finished", store, before)
    write(memory / "finished", store, wanted)
    return files_of(memory / "finished")


def prepared(cache: Path, store: str, step: str) -> Manifest:
    """Write what the cache holds before; the manifest of what is wanted."""
    before, wanted = STEPS[step]
    if before:
        write(cache, store, before)
    return wanted


def whole_manifest(step: str) -> Manifest:
    before, wanted = STEPS[step]
    return before.extended_by(wanted, "") if before else wanted


def finish(cache: Path, store: str, step: str, finished: dict[str, bytes]) -> None:
    """Check that the same call finishes an interrupted cache, and leaves what was done as it is."""
    whole = whole_manifest(step)
    done, files = blocks_there(cache, store, whole)
    missing = write(cache, store, STEPS[step][1])
    assert not set(missing) & done, "a finished block was put again"
    still = blocks_there(cache, store, whole)[1]
    assert {key: still[key] for key in files} == files, "a whole object was replaced"
    assert files_of(cache) == finished


# at every change of the file system

# What happens to a change: the writer is killed, or the system refuses this change and all further ones.
ERRORS = {"killed": None, "refused": errno.ENOSPC}


# Both stores are begun; what an existing cache adds is tested with one store each, and the other pairs in the soak.
@pytest.mark.parametrize(
    ("store", "step", "how", "every"),
    few(
        product(STORES, STEPS, ERRORS, [1, 5]),
        [
            *(("zarr", step, "killed", 5) for step in ("begun", "another signal")),
            *(("webdataset", step, "killed", 5) for step in ("begun", "more views")),
            *(("zarr", "begun", "refused", 5), ("webdataset", "more views", "refused", 5)),
        ],
    ),
)
def test_any_change_may_be_the_last(
    store: str, step: str, how: str, every: int, finished: dict[str, bytes], memory: Path
) -> None:
    error, opened = ERRORS[how], []
    for at in range(0, 1000, every):
        cache = memory / f"{at}" / "cache"
        wanted = prepared(cache, store, step)
        code = interrupted(cache, lambda cache=cache, wanted=wanted: write(cache, store, wanted), at, error)
        opened.append(read_or_incomplete(cache, complete_before=step != "begun"))
        assert len(partials_of(cache)) <= (error is None)
        for key, content in files_of(cache).items():
            metadata = key == "index.json" or key.endswith(("zarr.json", "manifest.json"))
            assert metadata or content == finished[key], f"{key} is half written"
        if code == 0:
            assert files_of(cache) == finished
            break
        assert code == (-signal.SIGKILL if error is None else error)
        finish(cache, store, step, finished)
    # A few changes for each object: more would be unexpected changes, fewer would be changes that the hook misses.
    assert len(finished) < every * len(opened) < 6 * len(finished)
    assert opened[-1]
    if step == "begun":
        assert sum(opened) == 1, "only the last change completes a cache"


@every_store
@every_step
def test_a_reader_of_any_moment_stays_right(store: str, step: str, memory: Path) -> None:
    """Opened before any one change and read after all of them, a reader still gives the right values."""
    cache = memory / "cache"
    wanted = prepared(cache, store, step)
    (asks, asked), (goes, go) = os.pipe(), os.pipe()

    def change_when_told() -> None:
        def changing(event: str) -> None:
            os.write(asked, b"?")
            os.read(goes, 1)

        os.close(asks)
        watch(cache, changing)
        write(cache, store, wanted)

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(in_fork(change_when_told)))
    thread.start()
    readers, opened = [], 0

    class Stepping(Folder):
        """Lets the writer make one change before each read."""

        def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
            step_on()
            return super().get(key, largest)

    def step_on() -> bool:
        while thread.is_alive():
            if select.select([asks], [], [], 0.01)[0]:
                os.read(asks, 1)
                os.write(go, b"!")
                return True
        return False

    while step_on():
        opened += 1
        existing = None
        try:
            existing = find(Stepping(cache))
        except FileNotFoundError:
            pytest.fail("a file that was replaced was missing for a while")
        if existing and existing.index:
            readers.append(LogitReader(Folder(cache), existing.index))
        elif step != "begun":
            pytest.fail("a complete cache was not found")
    thread.join()
    for descriptor in (asks, asked, goes, go):
        os.close(descriptor)
    assert codes == [0]
    assert opened > 5
    assert readers or step == "begun"
    for reader in [*readers, open_cache(cache)]:
        read_all(reader)


@every_store
@every_step
def test_a_reader_that_looks_all_the_time_sees_nothing_wrong(store: str, step: str, tmp_path: Path) -> None:
    for attempt in range(3):
        cache = tmp_path / f"{attempt}"
        wanted = prepared(cache, store, step)
        looks, look = os.pipe()

        def write_while_looked_at(cache: Path = cache, wanted: Manifest = wanted, looks: int = looks) -> None:
            changes = count()
            # However slow the reader is, it has looked again before every third change.
            watch(cache, lambda event: os.read(looks, 1 << 16) if next(changes) % 3 == 0 else None)
            write(cache, store, wanted)

        process = os.fork()
        if not process:
            try:
                os.close(look)  # so that it goes on if the test fails
                write_while_looked_at()
                os._exit(0)
            finally:
                os._exit(1)
        looked, ended = 0, 0
        while not ended:
            ended, status = os.waitpid(process, os.WNOHANG)
            read_or_incomplete(cache, complete_before=step != "begun" or (bool(ended) and status == 0))
            looked += 1
            os.write(look, b"!")
        os.close(looks)
        os.close(look)
        assert os.waitstatus_to_exitcode(status) == 0
        assert looked > 2


# the disk


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


ROOM = {"bytes": "size={}k", "files": "size=1m,nr_inodes={}"}


@pytest.mark.parametrize(
    ("store", "step", "room_for"),
    few(
        product(STORES, STEPS, ROOM),
        [
            *(("zarr", "begun", "bytes"), ("zarr", "another signal", "files")),
            *(("webdataset", "begun", "files"), ("webdataset", "more views", "bytes")),
        ],
    ),
)
def test_a_full_disk_stops_it_anywhere(
    store: str, step: str, room_for: str, finished: dict[str, bytes], tmp_path: Path
) -> None:
    stopped, options = 0, ROOM[room_for]
    with small_disk(tmp_path / "disk", "1m,nr_inodes=1000") as disk:
        for room in range(1, 200, 8 if "k" in options else 4):
            cache = disk / "cache"
            wanted = prepared(cache, store, step)
            used = disk_use(disk)
            remount(disk, options.format(used[0] + room + 3 if "k" in options else used[1] + room))
            code = in_fork(lambda cache=cache, wanted=wanted: write(cache, store, wanted))
            assert partials_of(disk) == []
            read_or_incomplete(cache, complete_before=step != "begun")
            remount(disk, "size=1m,nr_inodes=1000")
            finish(cache, store, step, finished)
            subprocess.run(["rm", "-r", str(cache)], check=True)
            if code == 0:
                break
            assert code == errno.ENOSPC
            stopped += 1
        else:
            pytest.fail("no size of the disk was enough")
    assert stopped >= 2


def disk_use(disk: Path) -> tuple[int, int]:
    """KiB and inodes in use."""
    facts = os.statvfs(disk)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize // 1024, facts.f_files - facts.f_ffree


@every_store
@every_step
def test_a_disk_that_becomes_read_only_stops_it(
    store: str, step: str, finished: dict[str, bytes], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        cache = disk / "cache"
        wanted = prepared(cache, store, step)
        writer = writer_at(cache, wanted, store)
        first, *_ = writer.missing()
        writer.write(first, rows_of(first, writer.signals))
        remount(disk, "ro")
        with pytest.raises(OSError, match="Read-only file system"):
            write(cache, store, wanted)
        read_or_incomplete(cache, complete_before=step != "begun")
        remount(disk, "rw")
        assert partials_of(disk) == []
        finish(cache, store, step, finished)
        remount(disk, "ro")
        assert read_or_incomplete(cache, complete_before=True)
        remount(disk, "rw")


@every_store
@every_step
def test_a_folder_of_another_user_stops_it(store: str, step: str, finished: dict[str, bytes], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    wanted = prepared(cache, store, step)
    writer = writer_at(cache, wanted, store)
    first, *_ = writer.missing()
    writer.write(first, rows_of(first, writer.signals))
    before = files_of(cache)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]

    def as_another() -> None:
        os.chdir(tmp_path)  # the folders above are closed to others
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        read_or_incomplete(Path("cache"), complete_before=step != "begun")
        write(Path("cache"), store, wanted)

    for folder in folders:
        folder.chmod(0o555)
    code = in_fork(as_another)
    for folder in folders:
        folder.chmod(0o755)
    assert code == errno.EACCES
    assert files_of(cache) == before
    assert partials_of(cache) == []
    finish(cache, store, step, finished)


# the power


@every_store
@pytest.mark.parametrize("left", ["nothing", "half", "zeros", "all but a byte"])
def test_what_a_loss_of_power_took_is_noticed_and_written_again(store: str, left: str, memory: Path) -> None:
    """Any one file is lost or damaged, while all others are whole."""
    cache, wanted = memory / "cache", manifest_of()
    write(cache, store, wanted)
    good = files_of(cache)
    for key, content in good.items():
        kept = {"nothing": b"", "half": content[: len(content) // 2], "zeros": bytes(len(content))}
        (cache / key).write_bytes(kept.get(left, content[:-1]))
        if key == "index.json":
            with pytest.raises(CacheDamaged, match=r"index\.json is damaged .*delete it, then run"):
                open_cache(cache)
            with pytest.raises(CacheDamaged, match=r"index\.json is damaged"):
                write(cache, store, wanted)
            (cache / key).unlink()
        else:
            reader = open_cache(cache)
            assert [damage.key for damage in damages_of(reader)] == [key]
            structure = layout_of(store, wanted).structure()
            if key in structure:
                read_values(reader)
            else:
                with pytest.raises(CacheDamaged):
                    read_values(reader)
        write_until_good(cache, store, wanted)
        assert files_of(cache) == good, key


def read_values(reader: LogitReader) -> None:
    for block in reader.plan.blocks():
        for name in reader.manifest.names:
            reader.stored(block, name)


def write_until_good(place: Path, store: str, wanted: Manifest) -> None:
    """Write again what the check at the end finds damaged, as stage one does."""
    writer, fresh = writer_at(place, wanted, store), set[Block]()
    for _ in range(2):
        for block in writer.missing():
            writer.write(block, rows_of(block, writer.signals))
            fresh.add(block)
        if not writer.complete(fresh):
            return
    pytest.fail("it stays damaged")


@every_store
@pytest.mark.parametrize("left", ["nothing", "half", "zeros"])
def test_what_a_loss_of_power_took_before_the_end_is_noticed_at_the_end(store: str, left: str, memory: Path) -> None:
    """Without an index, only the objects themselves can show that they are good."""
    cache, wanted = memory / "cache", manifest_of()
    write(cache, store, wanted)
    good = files_of(cache)
    *beside, head = layout_of(store, wanted).structure()
    for key, content in good.items():
        if key == "index.json":
            continue
        (cache / "index.json").unlink(missing_ok=True)
        kept = {"nothing": b"", "half": content[: len(content) // 2], "zeros": bytes(len(content))}
        (cache / key).write_bytes(kept[left])
        if key == head:  # nothing else says what this cache is
            with pytest.raises(CacheDamaged, match=rf"{head} is damaged \(.*\); restore it, or rebuild the cache"):
                write_until_good(cache, store, wanted)
            (cache / key).write_bytes(content)
        if key != head and key not in beside:
            with pytest.raises(CacheIncomplete):
                open_cache(cache)
        write_until_good(cache, store, wanted)
        assert files_of(cache) == good, key


# several runs of stage one

BLOCKS = len(kills.manifest().plan.blocks())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The caches that one run of stage one makes alone, by store."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), {}
    for store in STORES:
        kills.stage_one(str(folder / store), store, folder / "notes")
        made[store] = kills.contents(str(folder / store))
    return made


@every_store
@pytest.mark.parametrize("moment", range(12))
def test_two_runs_that_begin_at_once_begin_one_cache(store: str, moment: int, tmp_path: Path) -> None:
    """While one run begins a cache, before its request number `moment`, another run begins one with another command."""
    asked = 0

    class Overtaken(Folder):
        def _asked(self) -> None:
            nonlocal asked
            asked += 1
            if asked == moment:
                begin(Folder(tmp_path), store, other)

        def get(self, key: str, largest: int = LARGEST_OBJECT) -> bytes:
            self._asked()
            return super().get(key)

        def sizes(self) -> dict[str, int]:
            self._asked()
            return super().sizes()

        def put(self, key: str, content: bytes, *, replace: bool) -> bool:
            self._asked()
            return super().put(key, content, replace=replace)

    first = manifest_of()
    other = first.model_copy(update={"provenance": {"logits": {"command": "other"}}})
    begun = begin(Overtaken(tmp_path), store, first)
    existing = find(Folder(tmp_path))
    assert existing
    assert begun == existing.manifest, "the run got another manifest than the one that is stored"
    assert moment == 0 or asked < moment or begun == other


@every_store
def test_two_runs_at_once_share_the_work(store: str, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    notes = [tmp_path / "notes 1", tmp_path / "notes 2"]
    running = [kills.started(str(tmp_path / "cache"), store, note, notes) for note in notes]
    assert [kills.ended(process) for process in running] == [0, 0]
    assert kills.contents(str(tmp_path / "cache")) == undisturbed[store]
    assert partials_of(tmp_path) == []
    computed = [kills.noted(note) for note in notes]
    assert set(computed[0]) | set(computed[1]) == {
        (block.view, block.number) for block in kills.manifest().plan.blocks()
    }
    # Each meets the other now and then; blocks of milliseconds do so more often than those of seconds.
    assert sum(map(len, computed)) <= 1.75 * BLOCKS
    assert all(computed), "both had a share"


@every_store
@pytest.mark.parametrize("after", [1, BLOCKS // 3, BLOCKS - 4])
def test_one_of_two_runs_is_killed_and_the_other_completes_it(
    store: str, after: int, undisturbed: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    cache, notes = str(tmp_path / "cache"), [tmp_path / "notes 1", tmp_path / "notes 2"]
    first, second = (kills.started(cache, store, note) for note in notes)
    deadline = time.monotonic() + 60
    while not (tmp_path / "cache").exists() or len(files_of(tmp_path / "cache")) < 2 * after:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(first, signal.SIGKILL)
    assert kills.ended(second) == 0
    kills.ended(first)
    assert kills.contents(cache) == undisturbed[store]


# over S3


@pytest.fixture(scope="module")
def s3() -> Iterator[servers.S3]:
    pytest.importorskip("obstore", reason="caches by URL need obstore")
    pytest.importorskip("moto.server", reason="a server like S3 needs moto")
    with servers.s3() as made:
        yield made


@pytest.fixture
def proxied(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A way to the server that fails on demand."""
    with servers.flaky(s3.endpoint) as proxy:
        for name, value in s3.env(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


QUICK = Patience(retries=3, total_s=60, first_wait_s=0.01, longest_wait_s=0.02, connect_s=10, stall_s=20)


def bucket_writer(bucket: Bucket, store: str) -> LogitWriter:
    wanted = manifest_of()
    return LogitWriter(bucket, store, begin(bucket, store, wanted), wanted.signals)


def contents_of(bucket: Bucket) -> dict[str, bytes]:
    return {key: bucket.get(key) for key in sorted(bucket.sizes() or {})}


@every_store
def test_a_new_block_takes_one_put_for_each_object_and_nothing_else(store: str, s3: servers.S3, proxied: Flaky) -> None:
    writer = bucket_writer(Bucket(f"{s3.url}/counted-{store}", QUICK), store)
    first, second, *_ = writer.missing()
    objects = [key for name in ("logits", WITNESS) for key in layout_of(store, manifest_of()).objects(name, first)]
    before = proxied.requests.copy()
    assert writer.write(first, rows_of(first, ["logits"]))
    asked = proxied.requests - before
    assert {request.rpartition(f"/counted-{store}/")[2] for request in asked} == set(objects)
    assert all(request.startswith("PUT ") for request in asked)
    assert sum(asked.values()) == len(objects)
    # An object that exists is asked for, and stays.
    before = proxied.requests.copy()
    assert not writer.write(first, rows_of(first, ["logits"]))
    assert sum((proxied.requests - before).values()) > len(objects)
    assert writer.missing()[0] == second


@every_store
@pytest.mark.parametrize(
    "fault", [Fault("status", 503), Fault("drop"), Fault("lose"), Fault("reply", 500)], ids=lambda fault: fault.kind
)
def test_puts_that_fail_now_and_then_are_made_again(
    store: str, fault: Fault, s3: servers.S3, proxied: Flaky, tmp_path: Path
) -> None:
    write(tmp_path / "cache", store, manifest_of())
    bucket = Bucket(f"{s3.url}/{store}-{fault.kind}", QUICK)
    proxied.faults = every(3, fault, "PUT")
    write_with(bucket_writer(bucket, store))
    failed = proxied.count("PUT") // 3
    assert failed >= 3
    proxied.faults = lambda request: None
    assert contents_of(bucket) == files_of(tmp_path / "cache")
    read_all(open_cache(bucket.location))


@pytest.mark.parametrize("store", few(STORES, ["webdataset"]))
@pytest.mark.slow
def test_puts_that_always_fail_stop_it_anywhere(store: str, s3: servers.S3, proxied: Flaky, tmp_path: Path) -> None:
    write(tmp_path / "cache", store, manifest_of())
    good = files_of(tmp_path / "cache")
    objects = len(good) - 1  # but for the index
    for puts in [*range(0, objects, 3), objects]:
        bucket = Bucket(f"{s3.url}/{store}-stopped-{puts}", QUICK)
        seen = 0

        def fault_of(request: str, puts: int = puts) -> Fault | None:
            nonlocal seen
            seen += request.startswith("PUT")
            return Fault("status", 503) if request.startswith("PUT") and seen > puts else None

        proxied.faults = fault_of
        with pytest.raises(StorageError, match=r"can't be reached \(503") as caught:
            write_with(bucket_writer(bucket, store))
        assert "\n" not in str(caught.value)
        proxied.faults = lambda request: None
        stored = set(bucket.sizes() or {})
        assert len(stored) == puts
        before = proxied.requests.copy()
        missing = write_with(bucket_writer(bucket, store))
        layout = layout_of(store, manifest_of())
        unfinished = {key for block in missing for name in manifest_of().names for key in layout.objects(name, block)}
        put = {request for request in proxied.requests - before if request.startswith("PUT")}
        again = {key for key in stored - unfinished for request in put if request.endswith(f"/{key}")}
        assert again <= {"index.json"}, "an existing object was put again"
        assert contents_of(bucket) == good


RACE = """
import sys
from pathlib import Path
from tests.soak import kills
notes = [Path(sys.argv[3]) / name for name in ("notes 1", "notes 2")]
running = [kills.started(sys.argv[1], sys.argv[2], note, notes) for note in notes]
sys.exit(any([kills.ended(process) for process in running]))
"""


@pytest.mark.parametrize("store", few(STORES, ["zarr"]))
@pytest.mark.slow
def test_two_runs_at_once_share_the_work_in_a_bucket(
    store: str,
    s3: servers.S3,
    undisturbed: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    place = f"{s3.url}/race-{store}"
    # By itself, since a fork of a process that has asked a bucket can't ask any.
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", RACE, place, store, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert kills.contents(place) == undisturbed[store]
    computed = [kills.noted(tmp_path / name) for name in ("notes 1", "notes 2")]
    assert BLOCKS <= sum(map(len, computed)) <= 1.75 * BLOCKS
    assert all(computed), "both had a share"
