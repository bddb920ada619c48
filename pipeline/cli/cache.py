"""The command `cache-teacher`, and the commands `inspect`, `verify` and `convert` for existing caches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from dhkd.pipeline.cli.engines import engine_options
from dhkd.pipeline.cli.options import (
    TEACHER_HELP,
    ExperimentOptions,
    Part,
    cpu_option,
    data_options,
    experiment_options,
    gathered,
    json_option,
    part_option,
    precision_option,
)
from dhkd.pipeline.cli.output import emit
from dhkd.pipeline.cli.paths import LOCATION, OUT_LOCATION, RUN, require_apart
from dhkd.pipeline.cli.recorded import OF_THE_MACHINE, recorded_command
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.engines.choice import EngineOptions
from dhkd.pipeline.launch import settle_launch

if TYPE_CHECKING:
    from dhkd.configs.schema import Codec
    from dhkd.pipeline.results import CachedTeacher, Converted, Verified


@dataclass(frozen=True)
class CachingOptions:
    """Which teacher is cached, where and under what name, and which share of the work this call does."""

    teacher: Path
    out: str
    name: str | None
    part: Part
    cpu: bool


@click.command("cache-teacher")
@experiment_options(
    {
        "views": "cache.views={}",
        "store": "cache.store={}",
        "codec": "cache.codec={}",
        "signals": "cache.signals=[{}]",
        "precision": "cache.precision={}",
    }
)
@gathered("caching", CachingOptions)
@click.option("--teacher", type=RUN, required=True, help=TEACHER_HELP)
@click.option(
    "--out",
    type=OUT_LOCATION,
    required=True,
    help="Location of the cache: a folder, or a URL (s3://, gs://, az://). An existing cache is resumed or extended.",
)
@click.option(
    "--views", help="Number of views to cache, or the word all, for every view of the recipe [default: cache.views]."
)
@click.option("--store", help="Storage format of the cache: zarr or webdataset [default: zarr].")
@click.option(
    "--codec",
    help="Number format of the logits: float16, float32 or int8 [default: float16]; for top-k use, for example,"
    " --set cache.codec='{kind: top-k, k: 20, temperature: 4}'.",
)
@click.option(
    "--name",
    help="Name for this teacher, to keep several teachers in one cache: this teacher's outputs are stored beside those"
    " that the cache already holds.",
)
@part_option("Process only share I (from 1) of N; whichever job finishes last completes the cache.")
@click.option(
    "--signals",
    metavar="A,B",
    help="Teacher outputs to cache, comma-separated [default: logits]: logits, embedding, last_map, mapN (the map of"
    " stage N), mapN-before (the same before its activation), mapN-out (the one that published comparisons use);"
    " cam and attention stand for the outputs needed by the methods 'cat-kd' and 'at', respectively. More can be added"
    " to the cache later.",
)
@precision_option
@data_options
@cpu_option
@engine_options
@json_option
def cache_teacher(
    experiment: ExperimentOptions, caching: CachingOptions, data: DataOptions, engine: EngineOptions, as_json: bool
) -> None:
    """Run the teacher once over every view and cache its outputs.

    If interrupted, run the same command again: it resumes, and rewrites damaged blocks. To split the work within a
    machine, for example among GPUs, use 'torchrun' or 'accelerate launch'. To split it among machines, use a cluster
    with --on, run the same command on each, or assign fixed shares with --part.
    """
    _require_alone(engine)
    if engine.elsewhere and caching.part.parts > 1:
        raise click.UsageError("--part: expected none beside --on, whose engine shares out all of the work")
    require_apart(caching.out, **{"--teacher": caching.teacher, "--data-root": data.root})
    loaded = experiment.load()
    command = recorded_command(click.get_current_context(), without=OF_THE_MACHINE)
    result = _caching_of(engine, caching.part)(
        loaded, caching.teacher, caching.out, data=data, name=caching.name, command=command, cpu=caching.cpu
    )
    emit(result, as_json, lambda: str(result))


def _caching_of(engine: EngineOptions, part: Part) -> Callable[..., "CachedTeacher"]:
    if not engine.elsewhere:
        from dhkd.pipeline.caching import cache_teacher

        return partial(cache_teacher, part=part)
    from dhkd.pipeline.caching_on import cache_teacher_on

    return partial(cache_teacher_on, engine)


def _require_alone(engine: EngineOptions) -> None:
    if engine.elsewhere and settle_launch().world_size > 1:
        raise click.UsageError("--on: expected one process, which gives the work to others; leave torchrun out")


@click.command()
@click.argument("cache", type=LOCATION)
@json_option
def inspect(cache: str, as_json: bool) -> None:
    """Describe a cache: contents, completeness, size, precision."""
    from dhkd.pipeline import cache_tools
    from dhkd.pipeline.cli.tables.cache import cache_table

    result = cache_tools.inspect(cache)
    emit(result, as_json, lambda: cache_table(result))


@dataclass(frozen=True)
class VerifyOptions:
    """What `verify` recomputes and compares, in addition to checking the stored bytes."""

    teacher: Path | None
    rows: int
    cpu: bool


@click.command()
@click.argument("cache", type=LOCATION)
@experiment_options(
    preset=click.option(
        "--preset", help="Preset that the cache was made with; a sample of its images is rendered again and compared."
    )
)
@gathered("compared", VerifyOptions)
@click.option("--teacher", type=RUN, help=f"{TEACHER_HELP} Requires --preset; recomputes a sample of logits, too.")
@click.option(
    "--rows", type=click.IntRange(1), default=256, show_default=True, help="Number of images to render and recompute."
)
@data_options
@cpu_option
@engine_options
@json_option
def verify(
    cache: str,
    experiment: ExperimentOptions,
    compared: VerifyOptions,
    data: DataOptions,
    engine: EngineOptions,
    as_json: bool,
) -> None:
    """Check a cache for damage; optionally, reproduce a sample.

    Every stored byte is always checked. With --preset, a sample of the images is rendered again and compared; with
    --teacher as well, a sample of the logits (and other cached outputs) is recomputed. The result lists all damage. To
    repair it, run 'dhkd cache-teacher' again with its original arguments: only damaged parts are rewritten.
    """
    _require_alone(engine)
    if experiment.preset is None and (compared.teacher is not None or experiment.overrides or experiment.smoke):
        raise click.UsageError("--teacher, --set and --smoke go with --preset")
    loaded = experiment.load() if experiment.preset else None
    result = _verifying_of(engine)(
        cache, loaded, data=data, teacher=compared.teacher, rows=compared.rows, cpu=compared.cpu
    )
    if as_json or not result.damaged:
        emit(result, as_json, lambda: _line_of_verify(cache, result))
    if result.damaged:
        from dhkd.data.errors import CacheDamaged

        raise CacheDamaged(_line_of_damage(cache, result))


def _verifying_of(engine: EngineOptions) -> Callable[..., "Verified"]:
    if not engine.elsewhere:
        from dhkd.pipeline.cache_tools import verify

        return verify
    from dhkd.pipeline.verify_on import verify_on

    return partial(verify_on, engine)


def _line_of_verify(cache: str, result: "Verified") -> str:
    line = f"{cache}: good; {result.objects} objects read, {result.bytes / 1e6:,.1f} MB"
    if result.rows_rendered is not None:
        line += f"; {result.rows_rendered} rows re-rendered, all equal"
    if result.live is not None:
        line += (
            f"; {result.rows_recomputed} rows recomputed,"
            f" largest difference {result.live.largest_difference_from_live:.2g}, within tolerance"
        )
    return line


def _line_of_damage(cache: str, result: "Verified") -> str:
    damaged = result.damaged
    listed = "; ".join(f"{one.key} ({one.block or 'metadata'}): {one.reason}" for one in damaged[:5])
    more = f"; and {len(damaged) - 5} more, which --json lists" if len(damaged) > 5 else ""
    return (
        f"cache at {cache}: {len(damaged)} of {result.objects} objects are damaged: {listed}{more}; run 'dhkd"
        f" cache-teacher' again with the same arguments: it rewrites only those"
    )


@dataclass(frozen=True)
class CodecOptions:
    """How a converted cache stores its logits; an option that was not given is None."""

    codec: str | None
    k: int | None
    temperature: float | None

    def parse(self) -> "Codec | None":
        """Return the codec, or None if no option was given. Raises `ConfigError` if the options don't fit together."""
        from dhkd.configs.load import parse_codec

        return parse_codec(self.codec, self.k, self.temperature) if self.codec or self.k or self.temperature else None


