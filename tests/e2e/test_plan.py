"""`dhkd plan`: its arithmetic against numbers worked out by hand, against a real cache, and what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dhkd.configs.load import load_experiment, preset_names
from dhkd.data.cache.blocks import Plan
from dhkd.data.cache.codecs import Float, Int8, TopK
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.sources import SOURCES, load_source
from dhkd.data.sources.base import Place
from dhkd.pipeline import plan as planning
from dhkd.pipeline.build.data import recipe_of
from dhkd.pipeline.plan import Rates, cached_cost, make_plan, online_cost, pays_from, storage
from dhkd.stages.report.plan_table import plan_table
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done

CIFAR, IMAGENET = "cifar100/resnet56-resnet20", "imagenet/resnet34-resnet18"


def plan_of(preset: str, *overrides: str, **options: Any) -> dict[str, Any]:
    return make_plan(load_experiment(preset, overrides), **options)


def codec_in(plan: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [codec for codec in plan["codecs"] if codec["codec"] == kind]
    return dict(found)


# against hand computation


def test_all_views_of_cifar100() -> None:
    """FACTS, section 6: 8.1 M teacher forwards, where online training of 240 epochs makes 12 M, and 1.62 GB."""
    plan = plan_of(CIFAR)
    assert (plan["views"], plan["epochs"], plan["forwards"]) == (162, 240, 8_100_000)
    assert plan["students"][0]["online_forwards"] == 12_000_000
    assert {codec["codec"]: codec["row_bytes"] for codec in plan["codecs"]} == {
        "float32": 400, "float16": 200, "int8": 108, "top-k": 64
    }  # fmt: skip
    assert codec_in(plan, "float16")["bytes"] == 1_620_000_000
    assert codec_in(plan, "float16")["view_bytes"] == 10_000_000
    assert codec_in(plan, "int8")["bytes"] == 162 * 50_000 * 108
    assert codec_in(plan, "top-k")["k"] == 20
    assert plan["witness_bytes"] == 32_400_000
    assert [codec["codec"] for codec in plan["codecs"] if codec["preset"]] == ["float16"]
    assert plan["suggestion"] is None
    assert plan["pays_from"] == 1


def test_blocks_and_files_of_cifar100() -> None:
    """4 MiB hold 20,971 rows of 200 bytes: three blocks a view, of 16,667, 16,667 and 16,666 rows."""
    plan = plan_of(CIFAR)
    half = codec_in(plan, "float16")
    assert (half["block_rows"], half["block_bytes"], half["blocks"]) == (16_667, 3_333_400, 486)
    assert half["objects"] == {"zarr": 972, "webdataset": 972}  # logits and witness of each block
    int8 = codec_in(plan, "int8")  # two blocks a view: zarr has three arrays, and the witness
    assert (int8["block_rows"], int8["blocks"]) == (25_000, 324)
    assert int8["objects"] == {"zarr": 4 * 324, "webdataset": 2 * 324}
    assert half["memory"] == {"resident": 1_620_000_000, "views": 20_000_000, "windows": 2 * 3_333_400}
    assert plan["in_memory"] == "resident"


def test_imagenet() -> None:
    plan = plan_of(IMAGENET)
    assert plan["data"] == {"source": "image-folder", "samples": 1_281_167, "classes": 1000, "from_record": True}
    assert (plan["views"], plan["forwards"]) == (4, 5_124_668)
    half = codec_in(plan, "float16")
    assert half["bytes"] == 4 * 1_281_167 * 2000
    # 16 MiB hold 8,388 rows: 153 blocks of 8,374. A window of 65,536 samples is 7 of them, and two are in memory.
    assert (half["block_rows"], half["blocks"]) == (8_374, 4 * 153)
    assert half["memory"]["windows"] == 14 * 8_374 * 2000
    assert plan["in_memory"] == "windows"
    assert "50% of float16's bytes" in plan["suggestion"]
    assert "--set cache.codec=int8" in plan["suggestion"]
    assert plan_of(IMAGENET, "cache.codec=int8")["suggestion"] is None
    assert "25% of float32's" in plan_of(IMAGENET, "cache.codec=float32")["suggestion"]


def test_hours_and_bytes_a_second() -> None:
    plan = plan_of(CIFAR, rates=Rates(teacher=4500.0, student=3000.0))
    assert plan["stage_one_hours"] == pytest.approx(0.5)
    assert plan["student_hours"] == pytest.approx(50_000 * 240 / 3000 / 3600)
    assert plan["bytes_per_second"] == 4500 * (200 + 4)
    assert plan["rates"]["ratio"] == pytest.approx(3000 / 4500)
    one = plan["students"][0]
    assert one["online"] == pytest.approx(1 + 2 / 3)
    assert one["cached"] == pytest.approx(1 + 2 / 3 * 162 / 240)
    assert one["online_over_cached"] == pytest.approx((5 / 3) / (1 + 0.45))
    assert [row["students"] for row in plan_of(CIFAR, students=5)["students"]] == [1, 2, 4, 5, 8, 16]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Rates(), Rates()),
        (Rates(teacher=10.0), Rates(teacher=10.0)),
        (Rates(ratio=0.5), Rates(ratio=0.5)),
        (Rates(teacher=10.0, student=5.0), Rates(10.0, 5.0, 0.5)),
        (Rates(teacher=10.0, ratio=0.5), Rates(10.0, 5.0, 0.5)),
        (Rates(student=5.0, ratio=0.5), Rates(10.0, 5.0, 0.5)),
    ],
    ids=str,
)
def test_two_rates_give_the_third(given: Rates, expected: Rates) -> None:
    assert given.completed() == expected


def test_what_the_preset_asks_for_is_marked() -> None:
    plan = plan_of(CIFAR, "cache.codec={kind: top-k, k: 50, temperature: 4}", "cache.views=8")
    (asked,) = [codec for codec in plan["codecs"] if codec["preset"]]
    assert (asked["codec"], asked["k"], asked["row_bytes"]) == ("top-k", 50, 50 * 3 + 4)
    assert plan["views"] == 8
    assert len(plan["codecs"]) == 4
    assert [codec["codec"] for codec in plan_of("digits")["codecs"]] == ["float32", "float16", "int8"], "10 classes"


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
def test_what_training_holds_in_memory(settings: list[str], held: str) -> None:
    assert plan_of("digits", *settings)["in_memory"] == held


# properties


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
    # In units of a student's training: the teacher's part is forwards made, times what one costs.
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
        row = storage(codec, Plan(1, 1, 1), num_classes, None)["row_bytes"]
        size = Plan.balanced(num_views, num_samples, row, block_bytes)
        stored = storage(codec, size, num_classes, window)
        assert stored["bytes"] == num_views * num_samples * row
        assert stored["blocks"] == -(-num_samples // size.block_rows) * num_views
        assert stored["block_bytes"] <= max(block_bytes, row)
        assert stored["blocks"] * stored["block_bytes"] >= stored["bytes"]
        assert stored["objects"]["webdataset"] <= stored["objects"]["zarr"]
        memory = stored["memory"]
        assert memory["views"] <= memory["resident"] == stored["bytes"]
        assert memory["windows"] <= stored["blocks"] * stored["block_bytes"]


# against what is really there


def test_sizes_are_those_of_the_sets() -> None:
    for name in ("digits", "glyphs"):
        images = load_source(name, "train")
        assert (len(images), images.num_classes) == (SOURCES[name].size.samples, SOURCES[name].size.classes)
        assert isinstance(images, ImageSet)
        assert images.images_NCHW.shape[2:] == (SOURCES[name].size.pixels,) * 2


def test_the_size_of_cifar100(real_data: Path) -> None:
    images = load_source("cifar100", "train", Place(root=str(real_data)))
    assert (len(images), images.num_classes) == (SOURCES["cifar100"].size.samples, SOURCES["cifar100"].size.classes)


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("codec", ["float16", "int8", "{kind: top-k, k: 4, temperature: 4}"])
def test_a_real_cache_is_as_planned(codec: str, store: str, teacher: Path, tmp_path: Path) -> None:
    words = ["digits", *SMALL, "--set", f"cache.codec={codec}", "--set", f"cache.store={store}"]
    done("cache-teacher", *words, "--teacher", teacher, "--out", tmp_path / "cache")
    inspected = done("inspect", tmp_path / "cache", "--json").result
    plan = done("plan", *[word for word in words if word not in ("--precision", "float32")], "--json").result
    (asked,) = [one for one in plan["codecs"] if one["preset"]]
    assert (asked["block_rows"], asked["blocks"]) == (inspected["rows_per_block"], inspected["blocks"])
    assert plan["forwards"] == inspected["views"] * inspected["samples"]
    blocks = {f for f in (tmp_path / "cache").rglob("*") if f.is_file() and f.suffix != ".json"}
    assert len(blocks) == asked["objects"][store], sorted(blocks)
    stored = sum(f.stat().st_size for f in blocks)
    planned = asked["bytes"] + plan["witness_bytes"]
    if store == "zarr":
        assert stored == planned + 4 * len(blocks), "a checksum each"
    else:
        assert planned < stored <= planned + 20_480 * len(blocks), "tar's headers and padding"


def test_blocks_are_those_that_caching_makes() -> None:
    experiment = load_experiment("digits", ["cache.block_mb=0.005", "cache.codec=int8"])
    images, recipe = load_source("digits", "train"), recipe_of(experiment.views)
    setting = planning.usual_setting(experiment, images.num_classes)
    planned, made = codec_in(make_plan(experiment), "int8"), plan_of(experiment, images, recipe, setting)
    assert (planned["block_rows"], planned["blocks"]) == (made.block_rows, len(made.blocks()))


# the command

KEYS = {
    "signals",
    "data", "views", "view_kind", "all_views", "teacher", "student", "epochs", "window", "in_memory", "store",
    "block_mb", "codecs", "witness_bytes", "suggestion", "forwards", "rates", "stage_one_hours", "bytes_per_second",
    "student_hours", "pays_from", "students", "asked_students",
}  # fmt: skip


def test_json_without_rates() -> None:
    plan = done("plan", CIFAR, "--json").result
    assert plan.keys() == KEYS
    assert plan["rates"] == {"teacher": None, "student": None, "ratio": None, "measured": None}
    assert plan["stage_one_hours"] is plan["student_hours"] is plan["bytes_per_second"] is None
    assert plan["students"][0] == {
        "students": 1,
        "online_forwards": 12_000_000,
        "cached_forwards": 8_100_000,
        "online": None,
        "cached": None,
        "online_over_cached": None,
    }


def test_the_table_without_rates() -> None:
    text = done("plan", CIFAR).out
    assert text.splitlines()[:2] == [
        "resnet56 → resnet20, 240 epochs; all 162 views of crop-flip",
        "cifar100: 50,000 samples, 100 classes",
    ]
    for words in (
        "float16 *          200   10.0 MB    1.62 GB        16,667  3.33 MB          972         972",
        "stage one: 8,100,000 forwards of the teacher (50,000 samples × 162 views)\n",
        "rates weren't given: --measure",
        "costs need r",
        "from student number 1 on (S > V/E = 162/240 = 0.675)",
        "one student that sees a fresh view in every epoch (V ≥ E) saves nothing; here it sees each 1.48 times",
    ):
        assert words in text
    assert "cost, online" not in text


def test_the_table_with_rates() -> None:
    text = done("plan", CIFAR, "--teacher-rate", 4500, "--ratio", 0.5, "--students", 3).out
    for words in (
        "(50,000 samples × 162 views), 30 min at 4,500 rows/s, 918 kB/s written",
        "a student: 240 epochs of 50,000 samples, 89 min at 2,250 rows/s with plain cross-entropy",
        "       3                  36,000,000  8,100,000          4.50    3.34             1.35",
        "r = 0.5 ",
        "= 0.675): it pays for 3",
    ):
        assert words in text
    assert "rates weren't given" not in text


def test_the_table_says_where_nothing_is_saved() -> None:
    few = done("plan", CIFAR, "--set", "student.epochs=60", "--students", 2, "--ratio", 1).out
    assert "from student number 3 on (S > V/E = 162/60 = 2.7): never for as few as 2" in few
    assert "saves nothing: here one alone costs 102 epochs of forwards more than the live teacher" in few
    assert ": it pays for 3\n" in done("plan", CIFAR, "--set", "student.epochs=60", "--students", 3).out
    even = done("plan", CIFAR, "--set", "student.epochs=162").out
    assert "(V ≥ E) saves nothing: so it is here\n" in even
    assert "from student number 2 on" in even


def test_one_view_and_one_epoch_read_well() -> None:
    text = done("plan", "digits", "--set", "cache.views=1", "--set", "student.epochs=1").out
    assert text.startswith("resnet14 → resnet8, 1 epoch; 1 view of crop-flip\n")
    assert "(1,437 samples × 1 view)" in text


def test_smoke_settings_and_limits_count() -> None:
    plan = done("plan", CIFAR, "--smoke", "--json").result
    assert (plan["data"]["source"], plan["data"]["samples"], plan["views"]) == ("glyphs", 64, 2)
    assert done("plan", CIFAR, "--set", "data.limit=5000", "--json").result["forwards"] == 162 * 5000
    limited = done("plan", IMAGENET, "--smoke", "--json").result
    assert limited["data"] == {"source": "image-folder", "samples": 16, "classes": 1000, "from_record": False}


def test_options_say_what_a_folder_cannot() -> None:
    words = ["plan", IMAGENET, "--set", "record={}", "--json"]
    plan = done(*words, "--samples", 3000, "--classes", 30).result
    assert plan["data"] == {"source": "image-folder", "samples": 3000, "classes": 30, "from_record": False}
    assert done("plan", IMAGENET, "--samples", 3000, "--json").result["forwards"] == 4 * 3000, "the option wins"
    assert "the preset's record says so" in done("plan", IMAGENET).out
    assert "record" not in done("plan", IMAGENET, "--samples", 3000).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["digts"], ["unknown preset 'digts'", "did you mean 'digits'"]),
        (["digits", "--samples", 100], ["--samples: digits has its own", "data.limit"]),
        (["digits", "--classes", 100], ["--classes: digits has its own"]),
        (["digits", "--set", "data.limit=5000"], ["data.limit: expected 1 to 1437", "got 5000"]),
        (["digits", "--set", "cache.views=10"], ["cache.views: expected 1 to 9"]),
        (
            ["digits", "--set", "cache.codec={kind: top-k, k: 10, temperature: 4}"],
            ["cache.codec.k", "fewer than all 10"],
        ),
        (["digits", "--teacher-rate", 0], ["--teacher-rate: expected a finite number above 0, got 0"]),
        (["digits", "--student-rate", "inf"], ["--student-rate: expected a finite number above 0, got inf"]),
        (["digits", "--ratio", "nan"], ["--ratio: expected a finite number above 0, got nan"]),
        (["digits", "--ratio", -1], ["--ratio: expected a finite number above 0, got -1"]),
        (["digits", "--ratio", 1, "--teacher-rate", 1, "--student-rate", 2], ["--ratio: it follows from"]),
        ([IMAGENET, "--set", "record={}"], ["--samples: image-folder doesn't tell how many samples", "give N"]),
        ([IMAGENET, "--set", "record={}", "--samples", 9], ["--classes: image-folder doesn't tell how many classes"]),
        ([IMAGENET, "--samples", 9, "--set", "data.limit=10"], ["data.limit: expected 1 to 9"]),
        ([IMAGENET, "--set", "cache.views=all"], ["random-resized-crop has no end of views"]),
        (["digits", "--measure", "--cpu", "--set", "teacher=resnet9"], ["unknown network 'resnet9'"]),
        (["digits", "--measure", "--cpu", "--set", "cache.precision=fp16"], ["precision fp16: expected a GPU"]),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(words: list[object], says: list[str]) -> None:
    assert_one_line(dhkd("plan", *words), 2, says)


def test_measure_needs_the_size_of_images() -> None:
    folder = ["data={source: image-folder, num_classes: 5, limit: 10}", "--cpu", "--measure"]
    assert_one_line(dhkd("plan", "digits", "--set", *folder), 2, ["--measure", "how large its images are"])


def test_measuring_what_is_given_is_a_wrong_usage() -> None:
    outcome = dhkd("plan", "digits", "--measure", "--ratio", "1")
    assert outcome.code == 2
    assert "--measure finds out" in outcome.err


def test_measuring_times_the_presets_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 0.2)
    words = ["--measure", "--cpu", "--set", "cache.precision=float32", "--set", "student.precision=bf16"]
    outcome = done("plan", "digits", *words, "--json")
    rates, plan = outcome.result["rates"], outcome.result
    assert rates["teacher"] > 0
    assert rates["student"] > 0
    assert rates["ratio"] == pytest.approx(rates["student"] / rates["teacher"])
    assert (rates["measured"]["teacher"]["batch_size"], rates["measured"]["teacher"]["precision"]) == (256, "float32")
    assert (rates["measured"]["student"]["batch_size"], rates["measured"]["student"]["precision"]) == (64, "bf16")
    assert plan["stage_one_hours"] == pytest.approx(9 * 1437 / rates["teacher"] / 3600)
    assert plan["student_hours"] == pytest.approx(5 * 1437 / rates["student"] / 3600)
    assert "measuring resnet14" in outcome.err
    assert "measured: resnet14, batch 256, float32" in plan_table(plan)


def test_the_rate_is_that_of_the_median_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run, which sets things up, doesn't count, unless it alone takes all the time there is."""
    clock = [0.0]

    def runs(*seconds: float) -> float:
        left = iter(seconds)

        def run() -> None:
            clock[0] += next(left)

        return planning._rate(run, 60, torch.device("cpu"))

    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(planning, "MEASURED_SECONDS", 10.0)
    assert runs(5.0, 1.0, 2.0, 3.0) == pytest.approx(60 / 2.0)
    assert runs(30.0) == pytest.approx(60 / 30.0)


def test_every_preset_can_be_planned() -> None:
    for name in preset_names():
        text = plan_table(plan_of(name, rates=Rates(ratio=1.0)))
        assert max(map(len, text.splitlines())) <= 160
