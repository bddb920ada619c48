"""What commands for caches have in common when their work runs on an engine's workers: needs, places and failures."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dhkd.configs.schema import Experiment
from dhkd.data.cache.blocks import Block
from dhkd.data.cache.codecs import row_bytes
from dhkd.data.cache.manifest import Manifest
from dhkd.data.errors import DhkdError, ProcessError, StorageError
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.base import Engine, Needs, Work
from dhkd.pipeline.limits import available_cores

log = logging.getLogger("dhkd")

U = TypeVar("U")
R = TypeVar("R")

ONCE = "once"  # the only unit of a work that is done once
READ_NEEDS = Needs(cpus=1.0)  # of a worker that only reads what is stored
READ_BYTES = 256 * 2**20  # read by a worker before it reports: seconds from a disk or a bucket
MOST_DECODERS = 8  # processes that decode photographs for a worker, unless --workers or --cpus says another number
MOST_FAILURES = 3  # failures in a row, after which the trouble is taken to be everywhere
TIMES = 2  # how often a unit may fail by its node's fault


def implied_needs(experiment: Experiment, data: DataOptions, engine: Engine, *, cpu: bool) -> Needs:
    """Return what a worker needs that renders images and runs a network, unless the user says otherwise."""
    decodes = recipe_of(experiment.views).shape is not None
    decoders = min(available_cores(), MOST_DECODERS) if data.workers is None else max(1, data.workers)
    return Needs(cpus=float(decoders) if decodes else 1.0, gpus=1.0 if engine.has_gpus and not cpu else 0.0)


def on_worker(data: DataOptions, needs: Needs) -> DataOptions:
    """Return the options for a worker: as many decoding processes as cores, unless the user says another number.

    The workers of a machine share large images in memory.
    """
    root = None if data.root is None else absolute(data.root)
    workers = max(1, round(needs.cpus)) if data.workers is None else data.workers
    return replace(data, root=root, workers=workers, shared=True)


def absolute(location: str) -> str:
    """Return a path as it is from any folder; URLs, and names of what isn't here, stay as they are."""
    if "://" in location or not Path(location.partition("::")[0]).exists():
        return location
    return str(Path(location).absolute())


def absolute_path(path: Path) -> Path:
    """Return the path of a file or folder as `absolute` does."""
    return Path(absolute(str(path)))


def results(engine: Engine, work: Work[U, R], units: Sequence[U], needs: Needs) -> Iterator[tuple[U, R]]:
    """Yield each unit with its result, as they end.

    A unit that failed by the fault of a node or a storage is given once more, after all others. Any other error would
    come again, so it is raised at once; and so is the last one of several failures in a row.
    """
    left = list(units)
    for time in range(1, TIMES + 1):
        failed: list[U] = []
        in_a_row = 0
        for ended in engine.run(work, left, needs, _no_messages) if left else ():
            if not isinstance(ended.outcome, Exception):
                in_a_row = 0
                yield ended.unit, ended.outcome
                continue
            in_a_row += 1
            if time == TIMES or in_a_row == MOST_FAILURES or not _may_pass(ended.outcome):
                log.error("%s: it failed", ended.node)
                raise ended.outcome
            log.warning("%s: %s; this is tried again later", ended.node, ended.outcome)
            failed.append(ended.unit)
        left = failed


def once(engine: Engine, work: Work[str, R], needs: Needs) -> R:
    """Let one worker do a work that is done once, and return its result."""
    ((_, result),) = results(engine, work, [ONCE], needs)
    return result


def blocks_to_read(manifest: Manifest) -> list[tuple[Block, ...]]:
    """Return all blocks of a cache in parts of about `READ_BYTES`."""
    blocks = manifest.plan.blocks()
    of_block = manifest.block_rows * sum(row_bytes(manifest.parts(name)) for name in manifest.names)
    number = max(1, READ_BYTES // of_block)
    return [tuple(blocks[start : start + number]) for start in range(0, len(blocks), number)]


def _may_pass(error: Exception) -> bool:
    """Return whether the same work may succeed later, or elsewhere: after errors of storages, disks and devices."""
    if isinstance(error, DhkdError):
        return isinstance(error, StorageError | ProcessError)
    return isinstance(error, OSError | RuntimeError)


def _no_messages(node: str, message: object) -> None:
    raise AssertionError(f"{node}: {message}")  # workers of caches send results and lines of the log alone