@click.command()
@click.argument("cache", type=LOCATION)
@click.argument("out", type=OUT_LOCATION)
@gathered("codec", CodecOptions)
@click.option("--store", help="Storage format of OUT: zarr or webdataset [default: that of CACHE].")
@click.option(
    "--codec", help="Number format of the logits in OUT: float32, float16, int8 or top-k [default: that of CACHE]."
)
@click.option("--k", type=click.IntRange(1), help="With --codec top-k: number of logits to keep for each image.")
@click.option(
    "--temperature",
    type=float,
    help="With --codec top-k: softmax temperature at which the probabilities of the other classes are summed.",
)
@click.option("--allow-loss", is_flag=True, help="Convert even if this loses precision.")
@json_option
def convert(cache: str, out: str, store: str | None, codec: CodecOptions, allow_loss: bool, as_json: bool) -> None:
    """Copy a cache to another format, codec or location.

    CACHE is not changed. If interrupted, run the same command again: it resumes.
    """
    require_apart(out, CACHE=cache)
    wanted = codec.parse()
    from dhkd.pipeline import cache_tools

    result = cache_tools.convert(cache, out, store=store, codec=wanted, allow_loss=allow_loss)
    emit(result, as_json, lambda: _line_of_convert(out, result))


def _line_of_convert(out: str, result: "Converted") -> str:
    return (
        f"{out}: complete, {result.store}, {result.bytes / 1e6:,.1f} MB;"
        f" {result.blocks_written} blocks written in {result.seconds:.1f} s"
    )
