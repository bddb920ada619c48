"""`dhkd plan`: against a real cache, and from options to the table or the JSON object."""

from pathlib import Path

import pytest
from dhkd.pipeline import measure

from tests.e2e.command_line import SMALL, assert_one_line, dhkd, done

CIFAR, IMAGENET = "cifar100/resnet56-resnet20", "imagenet/resnet34-resnet18"


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("codec", ["float16", "int8", "{kind: top-k, k: 4, temperature: 4}"])
def test_a_real_cache_is_as_planned(codec: str, store: str, teacher: Path, tmp_path: Path) -> None:
    words = ["digits", *SMALL, "--set", f"cache.codec={codec}", "--set", f"cache.store={store}"]
    done("cache-teacher", *words, "--teacher", teacher, "--out", tmp_path / "cache")
    inspected = done("inspect", tmp_path / "cache", "--json").result
    plan = done("plan", *[word for word in words if word not in ("--precision", "float32")], "--json").result
    (asked,) = [codec for codec in plan["codecs"] if codec["preset"]]
    assert (asked["block_rows"], asked["blocks"]) == (inspected["rows_per_block"], inspected["blocks"])
    assert plan["forwards"] == inspected["views"] * inspected["samples"]
    blocks = {path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".json"}
    assert len(blocks) == asked["objects"][store], sorted(blocks)
    stored = sum(path.stat().st_size for path in blocks)
    planned = asked["bytes"] + plan["witness_bytes"]
    if store == "zarr":
        assert stored == planned + 4 * len(blocks), "a checksum for each"
    else:
        assert planned < stored <= planned + 20_480 * len(blocks), "tar's headers and padding"


KEYS = {
    "signals",
    "data", "views", "view_kind", "all_views", "teacher", "student", "epochs", "window", "in_memory", "store",
    "block_mb", "codecs", "witness_bytes", "suggestion", "forwards", "rates", "stage_one_hours", "bytes_per_second",
    "student_hours", "pays_from", "students", "asked_students",
    "cluster",
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


def test_options_reach_the_table() -> None:
    text = done("plan", CIFAR, "--teacher-rate", 4500, "--ratio", 0.5, "--students", 3).out
    for words in (
        "cifar100: 50,000 samples, 100 classes\n",
        "(50,000 samples × 162 views), 30 min at 4,500 rows/s, 918 kB/s written",
        "89 min at 2,250 rows/s with plain cross-entropy",
        "= 0.675): it pays for 3",
    ):
        assert words in text


def test_a_plan_counts_smoke_settings_and_limits() -> None:
    plan = done("plan", CIFAR, "--smoke", "--json").result
    assert (plan["data"]["source"], plan["data"]["samples"], plan["views"]) == ("glyphs", 64, 2)
    assert done("plan", CIFAR, "--set", "data.limit=5000", "--json").result["forwards"] == 162 * 5000
    limited = done("plan", IMAGENET, "--smoke", "--json").result
    assert limited["data"] == {"source": "image-folder", "samples": 16, "classes": 1000, "from_record": False}


def test_options_give_the_size_of_a_folder() -> None:
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
        ([IMAGENET, "--set", "cache.views=all"], ["random-resized-crop has unlimited views"]),
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


def test_rates_are_either_measured_or_given() -> None:
    outcome = dhkd("plan", "digits", "--measure", "--ratio", "1")
    assert outcome.code == 2
    assert "--measure finds out" in outcome.err


def test_measured_rates_reach_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MEASURED_SECONDS", 0.2)
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
