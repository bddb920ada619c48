"""`verify --on`: an engine's workers read a cache back, and one of them renders and recomputes a sample."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dhkd.configs.schema import Experiment
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.find import find
from dhkd.data.cache.index import Index
from dhkd.data.cache.reader import Damage, LogitReader, complete_index
from dhkd.data.errors import CacheIncomplete
from dhkd.data.progress import progress
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.build.cache import reader_of
from dhkd.pipeline.cache_tools import sampling, verified_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Engine, Tell
from dhkd.pipeline.engines.choice import EngineOptions, engine_of
from dhkd.pipeline.on_workers import (
    READ_NEEDS,
    absolute,
    absolute_path,
    blocks_to_read,
    implied_needs,
    on_worker,
    once,
    results,
)
from dhkd.pipeline.results import Verified


def verify_on(
    engine_options: EngineOptions,
    cache: str,
    experiment: Experiment | None,
    *,
    data: DataOptions,
    teacher: Path | None,
    rows: int,
    cpu: bool = False,
) -> Verified:
    """Check a cache as `verify` does, on the workers of an engine; the arguments are as there."""
    with engine_of(engine_options) as engine:
        verified = _read_everything(engine, cache)
        if verified.damaged or experiment is None:
            return verified
        needs = engine_options.needs(implied_needs(experiment, data, engine, cpu=cpu))
        place = None if teacher is None else absolute_path(teacher)
        work = SampleWork(absolute(cache), experiment, on_worker(data, needs), place, rows, cpu, verified)
        return once(engine, work, needs)


def _read_everything(engine: Engine, cache: str) -> Verified:
    began, place = time.perf_counter(), absolute(cache)
    opened = once(engine, OpenWork(place), READ_NEEDS)
    manifest = opened.index.manifest
    parts = blocks_to_read(manifest)
    units = [ReadUnit(number, blocks) for number, blocks in enumerate([(), *parts])]
    read: dict[int, Read] = {}
    with progress("reading", opened.index.num_objects) as advance:
        for unit, part in results(engine, ReadWork(place, opened), units, READ_NEEDS):
            read[unit.number] = part
            advance(part.good + len(part.damages))
    everything = [read[unit.number] for unit in units]
    damages = [damage for part in everything for damage in part.damages]
    good, num_bytes = sum(part.good for part in everything), sum(part.bytes for part in everything)
    return verified_of(cache, manifest, good, num_bytes, damages, time.perf_counter() - began)


@dataclass(frozen=True)
class Opened:
    """A cache as a worker found it on its node."""

    index: Index
    node: str


@dataclass(frozen=True)
class OpenWork:
    """Reads a cache's index."""

    cache: str

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], Opened]]:
        """Open the cache; raises `CacheIncomplete` if this node finds none, or an unfinished one."""
        index = complete_index(storage_of(self.cache))
        yield lambda unit: Opened(index, socket.gethostname())


@dataclass(frozen=True)
class ReadUnit:
    """Blocks to read; unit 0 stands for the objects that belong to no block."""

    number: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Read:
    """How many objects are good, and their bytes, and the damaged ones."""

    good: int
    bytes: int
    damages: Sequence[Damage]


@dataclass(frozen=True)
class ReadWork:
    """Reads objects, and compares them with the index that the first worker read."""

    cache: str
    opened: Opened

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[ReadUnit], Read]]:
        """Open the cache; raises `CacheIncomplete` if this node doesn't see it."""
        storage, index = storage_of(self.cache), self.opened.index
        existing = find(storage)
        if existing is None or existing.manifest.digest_of(index.manifest.signals) != index.manifest.digest:
            raise CacheIncomplete(
                f"cache at {storage.location}: expected the one that {self.opened.node} has, got"
                f" {'none' if existing is None else 'another one'}; name a folder that all nodes share, or a URL"
            )
        reader = LogitReader(storage, index)

        def read(unit: ReadUnit) -> Read:
            found = list(reader.damages_of(unit.blocks) if unit.number else reader.damages_of_metadata())
            sizes = [size for size in found if not isinstance(size, Damage)]
            return Read(len(sizes), sum(sizes), [damage for damage in found if isinstance(damage, Damage)])

        yield read


@dataclass(frozen=True)
class SampleWork:
    """Renders and recomputes random rows, and adds what was compared to the result."""

    cache: str
    experiment: Experiment
    data: DataOptions
    teacher: Path | None
    rows: int
    cpu: bool
    verified: Verified

    @contextmanager
    def begun(self, tell: Tell) -> Iterator[Callable[[str], Verified]]:
        """Load images and teacher; raises `CacheMismatch` if they are not the cache's."""
        reader = reader_of(self.cache, self.data)
        with sampling(
            self.cache, reader, self.experiment, data=self.data, teacher=self.teacher, cpu=self.cpu
        ) as sampled:
            yield lambda unit: sampled(self.verified, self.rows)
