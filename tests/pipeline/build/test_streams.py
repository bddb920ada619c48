"""What comes from where for a student, and what students that train side by side share."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from dhkd.data.cache.reader import LogitReader
from dhkd.data.errors import CacheMismatch, ConfigError, DhkdError
from dhkd.data.stream.batches import Batch, Stream
from dhkd.pipeline.build.cache import digest_for
from dhkd.pipeline.build.data import normalization_of, renderer_of
from dhkd.pipeline.build.streams import student_streams, teacher_stream
from dhkd.pipeline.build.students import Source, prepared_student, source_of
from dhkd.pipeline.build.training import setting_of
from dhkd.pipeline.data_options import DataOptions
from dhkd.pipeline.environment import processes_for
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives import build_objective

from tests.pipeline.conftest import experiment_of

LIVE = "teacher.live=true"


@pytest.fixture
def source(reader: LogitReader, weights: Path) -> Source:
    """The cache, and the teacher's weights."""
    return source_of(experiment_of(), reader.location, weights, DataOptions())


@pytest.fixture
def cache_alone(reader: LogitReader) -> Source:
    """The cache, of which any teacher will do."""
    return source_of(experiment_of(), reader.location, None, DataOptions())


def streams_of(source: Source, processes: Processes, students: Mapping[str, tuple[str, ...]]) -> dict[str, Stream]:
    """By name, the stream of each student, given its overrides."""
    experiments = {Path(name): experiment_of(*overrides) for name, overrides in students.items()}
    prepared = {out: prepared_student(experiment, source) for out, experiment in experiments.items()}
    renderer = renderer_of(source.images, source.recipe, processes.device, DataOptions())
    normalize = normalization_of(next(iter(experiments.values())).student, source.images)
    streams = student_streams(prepared, source, renderer, normalize, processes)
    return {str(out): stream for out, stream in streams.items()}


def first_batch(stream: Stream) -> Batch:
    return next(stream.epoch(0))


def test_what_a_run_is_beside_its_settings(source: Source, reader: LogitReader) -> None:
    student = prepared_student(experiment_of("objective=kd", "student.views=1"), source)
    assert (student.names, student.live) == ({"logits": ["logits"]}, [])
    assert student.facts() == {
        "command": "train-student",
        "cache": digest_for(reader, None),
        "views": 1,
        "live": None,
    }
    student = prepared_student(experiment_of("objective=kd + fitnet", LIVE), source)
    assert (student.names, student.live) == ({"logits": ["logits"]}, ["map2"])
    sha256 = reader.manifest.signals["logits"].teacher["sha256"]
    assert student.facts()["live"] == {"signals": ["map2"], "sha256": sha256, "precision": "float32"}


def test_without_a_cache(weights: Path) -> None:
    source = source_of(experiment_of(), None, weights, DataOptions())
    alone = prepared_student(experiment_of("objective=ce"), source).facts()
    assert alone == {"command": "train-student", "cache": None, "views": None, "live": None}
    assert prepared_student(experiment_of("objective=kd", LIVE), source).live == ["logits"]


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        (["objective=simkd", LIVE], ConfigError, "--teacher: objective 'simkd' takes the teacher's classifier"),
        (["objective=fitnet", LIVE], ConfigError, "--teacher: the teacher is to run in every step, for map2; expected"),
        (["objective=fitnet"], CacheMismatch, "objective 'fitnet' needs the signal map2, it holds"),
        (["teacher=resnet14"], CacheMismatch, "teacher.architecture expected resnet14, got resnet8"),
        (["student.views=3"], ConfigError, "student.views: expected at most 2"),
    ],
)
def test_what_is_missing_has_a_line_of_its_own(
    overrides: list[str], error: type[DhkdError], says: str, reader: LogitReader
) -> None:
    experiment = experiment_of(*overrides)
    source = source_of(experiment, reader.location, None, DataOptions())
    with pytest.raises(error, match=says):
        prepared_student(experiment, source)


def test_students_that_see_the_same_keys_share_a_stream(cache_alone: Source, processes: Processes) -> None:
    """With the signals of all of them."""
    students = {
        "ce": ("objective=ce",),
        "rkd": ("objective=rkd", "student=resnet14"),
        "kd": ("objective=kd", "student.lr=1"),
        "seed": ("objective=kd", "seed=1"),
        "batches": ("objective=kd", "student.batch_size=5"),
        "views": ("objective=kd", "student.views=1"),
        "other": ("objective=kd", "student.teacher=b"),
        "cycle": ("objective=kd", "student.view_schedule=cycle"),
    }
    streams = streams_of(cache_alone, processes, students)
    assert list(streams) == list(students)
    assert streams["ce"] is streams["rkd"] is streams["kd"]
    assert len(set(streams.values())) == 6
    assert first_batch(streams["ce"]).teacher.keys() == {"embedding", "logits"}
    assert first_batch(streams["cycle"]).teacher.keys() == {"logits"}


