"""The tables of `dhkd plan`: what is printed for known and unknown rates, and for every preset."""

from typing import Any

import pytest
from dhkd.configs.load import load_experiment, preset_names
from dhkd.pipeline.cli.tables.plan import plan_table
from dhkd.pipeline.measure import Conditions, Measured, Rates
from dhkd.pipeline.plan import make_plan

CIFAR, IMAGENET = "cifar100/resnet56-resnet20", "imagenet/resnet34-resnet18"


def table_of(preset: str, *overrides: str, **options: Any) -> str:
    return plan_table(make_plan(load_experiment(preset, overrides), **options))


def test_the_table_without_rates() -> None:
    text = table_of(CIFAR)
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
    text = table_of(CIFAR, rates=Rates(teacher=4500.0, ratio=0.5), students=3)
    for words in (
        "(50,000 samples × 162 views), 30 min at 4,500 rows/s, 918 kB/s written",
        "a student: 240 epochs of 50,000 samples, 89 min at 2,250 rows/s with plain cross-entropy",
        "       3                  36,000,000  8,100,000          4.50    3.34             1.35",
        "r = 0.5 ",
        "= 0.675): it pays for 3",
    ):
        assert words in text
    assert "rates weren't given" not in text


def test_measured_rates_name_their_conditions() -> None:
    measured = Measured(Conditions(256, "float32", "a CPU, 2 threads"), Conditions(64, "bf16", "a CPU, 2 threads"))
    text = table_of("digits", rates=Rates(teacher=4500.0, student=0.25, measured=measured))
    for words in (
        "measured: resnet14, batch 256, float32, a CPU, 2 threads\n",
        "measured: resnet8, batch 64, bf16, a CPU, 2 threads\n",
        "at 0.25 rows/s",
        "(networks alone: no rendering or decoding",
    ):
        assert words in text
    assert "rates weren't given" not in text


def test_the_table_says_if_nothing_is_saved() -> None:
    few = table_of(CIFAR, "student.epochs=60", "student.milestones=[]", students=2, rates=Rates(ratio=1.0))
    assert "from student number 3 on (S > V/E = 162/60 = 2.7): never for as few as 2" in few
    assert "saves nothing: here one alone costs 102 epochs of forwards more than the live teacher" in few
    assert ": it pays for 3\n" in table_of(CIFAR, "student.epochs=60", "student.milestones=[]", students=3)
    equal = table_of(CIFAR, "student.epochs=162", "student.milestones=[]")
    assert equal.endswith("(V ≥ E) saves nothing: so it is here")
    assert "from student number 2 on" in equal


def test_one_view_and_one_epoch_are_singular() -> None:
    text = table_of("digits", "cache.views=1", "student.epochs=1")
    assert text.startswith("resnet14 → resnet8, 1 epoch; 1 view of crop-flip\n")
    assert "(1,437 samples × 1 view)" in text


def test_the_way_in_which_the_preset_holds_the_cache_is_marked() -> None:
    assert "block: 2 windows of 65,536 samples *\n" in table_of(IMAGENET)
    assert "resident: all views *" in table_of(CIFAR)
    assert "block: 2 windows of one block\n" in table_of(CIFAR)


def test_other_signals_say_where_they_come_from() -> None:
    text = table_of(CIFAR, "objective=ofd", "cache.signals=[logits, embedding]")
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["embedding"] == ["embedding", "64", "128", "6.40", "MB", "1.04", "GB", "cached"]
    assert rows["map1-before-batch"][1] == "16×32×32"
    assert rows["map1-before-batch"][-3:] == ["live", "only", "needed"]
    assert "not cached" in table_of(CIFAR, "objective=rkd")
    assert "other signals" not in table_of(CIFAR)


def test_the_record_is_named_as_the_source_of_the_number_of_samples() -> None:
    assert "1,281,167 samples, 1,000 classes (the preset's record says so; --samples N" in table_of(IMAGENET)
    assert "record" not in table_of(IMAGENET, samples=3000)


@pytest.mark.parametrize("preset", preset_names())
def test_no_line_of_any_preset_is_wider_than_160_columns(preset: str) -> None:
    text = table_of(preset, rates=Rates(ratio=1.0))
    assert max(map(len, text.splitlines())) <= 160
