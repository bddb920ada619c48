"""A cache in a hypothesis state machine: writers that die and go on, extensions, damage, repair, conversion, copies.

What the teacher says is a function of the key. Whatever happened before, a reader returns exactly that, or raises an
error of the program. `tests/data/cache/test_stateful_cache.py` runs a few sequences, `tests/soak` many.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dhkd.data.cache.blocks import WITNESS, Block
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.reader import Damage, LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheDamaged, CacheMismatch, DhkdError
from dhkd.data.storage.base import Storage
from dhkd.data.storage.folder import Folder
from dhkd.stages.cache.convert import convert_blocks, converted
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.caches import manifest_of

SAMPLES, CLASSES, BLOCK_ROWS, MOST_VIEWS = 7, 3, 3, 3
TEACHERS = {"logits": 1000.0, "b.logits": 2000.0}
STORES = ("zarr", "webdataset")
MEMORY = Path("/dev/shm")  # on a disk, these tests would mostly wait for it


class Killed(BaseException):
    """The process ends here."""


class Dying(Folder):
    """A folder whose process dies at its change number `life`: before it, in the middle of it, or just after it."""

    def __init__(self, path: Path, life: int, moment: str) -> None:
        super().__init__(path)
        self._life, self._moment = life, moment

    def put(self, key: str, content: bytes, *, replace: bool) -> bool:
        self._die(key, content, "before", "half")
        made = super().put(key, content, replace=replace)
        self._die(key, content, "after")
        self._life -= 1
        return made

    def delete(self, key: str) -> None:
        self._die(key, b"", "before", "half")
        super().delete(key)
        self._die(key, b"", "after")
        self._life -= 1

    def _die(self, key: str, content: bytes, *moments: str) -> None:
        if self._life > 0 or self._moment not in moments:
            return
        if self._moment == "half":  # what `write_atomically` leaves behind when it is killed
            partial = self.path / f"{key}.0123456789abcdef.partial"
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content[: len(content) // 2])
        raise Killed


def said(teacher: str, view: int) -> np.ndarray:
    """What a teacher says about a view: float32 (SAMPLES, CLASSES)."""
    rows = 10 * np.arange(SAMPLES)[:, None] + np.arange(CLASSES)
    return (TEACHERS[teacher] + 100 * view + rows).astype(np.float32)


def seen(view: int) -> np.ndarray:
    """The witness of a view: uint32 (SAMPLES,)."""
    return (100 * view + np.arange(SAMPLES)).astype(np.uint32)


def rows_of(block: Block, teacher: str) -> Mapping[str, Any]:
    rows = slice(block.start, block.stop)
    return {teacher: said(teacher, block.view)[rows], WITNESS: seen(block.view)[rows]}


def wanted(views: int, teacher: str) -> Manifest:
    signals = {teacher: ("float32", (CLASSES,))}
    return manifest_of(SAMPLES, CLASSES, views, BLOCK_ROWS, signals=signals)


def run_teacher(storage: Storage, store: str, views: int, teacher: str) -> bool:
    """Do what stage one does for one teacher; return whether the cache is complete now."""
    writer = LogitWriter(storage, store, begin(storage, store, wanted(views, teacher)), [teacher])
    written: set[Block] = set()
    for _ in range(3):
        for block in writer.missing():
            writer.write(block, rows_of(block, teacher))
            written.add(block)
        if writer.missing_of_others():
            return False
        if not writer.complete(written):
            return True
    raise AssertionError("a cache that is damaged again and again")


def wrong_reads(reader: LogitReader) -> bool:
    """Compare everything that a reader returns with what was said; return whether it refused to return anything."""
    refused = False
    for view in range(reader.plan.num_views):
        for teacher in reader.manifest.signals:
            try:
                values = reader.read_view(view, teacher)
            except DhkdError:
                refused = True
            else:
                assert np.array_equal(values, said(teacher, view)), f"view {view} of {teacher} is not what was said"
        for block in reader.plan.blocks_of_view(view):
            try:
                witness = reader.witness(block)
            except DhkdError:
                refused = True
            else:
                assert np.array_equal(witness, seen(view)[block.start : block.stop])
    return refused


class CacheMachine(RuleBasedStateMachine):
    """One cache, what was asked of it, and readers of earlier moments."""

    def __init__(self) -> None:
        super().__init__()
        self._home = tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        self.path, self.store, self._copies = Path(self._home.name) / "0", STORES[0], 0
        self.asked: dict[str, int] = {}  # the views of each teacher that was begun
        self.readers: list[LogitReader] = []

    def teardown(self) -> None:
        self._home.cleanup()

    def new_path(self) -> Path:
        self._copies += 1
        return self.path.with_name(str(self._copies))

    def files(self) -> list[Path]:
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    # writers

    @precondition(lambda self: not self.asked)
    @rule(store=st.sampled_from(STORES))
    def choose_a_store(self, store: str) -> None:
        self.store = store

    @rule(
        teacher=st.sampled_from(sorted(TEACHERS)),
        views=st.integers(1, MOST_VIEWS),
        life=st.integers(0, 30),
        moment=st.sampled_from(["before", "half", "after"]),
    )
    def a_writer_that_dies(self, teacher: str, views: int, life: int, moment: str) -> None:
        self._write(Dying(self.path, life, moment), teacher, views)

    @rule(teacher=st.sampled_from(sorted(TEACHERS)), views=st.integers(1, MOST_VIEWS))
    def a_writer_that_lives(self, teacher: str, views: int) -> None:
        self._write(Folder(self.path), teacher, views)

    def _write(self, storage: Storage, teacher: str, views: int) -> None:
        views = max([views, *self.asked.values()])
        self.asked[teacher] = views
        try:
            run_teacher(storage, self.store, views, teacher)
        except (Killed, CacheDamaged, CacheMismatch):
            return  # killed, or something is damaged that this teacher can't repair

    @precondition(lambda self: bool(self.asked))
    @rule()
    def repair(self) -> None:
        """Run the same commands again, as every message says; afterwards everything is good."""
        views = max(self.asked.values())
        for _ in range(4):
            complete = [self._repaired_by(teacher, views) for teacher in self.asked]
            if all(complete):
                break
        reader = open_cache(self.path)
        assert not [result for result in reader.damages() if isinstance(result, Damage)]
        assert not wrong_reads(reader)
        assert set(reader.manifest.signals) == set(self.asked)
        assert reader.plan.num_views == views

    def _repaired_by(self, teacher: str, views: int) -> bool:
        try:
            return run_teacher(Folder(self.path), self.store, views, teacher)
        except (CacheDamaged, CacheMismatch) as error:
            self._follow(str(error))
            return False

    def _follow(self, message: str) -> None:
        """Do what an error asks for."""
        if "index.json is damaged" in message:
            (self.path / "index.json").unlink(missing_ok=True)
        elif "with the teacher of" not in message:  # the manifest is lost, or other files are there: begin anew
            shutil.rmtree(self.path)

    # damage

    @precondition(lambda self: bool(self.files()))
    @rule(
        which=st.integers(0, 10**6), where=st.integers(0, 10**6), kind=st.sampled_from(["flip", "truncate", "delete"])
    )
    def damage(self, which: int, where: int, kind: str) -> None:
        files = self.files()
        path = files[which % len(files)]
        content = bytearray(path.read_bytes())
        if kind == "delete":
            path.unlink()
        elif kind == "truncate":
            path.write_bytes(content[: where % max(1, len(content))])
        elif content:
            content[where % len(content)] ^= 1 << which % 8
            path.write_bytes(content)

    # other caches of the same

    @precondition(lambda self: bool(self.asked))
    @rule(
        store=st.sampled_from(STORES),
        life=st.integers(0, 60),
        moment=st.sampled_from(["before", "half", "after"]),
        stay=st.booleans(),
    )
    def convert(self, store: str, life: int, moment: str, stay: bool) -> None:
        out = self.new_path()
        for storage in (Dying(out, life, moment), Folder(out)):
            try:
                reader = open_cache(self.path)
                manifest = begin(storage, store, converted(reader, None, allow_loss=False))
                convert_blocks(reader, LogitWriter(storage, store, manifest, manifest.signals))
            except Killed:
                continue
            except DhkdError:
                return  # the cache is damaged or not finished
        result = open_cache(out)
        assert not wrong_reads(result)
        self.readers.append(result)
        if not stay:
            self.path, self.store = out, store
            self.asked = dict.fromkeys(result.manifest.signals, result.plan.num_views)

    @precondition(lambda self: self.path.exists())
    @rule()
    def copy(self) -> None:
        out = self.new_path()
        shutil.copytree(self.path, out)
        self.path = out

    # readers

    @rule()
    def keep_a_reader(self) -> None:
        try:
            self.readers.append(open_cache(self.path))
        except DhkdError:
            return

    @rule()
    def verify(self) -> None:
        """The verdict on the blocks is that of reading them."""
        try:
            reader = open_cache(self.path)
        except DhkdError:
            return
        damages = [result for result in reader.damages() if isinstance(result, Damage)]
        assert wrong_reads(reader) == any(damage.block is not None for damage in damages)

    @invariant()
    def readers_are_right_or_refuse(self) -> None:
        for reader in self.readers[-3:]:
            wrong_reads(reader)
        try:
            reader = open_cache(self.path)
        except DhkdError:
            return
        wrong_reads(reader)