def test_a_shared_stream_gives_what_each_would_have_alone(source: Source, processes: Processes) -> None:
    students = {"kd": ("objective=kd",), "rkd": ("objective=rkd",), "seed": ("objective=kd", "seed=1")}
    together = streams_of(source, processes, students)
    for name, overrides in students.items():
        (alone,) = streams_of(source, processes, {name: overrides}).values()
        one, other = first_batch(alone), first_batch(together[name])
        for field in ("view_B", "index_B", "images_BCHW"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        assert torch.equal(one.labels.first_B, other.labels.first_B)
        assert all(torch.equal(signal, other.teacher[need]) for need, signal in one.teacher.items())


def test_the_whole_cache_is_in_memory_once(cache_alone: Source, processes: Processes) -> None:
    """For all students that draw from the same views of one teacher, in any order, with the signals of all of them."""
    streams = streams_of(
        cache_alone,
        processes,
        {"one": (), "two": ("seed=1", "objective=rkd"), "three": ("student.views=1",), "four": ("student.teacher=b",)},
    )
    assert first_batch(streams["two"]).teacher.keys() >= {"embedding"}
    held = {name: stream._signals for name, stream in streams.items()}
    assert held["one"] is held["two"]
    assert len({id(signals) for signals in held.values()}) == 3


def test_live_signals_stand_beside_cached_ones(source: Source, processes: Processes) -> None:
    students = {"kd": ("objective=kd", LIVE), "fitnet": ("objective=kd + fitnet", LIVE), "seed": ("seed=1", LIVE)}
    streams = streams_of(source, processes, students)
    assert streams["kd"] is streams["fitnet"]
    signals = first_batch(streams["kd"]).teacher
    assert signals.keys() == {"logits", "map2"}
    assert signals["map2"].shape == (10, 32, 4, 4)
    assert first_batch(streams["seed"]).teacher.keys() == {"logits"}


def test_without_a_cache_every_view_may_be_drawn(processes: Processes) -> None:
    experiment = experiment_of("objective=ce")
    source = source_of(experiment, None, None, DataOptions())
    streams = streams_of(source, processes, {"all": ("objective=ce",), "few": ("objective=ce", "student.views=2")})
    views = {
        name: {int(view) for epoch in range(9) for view in stream.keys(epoch)[0]} for name, stream in streams.items()
    }
    assert views == {"all": set(range(9)), "few": {0, 1}}


def test_a_teacher_is_trained_in_the_order_of_the_students(source: Source, processes: Processes) -> None:
    """The window is the student's setting, the batch size the teacher's own."""
    experiment = experiment_of("student.window=5", "cache.block_mb=0.0001", "teacher.batch_size=4")
    setting = setting_of(experiment, experiment.teacher, source.images, build_objective("ce", {}))
    renderer = renderer_of(source.images, source.recipe, processes.device, DataOptions())
    normalize = normalization_of(experiment.teacher, source.images)
    stream = teacher_stream(experiment, setting, source, renderer, normalize, processes)
    index_N = stream.keys(0)[1]
    assert sorted({index // 5 for index in index_N[:5].tolist()}) in ([0], [1], [2], [3]), "one block, then another"
    assert stream.steps_per_epoch == 5
    assert first_batch(stream).teacher == {}


@pytest.mark.parametrize("of_cache", ["float32", "bf16"])
@pytest.mark.parametrize("of_student", ["float32", "bf16"])
def test_a_live_teacher_computes_as_its_cache_would_have_been_made(
    of_cache: str, of_student: str, weights: Path
) -> None:
    """Whatever the student's precision: otherwise a cached and a live run would be two experiments."""
    overrides = (LIVE, "objective=kd", f"cache.precision={of_cache}", f"student.precision={of_student}")
    source = source_of(experiment_of(*overrides), None, weights, DataOptions(), cpu=True)
    with processes_for(of_student, cpu=True) as processes:
        batch = first_batch(streams_of(source, processes, {"run": overrides})["run"])
        network = source.network
        assert network is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=of_cache == "bf16"):
            expected = network.to(memory_format=torch.channels_last)(batch.images_BCHW).float()
    assert torch.equal(batch.teacher["logits"], expected)


def test_the_precision_of_a_live_teacher_belongs_to_the_run(weights: Path) -> None:
    facts = []
    for precision in ("float32", "bf16"):
        experiment = experiment_of(LIVE, "objective=kd", f"cache.precision={precision}")
        facts.append(prepared_student(experiment, source_of(experiment, None, weights, DataOptions())).facts())
    assert [fact["live"]["precision"] for fact in facts] == ["float32", "bf16"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["objective=fitnet", "objectives.fitnet.hint_stage=7"], "expected a stage from 0 to 3, got 7"),
        (["student.lr_schedule=one-cycle", "student.warmup_epochs=1"], "one-cycle, which has a rise of its own"),
        (["objective=kd + label-smoothing"], "got label-smoothing, which adds nothing to kd"),
        (["objective=at", "student=vgg8"], "compares stage with stage"),
    ],
)
def test_what_a_student_can_not_do_is_refused_before_anything_is_computed(
    overrides: list[str], says: str, source: Source
) -> None:
    with pytest.raises(ConfigError, match=says):
        prepared_student(experiment_of(LIVE, *overrides), source)
