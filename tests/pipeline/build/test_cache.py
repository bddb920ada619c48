"""From settings to a cache: codecs, signals' names, what a cache can serve and how it is held in memory."""

from pathlib import Path

import pytest
import torch
from dhkd.configs.schema import Codec as CodecSettings
from dhkd.data.cache.codecs import Float, Int8, TopK
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheMismatch, ConfigError
from dhkd.data.stream.signals import NoSignals, ResidentSignals, Signals, StreamedSignals, WindowedSignals
from dhkd.pipeline.build.cache import (
    asked_signals,
    block_rows_of,
    cached_names,
    codec_of,
    codec_of_signal,
    digest_for,
    largest_row,
    of_views,
    plan_of,
    signals_of,
    summary_of,
)
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.build.training import setting_of
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.train.objectives import build_objective
from dhkd.stages.train.objectives.contract import Setting

from tests.pipeline.conftest import experiment_of, untrained_weights
from tests.samples import make_images

CPU = torch.device("cpu")
IMAGES = make_images(num_samples=20, num_classes=10)


def setting(*overrides: str) -> Setting:
    experiment = experiment_of(*overrides)
    return setting_of(experiment, experiment.student, IMAGES, build_objective("ce", {}))


def test_codecs_are_what_the_preset_names() -> None:
    assert codec_of(CodecSettings(kind="float32"), 10) == Float("float32")
    assert codec_of(CodecSettings(kind="int8"), 10) == Int8()
    top_k = CodecSettings(kind="top-k", k=9, temperature=4)
    assert codec_of(top_k, 10) == TopK(k=9, temperature=4)
    with pytest.raises(ConfigError, match=r"cache.codec.k: expected fewer than all 9 classes, got 9"):
        codec_of(top_k, 9)


