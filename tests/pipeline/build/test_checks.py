"""Whether an experiment fits a cache, and students fit together: one line that says why not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dhkd.configs.schema import Experiment
from dhkd.data.cache.reader import LogitReader, open_cache
from dhkd.data.errors import CacheMismatch, ConfigError, DataError
from dhkd.data.images.base import Images
from dhkd.pipeline.build.checks import (
    LARGEST_BLOCK_BYTES,
    require_alike,
    require_batches,
    require_cache,
    require_live,
    require_own_draws,
    require_rows,
    require_same_classes,
    require_small_blocks,
)
from dhkd.pipeline.build.data import images_of, recipe_of
from dhkd.pipeline.build.networks import Trained
from dhkd.pipeline.build.training import objective_of, setting_of, student_of
from dhkd.pipeline.caching import cache_teacher
from dhkd.pipeline.data_options import DataOptions
from dhkd.stages.models import build_network
from dhkd.stages.models.signals import Shapes
from dhkd.stages.models.student import Student
from dhkd.stages.models.weights import save_weights, weights_sha256
from dhkd.stages.processes import Processes
from dhkd.stages.train.objectives.contract import Setting

from tests.caches import manifest_of
from tests.pipeline.conftest import experiment_of, untrained_weights
from tests.samples import make_images


def digits(experiment: Experiment) -> Images:
    return images_of(experiment, "train", DataOptions())


def checked(reader: LogitReader, *overrides: str, names: Sequence[str] = ("logits",), seed: int | None = None) -> None:
    """`require_cache` of the small preset; with `seed`, of the teacher that draws its weights from it."""
    experiment = experiment_of(*overrides)
    network = None
    if seed is not None:
        torch.manual_seed(seed)
        network = build_network("resnet8", 10)
    trained = None if network is None else Trained(network, "", None)
    require_cache(experiment, reader, digits(experiment), recipe_of(experiment.views), names, trained, DataOptions())


def test_a_cache_that_fits(reader: LogitReader) -> None:
    checked(reader)
    checked(reader, seed=0)
    checked(reader, names=["b.logits"], seed=1)
    checked(reader, "cache.precision=bf16", "cache.codec=int8", "student.lr=1", "seed=5")
    checked(reader, "teacher=resnet14", "student.teacher=mean", names=["logits", "b.logits"])


@pytest.mark.parametrize(
    ("overrides", "names", "seed", "says"),
    [
        (["data.limit=19"], ["logits"], None, ["dataset.num_samples expected 19, got 20", "dataset.fingerprint"]),
        (["views.seed=1"], ["logits"], None, ["recipe.seed expected 1, got 0"]),
        (["teacher=resnet14"], ["logits"], None, ["logits.teacher.architecture expected resnet14, got resnet8"]),
        ([], ["logits"], 1, ["signals.logits.teacher.sha256 expected "]),
        ([], ["b.logits"], 0, ["signals.b.logits.teacher.sha256 expected "]),
        ([f"teacher.sha256={'f' * 64}"], ["logits"], None, ["teacher.sha256 expected ffffffffffff…, got "]),
        (["teacher.mean=[0.1,0.2,0.3]"], ["logits"], None, ["teacher.mean expected [0.1, 0.2, 0.3], got "]),
        ([f"teacher.sha256={'f' * 64}", "student.teacher=mean"], ["logits"], None, ["teacher.sha256 expected"]),
    ],
)
def test_a_cache_of_something_else(
    overrides: list[str], names: list[str], seed: int | None, says: list[str], reader: LogitReader
) -> None:
    with pytest.raises(CacheMismatch) as error:
        checked(reader, *overrides, names=names, seed=seed)
    message = str(error.value)
    assert message.startswith(f"cache at {reader.location}: ")
    assert message.endswith("or make another with 'dhkd cache-teacher'")
    assert all(words in message for words in says), message


def test_a_teachers_weights_stand_above_the_hash_that_the_preset_names(reader: LogitReader) -> None:
    checked(reader, f"teacher.sha256={'f' * 64}", seed=0)


def setting_for(experiment: Experiment) -> Setting:
    images = images_of(experiment, "train", DataOptions())
    return setting_of(experiment, experiment.student, images, objective_of(experiment))


def live(reader: LogitReader | None, lacking: Sequence[str], *overrides: str) -> None:
    """`require_live` of the small preset's student, 20 samples in one epoch."""
    experiment = experiment_of(*overrides)
    require_live(experiment, setting_for(experiment), lacking, reader, digits(experiment), recipe_of(experiment.views))


