"""The arithmetic of a plan, against numbers worked out by hand."""

from dataclasses import asdict
from typing import Any

import pytest
from dhkd.configs.load import load_experiment
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.codecs import Float, Int8, TopK
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources import load_source
from dhkd.pipeline.build.cache import plan_of as blocks_of
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.measure import Rates
from dhkd.pipeline.plan import (
    CachePlan,
    Memory,
    SignalSize,
    Storage,
    StudentsCost,
    cached_cost,
    make_plan,
    online_cost,
    pays_from,
    storage,
)
from dhkd.pipeline.sizes import DataSize, setting_without_data
from hypothesis import given
from hypothesis import strategies as st

CIFAR, IMAGENET = "cifar100/resnet56-resnet20", "imagenet/resnet34-resnet18"


def plan_of(preset: str, *overrides: str, **options: Any) -> CachePlan:
    return make_plan(load_experiment(preset, overrides), **options)


def storage_in(plan: CachePlan, codec: str) -> Storage:
    (storage,) = [storage for storage in plan.codecs if storage.codec == codec]
    return storage


# presets


def test_all_views_of_cifar100() -> None:
    """The teacher makes 8.1 M forwards, where online training of 240 epochs makes 12 M; float16 takes 1.62 GB."""
    plan = plan_of(CIFAR)
    assert plan.data == DataSize("cifar100", 50_000, 100, from_record=False)
    assert (plan.views, plan.epochs, plan.forwards) == (162, 240, 8_100_000)
    assert plan.students[0] == StudentsCost(1, 12_000_000, 8_100_000, None, None, None)
    assert {storage.codec: storage.row_bytes for storage in plan.codecs} == {
        "float32": 400, "float16": 200, "int8": 108, "top-k": 64
    }  # fmt: skip
    assert storage_in(plan, "float16").bytes == 1_620_000_000
    assert storage_in(plan, "float16").view_bytes == 10_000_000
    assert storage_in(plan, "int8").bytes == 162 * 50_000 * 108
    assert storage_in(plan, "top-k").k == 20
    assert plan.witness_bytes == 32_400_000
    assert [storage.codec for storage in plan.codecs if storage.preset] == ["float16"]
    assert plan.suggestion is None
    assert plan.pays_from == 1


def test_blocks_and_files_of_cifar100() -> None:
    """4 MiB hold 20,971 rows of 200 bytes: three blocks a view, of 16,667, 16,667 and 16,666 rows."""
    plan = plan_of(CIFAR)
    float16, int8 = storage_in(plan, "float16"), storage_in(plan, "int8")
    assert (float16.block_rows, float16.block_bytes, float16.blocks) == (16_667, 3_333_400, 486)
    assert float16.objects == {"zarr": 972, "webdataset": 972}, "logits and witness of each block"
    assert (int8.block_rows, int8.blocks) == (25_000, 324), "two blocks a view"
    assert int8.objects == {"zarr": 4 * 324, "webdataset": 2 * 324}, "zarr has three arrays, and the witness"
    assert float16.memory == Memory(resident=1_620_000_000, views=20_000_000, windows=2 * 3_333_400)
    assert plan.in_memory == "resident"


def test_imagenet() -> None:
    plan = plan_of(IMAGENET)
    assert plan.data == DataSize("image-folder", 1_281_167, 1000, from_record=True)
    assert (plan.views, plan.forwards) == (4, 5_124_668)
    float16 = storage_in(plan, "float16")
    assert float16.bytes == 4 * 1_281_167 * 2000
    # 16 MiB hold 8,388 rows: 153 blocks of 8,374. A window of 65,536 samples is 7 of them, and two are in memory.
    assert (float16.block_rows, float16.blocks) == (8_374, 4 * 153)
    assert float16.memory.windows == 14 * 8_374 * 2000
    assert plan.in_memory == "windows"