@pytest.mark.parametrize(
    ("kind", "stored"), [("float16", "float16"), ("float32", "float32"), ("int8", "float16"), ("top-k", "float16")]
)
def test_other_signals_are_stored_as_floats(kind: str, stored: str) -> None:
    top_k = {"k": 3, "temperature": 4} if kind == "top-k" else {}
    settings = CodecSettings.model_validate({"kind": kind, **top_k})
    assert codec_of_signal(settings, "embedding", 10).kind == stored
    assert codec_of_signal(settings, "logits", 10).kind == kind


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("[logits]", ["logits"]),
        ("[map2-before, logits, map2-before]", ["map2-before", "logits"]),
        ("[cam, logits]", ["cam-2x2", "logits"]),
        ("[attention]", ["attention1-8x8", "attention2-4x4", "attention3-2x2"]),
        ("[attention2-4x4, attention]", ["attention2-4x4", "attention1-8x8", "attention3-2x2"]),
    ],
)
def test_words_stand_for_what_their_objectives_need(asked: str, names: list[str]) -> None:
    assert asked_signals(experiment_of(f"cache.signals={asked}"), setting()) == names


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("[map1-before-batch]", "signal 'map1-before-batch': it depends on the other rows of a batch"),
        ("[embeding]", "signal 'embeding': expected one such as"),
    ],
)
def test_what_can_not_be_cached(asked: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked_signals(experiment_of(f"cache.signals={asked}"), setting())


def test_the_largest_signal_decides_how_many_rows_a_block_has() -> None:
    experiment = experiment_of("cache.signals=[logits,embedding]", "cache.block_mb=0.001")
    assert largest_row(experiment, setting()) == 2 * 64  # the embedding's, in float16
    assert block_rows_of(experiment, IMAGES, setting()) == 7  # 8 fit; of 20 rows that makes 7, 7 and 6
    assert plan_of(experiment, IMAGES, recipe_of(experiment.views), setting()).num_views == 2


@pytest.mark.parametrize(
    ("needs", "teacher", "names", "lacking"),
    [
        ({"logits": None}, None, {"logits": ["logits"]}, []),
        ({"logits": 4.0, "embedding": None}, None, {"logits": ["logits"], "embedding": ["embedding"]}, []),
        ({"logits": None, "embedding": None}, "b", {"logits": ["b.logits"]}, ["embedding"]),
        ({"logits": None}, "mean", {"logits": ["b.logits", "logits"]}, []),
        ({"logits": None}, "c", {}, ["logits"]),
        ({}, None, {}, []),
    ],
)
def test_the_cached_signals_of_a_teacher(
    needs: dict[str, float | None],
    teacher: str | None,
    names: dict[str, list[str]],
    lacking: list[str],
    reader: LogitReader,
) -> None:
    served, missing = cached_names(needs, reader, teacher, "")
    assert ({need: sorted(stored) for need, stored in served.items()}, missing) == (names, lacking)


def test_only_logits_have_a_mean(reader: LogitReader) -> None:
    with pytest.raises(ConfigError, match="several teachers have a mean of their logits, not of embedding"):
        cached_names({"embedding": None}, reader, "mean", "")


def test_the_largest_logits_serve_one_temperature(top_k: LogitReader) -> None:
    assert cached_names({"logits": 4.0}, top_k, None, "")[0] == {"logits": ["logits"]}
    with pytest.raises(CacheMismatch, match=r"it needs raw logits .*, or pass its temperature$"):
        cached_names({"logits": None}, top_k, None, "pass its temperature")
    with pytest.raises(CacheMismatch, match="probabilities at temperature 2"):
        cached_names({"logits": 2.0}, top_k, None, "")


def test_the_mean_of_teachers_whose_tails_are_gone_is_refused(top_k: LogitReader, tmp_path: Path) -> None:
    """The mean of two rows is no row of its largest logits: what one teacher keeps, the other shares out equally."""
    out = str(tmp_path / "k.zarr")
    codec = "cache.codec={kind: top-k, k: 3, temperature: 4}"
    for name, seed in (("a", 0), ("b", 1)):
        file = untrained_weights(tmp_path / f"{name}.safetensors", seed)
        cache_teacher(experiment_of(codec), file, out, data=DataOptions(), name=name, cpu=True)
    two = open_cache(out)
    says = r"signal .*logits can't serve the objective: the mean of 2 teachers needs all logits of each, .* holds 3;"
    with pytest.raises(CacheMismatch, match=says):
        cached_names({"logits": 4.0}, two, "mean", "choose one of them")
    assert cached_names({"logits": 4.0}, two, "a", "")[0] == {"logits": ["a.logits"]}
    assert cached_names({"logits": 4.0}, top_k, "mean", "")[0] == {"logits": ["logits"]}, "of one, it is that one's"


def test_a_digest_is_of_the_logits_that_a_student_learns_from(
    reader: LogitReader, weights: Path, tmp_path: Path
) -> None:
    digests = [digest_for(reader, teacher) for teacher in (None, "b", "mean")]
    assert len({*digests, reader.manifest.digest}) == 4
    alone = cache_teacher(experiment_of(), weights, str(tmp_path / "c"), data=DataOptions(), cpu=True)
    assert alone.cache.digest == digests[0], "the same without other signals and teachers"
    assert digest_for(reader, "c") == reader.manifest.digest, "of everything where there are no such logits"


def test_a_summary_of_a_cache(reader: LogitReader) -> None:
    summary = summary_of("c.zarr", reader.manifest)
    assert (summary.path, summary.teacher, summary.digest) == ("c.zarr", "resnet8", reader.manifest.digest)
    assert (summary.views, summary.samples, summary.classes) == (2, 20, 10)
    assert summary.signals == dict.fromkeys(("logits", "embedding", "b.logits"), "float16")
    assert summary.row_bytes == 2 * (10 + 64 + 10)


def test_a_student_may_be_trained_on_the_first_views(reader: LogitReader) -> None:
    assert of_views(reader, experiment_of().student) is reader
    assert of_views(reader, experiment_of("student.views=1").student).plan.num_views == 1
    with pytest.raises(ConfigError, match=r"student.views: expected at most 2, .*, got 3; cache more"):
        of_views(reader, experiment_of("student.views=3").student)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ([], ResidentSignals),
        (["student.window=10"], ResidentSignals),  # an independent view for each sample needs all of them
        (["student.view_schedule=cycle"], StreamedSignals),
        (["student.view_schedule=block"], ResidentSignals),
        (["student.view_schedule=block", "student.window=10"], WindowedSignals),
        (["student.view_schedule=cycle", "student.window=10"], WindowedSignals),
    ],
)
def test_a_schedule_decides_what_is_in_memory(settings: list[str], kind: type[Signals], reader: LogitReader) -> None:
    student = experiment_of(*settings).student
    assert type(signals_of({"logits": ["logits"]}, reader, student, CPU, 1)) is kind
    assert type(signals_of({}, reader, student, CPU, 1)) is NoSignals


def test_a_cache_that_does_not_fit_into_memory_is_refused(reader: LogitReader) -> None:
    with pytest.raises(ConfigError, match=r"GB free, got .* GB; use --set student.view_schedule=cycle"):
        signals_of({"logits": ["logits"]}, unshared(reader), experiment_of().student, CPU, copies=10**12)


def unshared(reader: LogitReader) -> LogitReader:
    """The same cache, opened so that processes can't share it."""
    return LogitReader(reader._storage, reader._index)


def test_processes_that_can_not_share_a_cache_say_why(reader: LogitReader, caplog: pytest.LogCaptureFixture) -> None:
    names, student = {"logits": ["logits"]}, experiment_of().student
    with caplog.at_level("INFO", "dhkd"):
        signals_of(names, reader, student, CPU, copies=10**12)  # one copy of all
        assert not caplog.records
        signals_of(names, unshared(reader), student, CPU, copies=2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"cache at {reader.location}: each of 2 processes holds a copy of its own in memory, because"
    )
