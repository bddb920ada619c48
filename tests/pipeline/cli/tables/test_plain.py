"""The plain table: alignment, and nothing that a terminal could change."""

import pytest
from dhkd.pipeline.cli.tables.plain import plain_table


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_words_are_aligned_to_the_left_and_numbers_to_the_right() -> None:
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


def test_nothing_is_wrapped_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
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