def test_nothing_is_asked_where_nothing_is_lacking(reader: LogitReader) -> None:
    live(reader, [])
    live(None, [])
    live(reader, ["map1"], "teacher.live=true")
    live(None, ["logits"], "teacher.live=true")


@pytest.mark.parametrize(
    ("lacking", "overrides", "says"),
    [
        (
            ["last_map"],
            [],
            "objective 'dhkd' needs the signal last_map, it holds b.logits, embedding, logits; cache it with"
            " 'dhkd cache-teacher … --signals last_map' (0.0 MB a view, 40 forwards once for 2 views), or run the"
            " teacher in every step with --set teacher.live=true and --teacher FILE (20 forwards for each student)",
        ),
        (["last_map"], ["student.teacher=b"], "needs the signal b.last_map, it holds"),
        (["embedding"], ["student.teacher=b"], "; choose another teacher of it with --set student.teacher=NAME, or"),
        (["logits"], ["student.teacher=mean"], "needs the signal logits, it holds"),
        (
            ["last_map", "map1-before-batch"],
            [],
            "needs the signal last_map, map1-before-batch, it holds b.logits, embedding, logits; map1-before-batch"
            " can't be cached: run the teacher in every step",
        ),
        (["map1"], ["student.epochs=3"], "(60 forwards for each student)"),
        (["map1"], ["cache.codec=float32", "data.limit=1000"], f"({1000 * 16 * 64 * 4 / 1e6:,.1f} MB a view, 2,000"),
    ],
)
def test_both_ways_to_a_missing_signal_and_their_cost(
    lacking: list[str], overrides: list[str], says: str, reader: LogitReader
) -> None:
    with pytest.raises(CacheMismatch) as error:
        live(reader, lacking, *overrides)
    assert str(error.value).startswith(f"cache at {reader.location}: objective 'dhkd' needs the signal ")
    assert says in str(error.value)


def test_without_a_cache_the_views_are_the_presets() -> None:
    says = r"^--cache: objective 'dhkd' needs the signal logits, no cache was given; cache it .* once for 2 views"
    with pytest.raises(ConfigError, match=says):
        live(None, ["logits"])


def test_blocks_that_would_hold_too_much_are_refused() -> None:
    """16 rows of small logits fit where 16 rows of a large map don't."""
    rows = 16
    width = LARGEST_BLOCK_BYTES // (2 * rows)  # float16
    manifest = manifest_of(rows, 10, 1, rows, signals={"logits": ("float16", (10,)), "map1": ("float16", (width,))})
    require_small_blocks(manifest, ["logits"], "c")
    require_small_blocks(manifest, ["map1"], "c")
    says = r"^cache at c: its blocks of 16 rows would hold 1.1 GB of logits, map1, expected at most 1.1; write"
    with pytest.raises(ConfigError, match=says):
        require_small_blocks(manifest, ["logits", "map1"], "c")


def test_one_student_is_like_itself(processes: Processes) -> None:
    require_alike([experiment_of()], processes)


def test_students_may_differ_in_all_that_is_their_own(processes: Processes) -> None:
    others = ("seed=1", "student=resnet14", "student.lr=0.5", "objective=kd", "student.view_schedule=cycle")
    require_alike([experiment_of(), *(experiment_of(setting) for setting in others)], processes)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.limit=19", "expected one data, got two that differ"),
        ("views.seed=1", "expected one views, got two that differ"),
        ("teacher=resnet14", "expected one teacher, got two that differ"),
        ("cache.views=1", "expected one cache, got two that differ"),
        ("student.precision=bf16", "expected one student.precision, got float32 and bf16"),
    ],
)
def test_students_that_share_no_memory(setting: str, says: str, processes: Processes) -> None:
    with pytest.raises(ConfigError, match=f"^several students together: {says}"):
        require_alike([experiment_of(), experiment_of("seed=1"), experiment_of(setting)], processes)


def student(*overrides: str) -> tuple[Student, Shapes]:
    experiment = experiment_of(*overrides)
    setting = setting_for(experiment)
    return student_of(objective_of(experiment), setting, training=experiment.student), setting.student


