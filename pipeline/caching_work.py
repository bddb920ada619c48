"""What an engine's workers do for `cache-teacher --on`; `caching_on.py` gives them the units.

A worker that holds the teacher computes blocks in the same units and batches as a single process, so the stored bytes
are the same.
"""

import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dhkd.data.cache.blocks import Block
from dhkd.data.cache.find import find
from dhkd.data.cache.manifest import Manifest
from dhkd.data.cache.writer import Checked, LogitWriter
from dhkd.data.errors import CacheIncomplete, ProcessError
from dhkd.data.storage.base import Storage
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.build.code import require_code_of_cache
from dhkd.pipeline.caching import Caching, Prepared, begun, must_state_provenance, prepare
from dhkd.pipeline.engines.base import Tell
from dhkd.pipeline.environment import processes_for
from dhkd.pipeline.results import LiveDifferences
from dhkd.stages.cache.write import compute, discard, units_of
from dhkd.stages.processes import Precision

ComputeUnit = tuple[tuple[Block, ...], ...]  # units as `units_of` makes them, one after the other

# A folder may be another one on every node. So the command leaves a mark in the cache, which each worker looks for.
MARK = re.compile(r"on-[0-9a-f]{16}\.partial")  # a key with this ending is no part of a cache


def new_mark() -> str:
    """Return the key of a mark that no other command uses."""
    return f"on-{secrets.token_hex(8)}.partial"


@dataclass(frozen=True)
class Done:
    """What one worker did for a unit. `unreadable` are all files that it has replaced by black images so far."""

    worker: str
    blocks: int
    rows: int
    unreadable: Sequence[str]


@dataclass(frozen=True)
class Began:
    """The cache as one worker has begun it.

    `units` are missing; `first` is what that worker did of the first unit, in `seconds`. `others` counts the blocks
    that another teacher's signals lack. `mark` is the key of the command's mark.
    """

    manifest: Manifest
    signals: Sequence[str]
    views_at_once: int
    precision: Precision
    device: str
    mark: str
    node: str
    units: ComputeUnit
    others: int
    first: Done
    seconds: float

    def require_shared(self, storage: Storage) -> None:
        """Raise `CacheIncomplete` unless this node sees the cache that the first worker began.

        When a cache is complete, the marks of all commands are gone.
        """
        if storage.size(self.mark) >= 0:
            return
        existing = find(storage)
        if existing is None or existing.index is None or existing.index.manifest != self.manifest:
            raise CacheIncomplete(
                f"cache at {storage.location}: expected the one that was begun on {self.node}, got"
                f" {'none' if existing is None else 'another one'}; give --out as a folder that all nodes share, or a"
                f" URL"
            )

    def require_same(self, prepared: Prepared, storage: Storage) -> None:
        """Raise `DhkdError` unless this worker would compute what the first worker would."""
        self.require_shared(storage)
        device = prepared.processes.device.type
        if device != self.device:
            raise ProcessError(f"device: expected {self.device}, as on {self.node}, got {device}; use --cpu for all")
        require_code_of_cache(self.manifest, prepared.asked.out, self.manifest.signals, prepared.code)
        self.manifest.extended_by(prepared.wanted, storage.location)


class _Worker:
    """Computes units of blocks with a loaded teacher."""

    def __init__(self, prepared: Prepared, storage: Storage, manifest: Manifest) -> None:
        self.computing = prepared.computing(storage, manifest)
        self._device, self._name = prepared.processes.device, secrets.token_hex(8)

    def __call__(self, unit: ComputeUnit) -> Done:
        blocks, rows = compute(map(list, unit), self.computing, self._device, lambda rows: None)
        return Done(self._name, blocks, rows, list(self.computing.renderer.unreadable))


@contextmanager
def _prepared(asked: Caching) -> Iterator[Prepared]:
    with processes_for(asked.experiment.cache.precision, cpu=asked.cpu) as processes:
        yield prepare(asked, processes)


