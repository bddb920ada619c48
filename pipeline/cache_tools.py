"""Tools for an existing cache: inspect, verify, convert."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dhkd.configs.schema import Codec, Experiment
from dhkd.data.cache.codecs import Bounds
from dhkd.data.cache.find import find
from dhkd.data.cache.manifest import Manifest, require_identity, signal_name, teachers_own
from dhkd.data.cache.missing import missing_blocks
from dhkd.data.cache.reader import Damage, LogitReader, open_cache
from dhkd.data.cache.writer import LogitWriter, begin
from dhkd.data.errors import CacheIncomplete
from dhkd.data.progress import progress
from dhkd.data.storage.places import storage_of
from dhkd.pipeline.build.cache import LOGITS, codec_of, reader_of, summary_of
from dhkd.pipeline.build.checks import require_cache
from dhkd.pipeline.build.code import code_of_teacher, require_code_of_cache
from dhkd.pipeline.build.data import images_of, recipe_of, renderer_of
from dhkd.pipeline.build.teacher import teacher_normalization, teacher_recipe_of, trained_teacher
from dhkd.pipeline.caching import REBUILD, compare_signals
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.drift import WITNESS_BLOCKS, rerender
from dhkd.pipeline.environment import processes_for
from dhkd.pipeline.results import Converted, DamagedObject, Inspected, SignalBounds, Verified
from dhkd.stages.cache.convert import convert_blocks, converted
from dhkd.stages.models.teacher import Teacher


def verify(
    cache: str,
    experiment: Experiment | None,
    *,
    data: DataOptions,
    teacher: Path | None,
    rows: int,
    cpu: bool = False,
) -> Verified:
    """Read a whole cache, check every byte and list the damaged objects.

    If nothing is damaged and `experiment` is given, about `rows` random rows are rendered again and compared with the
    witnesses, the checksums of each row's rendered pixels. With `teacher` as well, `rows` random rows of the teacher's
    signals are compared with a live forward pass. Raises `CacheIncomplete` for an unfinished cache. Raises
    `CacheMismatch` if a compared row differs, and if the cache was made with other settings or weights.
    """
    reader = reader_of(cache, data)
    verified = _read_everything(cache, reader)
    if verified.damaged or experiment is None:
        return verified
    with sampling(cache, reader, experiment, data=data, teacher=teacher, cpu=cpu) as sampled:
        return sampled(verified, rows)


@contextmanager
def sampling(
    cache: str, reader: LogitReader, experiment: Experiment, *, data: DataOptions, teacher: Path | None, cpu: bool
) -> Iterator[Callable[[Verified, int], Verified]]:
    """Load what `verify` compares with; the context gives the function that adds a comparison of random rows.

    Raises `CacheMismatch` if the cache was made with other settings or weights.
    """
    names = _signals_of_teacher(reader.manifest, experiment.student.teacher)
    with processes_for(reader.manifest.signals[names[0]].precision, cpu=cpu) as processes:
        images = images_of(experiment, "train", data, lambda: reader.manifest.num_classes)
        recipe = recipe_of(experiment.views)
        require_cache(experiment, reader, images, recipe, names, None, data)
        trained = None
        if teacher is not None:
            trained = trained_teacher(experiment, images, teacher, data)
            require_code_of_cache(reader.manifest, cache, names, code_of_teacher(experiment))
            _require_weights(trained.sha256, reader.manifest, names, cache)
        renderer = renderer_of(images, recipe, processes.device, data)

        def sampled(verified: Verified, rows: int) -> Verified:
            per_block = max(1, -(-rows // WITNESS_BLOCKS))
            rendered = rerender(renderer, reader, seed=experiment.seed, rows_per_block=per_block)
            verified = replace(verified, rows_rendered=rendered)
            if trained is None:
                return verified
            normalize = teacher_normalization(experiment, images, trained.mean_std)
            live = Teacher(trained.network, normalize, processes, recipe=teacher_recipe_of(experiment))
            compared = compare_signals(live, renderer, reader, names, experiment.seed, rows)
            return replace(verified, rows_recomputed=rows, live=compared)

        yield sampled


def convert(cache: str, out: str, *, store: str | None, codec: Codec | None, allow_loss: bool) -> Converted:
    """Write a cache again at `out`, in another store or codec; for either, None keeps the current one.

    An interrupted conversion continues where it stopped. Raises `ConfigError` if information would be lost, unless
    `allow_loss` is set.
    """
    began, reader = time.perf_counter(), open_cache(cache)
    wanted = codec_of(codec, reader.manifest.num_classes) if codec else None
    manifest, storage, store = converted(reader, wanted, allow_loss=allow_loss), storage_of(out), store or reader.store
    manifest = begin(storage, store, manifest)
    blocks = convert_blocks(reader, LogitWriter(storage, store, manifest, manifest.signals))
    result = open_cache(out)
    return Converted(
        cache=summary_of(out, result.manifest),
        store=result.store,
        blocks_written=blocks,
        bytes=result.stored_bytes(),
        bounds=_bounds(result),
        seconds=round(time.perf_counter() - began, 2),
    )


def inspect(cache: str) -> Inspected:
    """Report what a cache holds, how complete and large it is, and how far its values may be from the teacher's."""
    storage = storage_of(cache)
    found = find(storage)
    if found is None:
        raise CacheIncomplete(f"cache at {cache}: expected a dhkd cache, found none; make it with 'dhkd cache-teacher'")
    manifest, plan = found.manifest, found.manifest.plan
    listable = storage.sizes() is not None
    missing = missing_blocks(storage, found.store, manifest, manifest.names) if listable else []
    total = plan.num_views * plan.blocks_per_view
    reader = LogitReader(storage, found.index) if found.index else None
    return Inspected(
        summary=summary_of(cache, manifest),
        format=manifest.format,
        store=found.store,
        complete=reader is not None and reader.manifest == manifest and not missing,
        complete_views=reader.plan.num_views if reader else 0,
        complete_signals=list(reader.manifest.signals) if reader else [],
        blocks=total,
        blocks_done=total - len(missing),
        rows_per_block=plan.block_rows,
        bytes=reader.stored_bytes() if reader else None,
        bounds=_bounds(reader) if reader else {},
        digests={name: manifest.digest_of([name]) for name in manifest.signals if teachers_own(name) == LOGITS},
        identity=manifest.identity.model_dump(mode="json"),
        provenance=manifest.provenance,
    )