@pytest.mark.parametrize(
    "settings",
    [
        ("student=torchvision:mobilenet_v2",),
        ("student=timm:resnet10t", "student.drop_path=0.1"),
        ("student=timm:resnet10t", "student.dropout=0.1"),  # a call of F.dropout, which no module shows
    ],
)
def test_dropout_of_other_libraries_is_for_students_that_train_alone(settings: tuple[str, ...]) -> None:
    ours, foreign = student(), student(*settings, "objective=ce")
    before, drawn = weights_sha256(foreign[0]), torch.get_rng_state()
    require_own_draws({Path("a"): ours, Path("b"): ours})
    require_own_draws({Path("a"): foreign})
    with pytest.raises(ConfigError, match="several students together: b has dropout that draws from torch's own"):
        require_own_draws({Path("out/a"): ours, Path("out/b"): foreign})
    assert weights_sha256(foreign[0]) == before, "the forward pass of the check leaves nothing behind"
    assert torch.equal(torch.get_rng_state(), drawn)


def test_dropout_that_is_switched_off_draws_nothing() -> None:
    plain = student("student=timm:resnet10t", "objective=ce")
    off = student("student=torchvision:mobilenet_v2", "student.dropout=0", "objective=ce")
    require_own_draws({Path("a"): plain, Path("b"): off})


def test_weights_are_drawn_anew(tmp_path: Path) -> None:
    """What the cases above rest on: other seeds, other teachers."""
    one, other = (untrained_weights(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("batch_size", "says"),
    [
        (20, None),
        (2, None),
        (21, r"^student.batch_size: expected at most the 20 samples of the training set, got 21; use --set student.b"),
        (64, "got 64; use --set student.batch_size=20 or fewer$"),
    ],
)
def test_a_batch_larger_than_the_training_set(batch_size: int, says: str | None, processes: Processes) -> None:
    experiment = experiment_of(f"student.batch_size={batch_size}")
    if says is None:
        require_batches("student", experiment.student, digits(experiment), processes)
        return
    with pytest.raises(ConfigError, match=says):
        require_batches("student", experiment.student, digits(experiment), processes)


def test_the_preset_of_a_teacher_is_named_too(processes: Processes) -> None:
    experiment = experiment_of("teacher.batch_size=100")
    with pytest.raises(ConfigError, match=r"^teacher\.batch_size: expected at most the 20 samples"):
        require_batches("teacher", experiment.teacher, digits(experiment), processes)


def test_a_test_set_of_other_classes() -> None:
    require_same_classes(make_images(), make_images())
    with pytest.raises(DataError, match="expected a test set of 5 classes, as the training set has, got 4; give data"):
        require_same_classes(make_images(), make_images(num_classes=4))


def test_rows_of_another_shape_than_the_networks_have(reader: LogitReader) -> None:
    names = {"logits": ["logits", "b.logits"], "embedding": ["embedding"]}
    require_rows(reader, names, setting_for(experiment_of()))
    wider = setting_for(experiment_of("teacher=wrn_16_2"))
    with pytest.raises(CacheMismatch, match=r"signal embedding: expected rows of shape \(128,\) .*, got \(64,\); make"):
        require_rows(reader, names, wider)
    seven = replace(wider, student=Shapes("resnet8", 7, (8, 8)))
    with pytest.raises(CacheMismatch, match=r"signal logits: expected rows of shape \(7,\) for 7 classes"):
        require_rows(reader, names, seven)


def test_maps_of_other_modules_are_refused(tmp_path: Path) -> None:
    teacher = ("teacher=timm:resnet10t", "cache.signals=[map1]", "data.limit=20", "teacher.allow_chance=true")
    weights = tmp_path / "w.safetensors"
    save_weights(weights, build_network("timm:resnet10t", 10), {})
    cache_teacher(experiment_of(*teacher), weights, str(tmp_path / "c.zarr"), data=DataOptions(), cpu=True)
    reader = open_cache(str(tmp_path / "c.zarr"))
    assert reader.manifest.signals["map1"].teacher["map"] == "layer1"
    require_rows(reader, {"map1": ["map1"]}, setting_for(experiment_of(*teacher)))
    named = experiment_of(*teacher, "teacher.maps=[layer1.0.bn2]")
    with pytest.raises(CacheMismatch, match=r"expected the map of layer1.0.bn2, got that of layer1; set teacher.maps"):
        require_rows(reader, {"map1": ["map1"]}, setting_for(named))