@dataclass(frozen=True)
class BeginWork:
    """Begins the cache, lists what is missing, and computes the first missing unit."""

    asked: Caching
    mark: str

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], Began]]:
        """Load teacher and images; raises `CacheMismatch` if an existing cache was made from others."""
        with _prepared(self.asked) as prepared:
            must_state_provenance(prepared, storage_of(self.asked.out))
            yield lambda unit: self._begin(prepared)

    def _begin(self, prepared: Prepared) -> Began:
        storage = storage_of(self.asked.out)
        manifest = begun(prepared, storage)
        worker = _Worker(prepared, storage, manifest)
        writer, views_at_once = worker.computing.writer, worker.computing.views_at_once
        storage.put(self.mark, b"", replace=True)
        units = tuple(map(tuple, units_of(writer.missing(), views_at_once).values()))
        since = time.perf_counter()
        first = worker(units[:1])
        return Began(
            manifest=manifest,
            signals=prepared.signals,
            views_at_once=views_at_once,
            precision=prepared.processes.precision,
            device=prepared.processes.device.type,
            mark=self.mark,
            node=socket.gethostname(),
            units=units,
            others=len(writer.missing_of_others()),
            first=first,
            seconds=time.perf_counter() - since,
        )


@dataclass(frozen=True)
class ComputeWork:
    """Computes units of blocks; the precision in `asked` is the one that the first worker resolved."""

    asked: Caching
    began: Began

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[ComputeUnit], Done]]:
        """Load teacher and images; raises `DhkdError` unless they are those of the cache."""
        storage = storage_of(self.asked.out)
        self.began.require_shared(storage)
        with _prepared(self.asked) as prepared:
            self.began.require_same(prepared, storage)
            yield _Worker(prepared, storage, self.began.manifest)


@dataclass(frozen=True)
class _StorageWork:
    """Work on what is stored, for which neither the teacher nor its images are needed."""

    out: str
    store: str
    began: Began

    def _writer(self) -> LogitWriter:
        storage = storage_of(self.out)
        self.began.require_shared(storage)
        return LogitWriter(storage, self.store, self.began.manifest, self.began.signals)


@dataclass(frozen=True)
class ListWork(_StorageWork):
    """Counts the missing blocks of other teachers' signals, which other commands write."""

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], int]]:
        """Open the cache."""
        writer = self._writer()

        def listed(unit: str) -> int:
            missing = len(writer.missing_of_others())
            if missing:  # then this command ends here
                storage_of(self.out).delete(self.began.mark)
            return missing

        yield listed


@dataclass(frozen=True)
class CheckUnit:
    """Blocks to read back; those in `fresh` may be newer than an existing index."""

    blocks: tuple[Block, ...]
    fresh: tuple[Block, ...]


@dataclass(frozen=True)
class CheckWork(_StorageWork):
    """Reads blocks back, and removes damaged objects, so that their blocks are missing."""

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[CheckUnit], Checked]]:
        """Open the cache."""
        writer = self._writer()

        def checked(unit: CheckUnit) -> Checked:
            result = writer.check(unit.blocks, set(unit.fresh))
            discard(writer, result.damages)
            return result

        yield checked


@dataclass(frozen=True)
class FinishWork:
    """Writes the index from what was read back, and compares random rows with a live forward pass."""

    asked: Caching
    began: Began
    checked: Sequence[Checked]

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], LiveDifferences]]:
        """Load teacher and images; raises `DhkdError` unless they are those of the cache."""
        storage = storage_of(self.asked.out)
        self.began.require_shared(storage)
        with _prepared(self.asked) as prepared:
            self.began.require_same(prepared, storage)
            yield lambda unit: self._finish(prepared, storage)

    def _finish(self, prepared: Prepared, storage: Storage) -> LiveDifferences:
        prepared.computing(storage, self.began.manifest).writer.finish(self.checked)
        for key in storage.sizes() or ():
            if MARK.fullmatch(key):
                storage.delete(key)
        return prepared.compare()