def _read_everything(cache: str, reader: LogitReader) -> Verified:
    """Read every object of the cache, and return the bytes read, the time taken and the damaged objects."""
    began, sizes, damages = time.perf_counter(), list[int](), list[Damage]()
    with progress("reading", reader.num_objects, visible=True) as advance:
        for size_or_damage in reader.damages():
            if isinstance(size_or_damage, Damage):
                damages.append(size_or_damage)
            else:
                sizes.append(size_or_damage)
            advance(1)
    return verified_of(cache, reader.manifest, len(sizes), sum(sizes), damages, time.perf_counter() - began)


def verified_of(
    cache: str, manifest: Manifest, good: int, num_bytes: int, damages: Sequence[Damage], seconds: float
) -> Verified:
    """Return the result of reading a whole cache: `good` objects of together `num_bytes`, and the damaged ones."""
    return Verified(
        cache=summary_of(cache, manifest),
        objects=good + len(damages),
        bytes=num_bytes,
        seconds=round(seconds, 3),
        damaged=[
            DamagedObject(key=damage.key, block=str(damage.block) if damage.block else None, reason=damage.reason)
            for damage in damages
        ],
    )


def _signals_of_teacher(manifest: Manifest, teacher: str | None) -> list[str]:
    """Return the names of this teacher's signals, or of the cache's first signal if the cache lacks the teacher.

    `teacher` is a name in the cache; None stands for the teacher without a name.
    """
    prefix = signal_name(teacher, "")
    names = [name for name in manifest.signals if name.removesuffix(teachers_own(name)) == prefix]
    return names or [next(iter(manifest.signals))]


def _require_weights(sha256: str, manifest: Manifest, names: Sequence[str], cache: str) -> None:
    """Raise `CacheMismatch` unless the signals `names` come from a teacher whose weights have this hash."""
    expected = {"signals": {name: {"teacher": {"sha256": sha256}} for name in names}}
    require_identity(expected, manifest, f"{cache}: weights differ", REBUILD)


def _bounds(reader: LogitReader) -> dict[str, SignalBounds]:
    """Return the error bounds of all logits whose error the cache's index records, by the signal's name."""
    bounds: dict[str, SignalBounds] = {}
    for name in reader.manifest.signals:
        bound = reader.bound(name)
        if bound is None or teachers_own(name) != LOGITS:
            continue
        losses = Bounds(bound.error, reader.manifest.num_classes)
        bounds[name] = SignalBounds(
            error=bound.error,
            tail_mass=bound.tail_mass,
            kl_at_4=losses.kl(4),
            binary_kl_at_2=losses.binary_kl(2),
            margin=losses.margin,
        )
    return bounds