def test_int8_is_suggested_for_many_classes() -> None:
    suggestion = plan_of(IMAGENET).suggestion
    assert suggestion is not None
    assert "50% of float16's bytes" in suggestion
    assert "--set cache.codec=int8" in suggestion
    assert plan_of(IMAGENET, "cache.codec=int8").suggestion is None
    assert "25% of float32's" in str(plan_of(IMAGENET, "cache.codec=float32").suggestion)


def test_hours_and_bytes_a_second() -> None:
    plan = plan_of(CIFAR, rates=Rates(teacher=4500.0, student=3000.0))
    assert plan.stage_one_hours == pytest.approx(0.5)
    assert plan.student_hours == pytest.approx(50_000 * 240 / 3000 / 3600)
    assert plan.bytes_per_second == 4500 * (200 + 4)
    assert plan.rates == Rates(4500.0, 3000.0, pytest.approx(3000 / 4500))
    one = plan.students[0]
    assert one.online == pytest.approx(1 + 2 / 3)
    assert one.cached == pytest.approx(1 + 2 / 3 * 162 / 240)
    assert one.online_over_cached == pytest.approx((5 / 3) / (1 + 0.45))


def test_the_number_of_students_that_is_asked_for_is_a_row() -> None:
    assert [row.students for row in plan_of(CIFAR, students=5).students] == [1, 2, 4, 5, 8, 16]
    assert [row.students for row in plan_of(CIFAR, students=4).students] == [1, 2, 4, 8, 16]


def test_the_codec_of_the_preset_is_marked() -> None:
    plan = plan_of(CIFAR, "cache.codec={kind: top-k, k: 50, temperature: 4}", "cache.views=8")
    (asked,) = [storage for storage in plan.codecs if storage.preset]
    assert (asked.codec, asked.k, asked.row_bytes) == ("top-k", 50, 50 * 3 + 4)
    assert plan.views == 8
    assert len(plan.codecs) == 4
    assert [storage.codec for storage in plan_of("digits").codecs] == ["float32", "float16", "int8"], "10 classes"


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ([], "resident"),
        (["student.view_schedule=cycle"], "views"),
        (["student.view_schedule=block"], "resident"),
        (["student.view_schedule=block", "student.window=100"], "windows"),
        (["student.view_schedule=cycle", "student.window=100"], "windows"),
        (["student.window=100"], "resident"),
    ],
    ids=str,
)
def test_how_training_holds_the_cache(settings: list[str], held: str) -> None:
    assert plan_of("digits", *settings).in_memory == held


# signals beside logits


def test_an_embedding_that_is_cached_and_not_needed() -> None:
    """resnet56's embedding has 64 numbers, stored as float16."""
    plan = plan_of(CIFAR, "cache.signals=[logits, embedding]", "cache.views=8")
    size = SignalSize(
        "embedding", (64,), 128, 50_000 * 128, 8 * 50_000 * 128, cached=True, needed=False, cacheable=True
    )
    assert plan.signals == (size,)


def test_a_map_of_batch_statistics_is_needed_and_cannot_be_cached() -> None:
    """OFD reads maps in training mode, each row of which depends on the others of its batch."""
    signals = plan_of(CIFAR, "objective=ofd").signals
    assert signals
    for signal in signals:
        assert (signal.cached, signal.needed, signal.cacheable) == (False, True, False)
        channels, height, width = signal.shape
        assert signal.row_bytes == 2 * channels * height * width


def test_blocks_are_cut_for_the_largest_signal() -> None:
    """16×16 maps of 32 channels are larger than logits; a block of 4 MiB holds 256 of their rows."""
    plan = plan_of(CIFAR, "cache.signals=[logits, map2]", "cache.views=8")
    (map2,) = plan.signals
    assert (map2.shape, map2.row_bytes) == ((32, 16, 16), 2 * 32 * 16 * 16)
    assert {storage.block_rows for storage in plan.codecs} == {256}


# arithmetic


