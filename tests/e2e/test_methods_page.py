"""docs/methods.md: its worked example trains, and its table is what the program says."""

from pathlib import Path

from dhkd.benchmarks.method_table import method_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


def test_the_table_is_what_the_program_says() -> None:
    generated = [line.rsplit("|", 2)[0] for line in method_table({})]
    shown = {line.rsplit("|", 2)[0] for line in PAGE.splitlines() if line.startswith("|")}
    assert [line for line in generated if line not in shown] == []
