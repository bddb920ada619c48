"""Tables show the figures that they are given."""

from typing import Any

import pytest
from dhkd.stages.report.tables import cache_table, demo_table, plain_table


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_words_go_to_the_left_and_numbers_to_the_right() -> None:
    table = plain_table(["run", "network", "top-1 %"], [("ce", "resnet8", "9.50"), ("binary-kl", "r", "61.25")])
    assert table.splitlines() == [
        "run        network  top-1 %",
        "ce         resnet8     9.50",
        "binary-kl  r          61.25",
    ]


def test_a_header_can_be_left_out() -> None:
    rows = [("cache", "runs/c.zarr"), ("computed in", "float32")]
    assert plain_table(["", ""], rows, header=False) == "cache        runs/c.zarr\ncomputed in  float32"


def test_lines_have_no_blanks_at_their_end() -> None:
    table = plain_table(["a", "b", "c"], [("long word", "", ""), ("x", "y", "")])
    assert all(line == line.rstrip() for line in table.splitlines())
    assert not table.endswith("\n")


def test_what_looks_like_markup_is_text() -> None:
    assert "[bold]x[/bold] [1, 2]" in plain_table(["a", "b"], [("x", "[bold]x[/bold] [1, 2]")])


def test_a_narrow_terminal_wraps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert plain_table(["a", "b"], [("x", "word " * 60)]).count("\n") == 1


def test_what_looks_like_an_emoji_is_text() -> None:
    assert "runs/:fire:/c.zarr" in plain_table(["a", "b"], [("x", "runs/:fire:/c.zarr")])


def test_a_long_command_is_not_cut() -> None:
    assert "y" * 1500 in plain_table(["a", "b"], [("x", "y" * 1500)])


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_colour_code_is_ever_in_a_table(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert "\x1b" not in plain_table(["a", "b"], [("x", "1")])


CACHE: dict[str, Any] = {
    "path": "runs/c.zarr",
    "digests": {"logits": "e7" * 32},
    "digest": "d1" * 32,
    "store": "zarr",
    "format": 2,
    "samples": 50_000,
    "classes": 100,
    "views": 12,
    "complete": False,
    "complete_views": 0,
    "complete_signals": [],
    "blocks": 36,
    "blocks_done": 7,
    "rows_per_block": 16_667,
    "bytes": 123_456_789,
    "bounds": {
        "logits": {
            "error": 0.0078125, "tail_mass": None, "kl_at_4": 1.9e-6, "binary_kl_at_2": 0.000191, "margin": 0.015625
        }
    },
    "identity": {
        "dataset": {"name": "cifar100", "split": "train", "fingerprint": "ab" * 32},
        "recipe": {"kind": "crop-flip", "version": 1, "padding": 4, "flip": True, "seed": 9},
        "signals": {
            "logits": {
                "teacher": {"architecture": "resnet56", "sha256": "3f" * 32},
                "precision": "bf16",
                "codec": {"kind": "float16"},
                "row": [100],
            }
        },
    },
    "provenance": {
        "logits": {
            "command": "dhkd cache-teacher cifar100/resnet56-resnet20 --out [c]",
            "teacher_test_top1": 72.345,
            "versions": {"torch": "2.11", "numpy": "2.1"},
            "hardware": "a CPU",
        }
    },
}  # fmt: skip


def rows_of(table: str) -> dict[str, str]:
    """The rows of a table of two columns."""
    rows = (line.strip().partition("  ") for line in table.splitlines())
    return {name: value.strip() for name, _, value in rows}


def test_a_caches_table_holds_every_figure() -> None:
    assert rows_of(cache_table(CACHE)) == {
        "cache": "runs/c.zarr (d1d1d1d1d1d1), zarr, format 2",
        "state": "not finished, 7 of 36 blocks",
        "size": "123.5 MB",
        "blocks": "of 16,667 rows",
        "data set": "cifar100, train: 50,000 samples, 100 classes (abababababab)",
        "views": "12 of crop-flip (version 1, padding 4, flip True, seed 9)",
        "signal logits": "float16, computed in bf16",
        "in runs": "e7e7e7e7e7e7",
        "teacher": "resnet56 (3f3f3f3f3f3f), test top-1 72.34 %",
        "error": "a logit differs from the teacher's by at most 0.0078; the top class can change only where it leads"
        " by at most 0.016",
        "losses": "KL at temperature 4 ≤ 1.9e-06, BinaryKL at temperature 2 ≤ 0.00019 (before the factor τ²)",
        "made with": "torch 2.11, numpy 2.1",
        "made on": "a CPU",
        "command": "dhkd cache-teacher cifar100/resnet56-resnet20 --out [c]",
    }


def test_a_finished_cache_of_unknown_origin() -> None:
    rows = rows_of(cache_table({**CACHE, "complete": True, "blocks_done": 36, "provenance": {}}))
    assert rows["state"] == "complete, 36 of 36 blocks"
    assert rows["made on"] == rows["command"] == "unknown"
    assert rows["teacher"].endswith("test top-1 nan %")


def test_a_cache_under_way() -> None:
    rows = rows_of(cache_table({**CACHE, "bytes": None, "complete_views": 4, "complete_signals": ["logits"]}))
    assert rows["size"] == "known when it is finished"
    assert rows["state"] == "complete with 4 views of logits; being extended or damaged: 7 of 36 blocks"


def test_what_a_top_k_cache_lacks_is_told() -> None:
    bounds = {"logits": {**CACHE["bounds"]["logits"], "tail_mass": 0.125}}
    signals = {"logits": {**CACHE["identity"]["signals"]["logits"], "codec": {"kind": "top-k", "k": 8}}}
    rows = rows_of(cache_table({**CACHE, "bounds": bounds, "identity": {**CACHE["identity"], "signals": signals}}))
    assert rows["signal logits"] == "top-k, k 8, computed in bf16"
    assert rows["error"].endswith("the others' probabilities, at most 0.12 of a row, are kept as their sum")
    assert "losses" not in rows


def test_the_demos_table_holds_every_figure() -> None:
    runs = [
        {"name": "teacher", "architecture": "resnet20", "last_top1": 61.25, "best_top1": 62.0, "seconds": 12.34,
         "teacher_seconds_saved": None},
        {"name": "ce", "architecture": "resnet8", "last_top1": 9.5, "best_top1": 10.125, "seconds": 3.0,
         "teacher_seconds_saved": 0.0},
        {"name": "dhkd", "architecture": "resnet8", "last_top1": 100.0, "best_top1": 100.0, "seconds": 103.0,
         "teacher_seconds_saved": 4.56},
    ]  # fmt: skip
    lines = demo_table({"runs": runs, "reading": ["One seed.", "Curves: accuracy.png"]}).splitlines()
    assert " ".join(lines[0].split()) == "run network top-1 % best seconds teacher's forwards saved, s"
    assert [line.split() for line in lines[1:4]] == [
        ["teacher", "resnet20", "61.25", "62.00", "12.3", "–"],
        ["ce", "resnet8", "9.50", "10.12", "3.0", "–"],
        ["dhkd", "resnet8", "100.00", "100.00", "103.0", "4.6"],
    ]
    assert lines[4:] == ["One seed.", "Curves: accuracy.png"]
    # Figures stand under one another by their last digit.
    bests = ("62.00", "10.12", "100.00")
    assert len({line.rindex(best) + len(best) for line, best in zip(lines[1:4], bests, strict=True)}) == 1