@given(
    students=st.integers(1, 1000),
    views=st.integers(1, 2000),
    epochs=st.integers(1, 1000),
    ratio=st.floats(1e-3, 1e3),
)
def test_the_cache_costs_less_from_v_over_e_students_on(students: int, views: int, epochs: int, ratio: float) -> None:
    online, cached = online_cost(students, ratio), cached_cost(students, ratio, views, epochs)
    if students * epochs == views:
        assert online == pytest.approx(cached)
    else:
        assert (cached < online) == (students * epochs > views)
    first = pays_from(views, epochs)
    assert first * epochs > views >= (first - 1) * epochs
    # Without the students' own cost, the teacher's remains: the number of its forwards, times what each costs.
    assert online - students == pytest.approx(ratio * students)
    assert cached - students == pytest.approx(ratio * views / epochs, abs=1e-9)


def test_a_single_student_that_sees_only_fresh_views_saves_nothing() -> None:
    for ratio in (0.1, 1.0, 10.0):
        assert cached_cost(1, ratio, 240, 240) == online_cost(1, ratio)
        assert cached_cost(1, ratio, 300, 240) > online_cost(1, ratio)
    assert (pays_from(239, 240), pays_from(240, 240), pays_from(480, 240)) == (1, 2, 3)


@given(
    num_samples=st.integers(2, 2_000_000),
    num_views=st.integers(1, 200),
    num_classes=st.integers(21, 2000),
    block_bytes=st.integers(1000, 2**26),
    window=st.none() | st.integers(1, 10**6),
)
def test_storage_adds_up(
    num_samples: int, num_views: int, num_classes: int, block_bytes: int, window: int | None
) -> None:
    for codec in (Float("float32"), Float("float16"), Int8(), TopK(20, 4.0)):
        row = storage(codec, Plan(1, 1, 1), num_classes, None).row_bytes
        size = Plan.balanced(num_views, num_samples, row, block_bytes)
        stored = storage(codec, size, num_classes, window)
        assert stored.bytes == num_views * num_samples * row
        assert stored.blocks == -(-num_samples // size.block_rows) * num_views
        assert stored.block_bytes <= max(block_bytes, row)
        assert stored.blocks * stored.block_bytes >= stored.bytes
        assert stored.objects["webdataset"] <= stored.objects["zarr"]
        assert stored.memory.views <= stored.memory.resident == stored.bytes
        assert stored.memory.windows <= stored.blocks * stored.block_bytes


# the rest of the program


def test_blocks_are_those_that_caching_makes() -> None:
    experiment = load_experiment("digits", ["cache.block_mb=0.005", "cache.codec=int8"])
    images, recipe = load_source("digits", "train"), recipe_of(experiment.views)
    assert isinstance(images, ImageSet)
    setting = setting_without_data(experiment, images.num_classes)
    planned, made = storage_in(make_plan(experiment), "int8"), blocks_of(experiment, images, recipe, setting)
    assert (planned.block_rows, planned.blocks) == (made.block_rows, len(made.blocks()))


def test_plain_values_have_the_keys_of_the_json() -> None:
    plan = asdict(plan_of("digits", rates=Rates(ratio=1.0)))
    assert list(plan) == [
        "data", "views", "view_kind", "all_views", "teacher", "student", "epochs", "window", "in_memory", "store",
        "block_mb", "codecs", "signals", "witness_bytes", "suggestion", "forwards", "rates", "stage_one_hours",
        "bytes_per_second", "student_hours", "pays_from", "students", "asked_students",
        "cluster",
    ]  # fmt: skip
    assert list(plan["codecs"][0]) == [
        "codec", "k", "row_bytes", "view_bytes", "bytes", "block_rows", "block_bytes", "blocks", "objects", "memory",
        "preset",
    ]  # fmt: skip
    assert plan["data"] == {"source": "digits", "samples": 1437, "classes": 10, "from_record": False}
    assert plan["rates"] == {"teacher": None, "student": None, "ratio": 1.0, "measured": None}
    assert list(plan["students"][0]) == [
        "students", "online_forwards", "cached_forwards", "online", "cached", "online_over_cached"
    ]  # fmt: skip
