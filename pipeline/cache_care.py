"""Looking after a cache that exists: inspect, verify, convert."""

import time
from pathlib import Path
from typing import Any

from dhkd.configs.schema import Codec, Experiment
from dhkd.data.cache.codecs import Bounds
from dhkd.data.cache.find import find
from dhkd.data.cache.manifest import require_identity, signal_name, teachers_own
from dhkd.data.cache.reader import Damage, LogitReader, missing_blocks, open_cache
from dhkd.data.cache.storage.places import storage_of
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheIncomplete
from dhkd.pipeline.build.cache import LOGITS, codec_of, reader_of
from dhkd.pipeline.build.checks import require_cache
from dhkd.pipeline.build.data import images_of, normalization_of, recipe_of, renderer_of
from dhkd.pipeline.build.networks import trained_network
from dhkd.pipeline.caching import _REBUILD, _compared, describe
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import WITNESS_BLOCKS, rerender
from dhkd.stages.cache.convert import convert_blocks, converted
from dhkd.stages.models.teacher import Teacher
from dhkd.stages.models.weights import weights_sha256
from dhkd.stages.processes import Processes, resolve_precision
from dhkd.stages.progress import progress_bar


def verify(
    cache: str,
    experiment: Experiment | None,
    *,
    data: DataOptions,
    teacher: Path | None,
    rows: int,
    cpu: bool = False,
) -> dict[str, Any]:
    """Read all of a cache and check every byte; what is damaged, under that name.

    With `experiment`, random rows are re-rendered and compared with the witnesses; with `teacher` as well, random
    logits with a live forward. Raises the `CacheMismatch` or `CacheIncomplete` that says what is wrong.
    """
    reader = reader_of(cache, data)
    read, damages = _read_everything(reader)
    result: dict[str, Any] = {
        "cache": describe(cache, reader.manifest),
        **read,
        "damaged": [
            {"key": damage.key, "block": str(damage.block) if damage.block else None, "reason": damage.reason}
            for damage in damages
        ],
    }
    if damages or experiment is None:
        return result
    of_teacher = signal_name(experiment.student.teacher, "")
    names = [name for name in reader.manifest.signals if name.removesuffix(teachers_own(name)) == of_teacher]
    names = names or [next(iter(reader.manifest.signals))]
    precision = reader.manifest.signals[names[0]].precision
    processes = Processes(resolve_precision(precision, cpu), cpu)
    try:
        images, recipe = images_of(experiment, "train", data), recipe_of(experiment.views)
        require_cache(experiment, reader, images, recipe, names, None)
        trained = None
        if teacher is not None:
            trained = trained_network(experiment.teacher.architecture, images.num_classes, teacher, "teacher")
            sha256 = weights_sha256(trained.network)
            weights = {"signals": {name: {"teacher": {"sha256": sha256}} for name in names}}
            require_identity(weights, reader.manifest, f"{cache}: weights differ", _REBUILD)
        renderer = renderer_of(images, recipe, processes.device, data)
        per_block = max(1, -(-rows // WITNESS_BLOCKS))
        result["rows_rendered"] = rerender(renderer, reader, seed=experiment.seed, rows_per_block=per_block)
        if trained is not None:
            normalize = normalization_of(experiment.teacher, images, trained.mean_std)
            live = Teacher(trained.network, normalize, processes)
            result |= {"rows_recomputed": rows, **_compared(live, renderer, reader, names, experiment.seed, rows)}
        return result
    finally:
        processes.end()


def _read_everything(reader: LogitReader) -> tuple[dict[str, Any], list[Damage]]:
    """How much was read how fast, and what is damaged."""
    began, sizes, damages = time.perf_counter(), list[int](), list[Damage]()
    with progress_bar("reading", reader.num_objects, visible=True) as advance:
        for found in reader.damages():
            if isinstance(found, Damage):
                damages.append(found)
            else:
                sizes.append(found)
            advance(1)
    seconds = time.perf_counter() - began
    return {"objects": len(sizes) + len(damages), "bytes": sum(sizes), "seconds": round(seconds, 3)}, damages


def convert(cache: str, out: str, *, store: str | None, codec: Codec | None, allow_loss: bool) -> dict[str, Any]:
    """Write a cache anew at `out`, in another store or codec (None: as it is); what came of it.

    Interrupted, it goes on where it stopped. Raises `ConfigError` where that would lose information and `allow_loss`
    doesn't hold.
    """
    began, reader = time.perf_counter(), open_cache(cache)
    wanted = codec_of(codec, reader.manifest.num_classes) if codec else None
    manifest, storage, store = converted(reader, wanted, allow_loss=allow_loss), storage_of(out), store or reader.store
    manifest = begin(storage, store, manifest)
    blocks = convert_blocks(reader, LogitWriter(storage, store, manifest, manifest.signals))
    result = open_cache(out)
    return {
        "cache": describe(out, result.manifest),
        "store": result.store,
        "blocks_written": blocks,
        "bytes": result.stored_bytes(),
        "bounds": _bounds(result),
        "seconds": round(time.perf_counter() - began, 2),
    }


def inspect(cache: str) -> dict[str, Any]:
    """What a cache is, how complete and how large, and how far what it holds may lie from what the teacher said."""
    storage = storage_of(cache)
    found = find(storage)
    if found is None:
        raise CacheIncomplete(f"cache at {cache}: expected a dhkd cache, found none; make it with 'dhkd cache-teacher'")
    manifest, plan = found.manifest, found.manifest.plan
    listable = storage.sizes() is not None
    missing = missing_blocks(storage, found.store, manifest, manifest.names) if listable else []
    total = plan.num_views * plan.blocks_per_view
    reader = LogitReader(storage, found.index) if found.index else None
    return {
        **describe(cache, manifest),
        "format": manifest.format,
        "store": found.store,
        "complete": reader is not None and reader.manifest == manifest and not missing,
        "complete_views": reader.plan.num_views if reader else 0,
        "complete_signals": list(reader.manifest.signals) if reader else [],
        "blocks": total,
        "blocks_done": total - len(missing),
        "rows_per_block": plan.block_rows,
        "bytes": reader.stored_bytes() if reader else None,
        "bounds": _bounds(reader) if reader else {},
        "digests": {name: manifest.digest_of([name]) for name in manifest.signals if teachers_own(name) == LOGITS},
        "identity": manifest.identity.model_dump(mode="json"),
        "provenance": manifest.provenance,
    }


def _bounds(reader: LogitReader) -> dict[str, dict[str, float | None]]:
    """For each signal what its stored values allow to be said of losses computed from them."""
    bounds: dict[str, dict[str, float | None]] = {}
    for name in reader.manifest.signals:
        bound = reader.bound(name)
        if bound is None or teachers_own(name) != LOGITS:
            continue
        losses = Bounds(bound.error, reader.manifest.num_classes)
        bounds[name] = {
            "error": bound.error,
            "tail_mass": bound.tail_mass,
            "kl_at_4": losses.kl(4),
            "binary_kl_at_2": losses.binary_kl(2),
            "margin": losses.margin,
        }
    return bounds
