"""docs/methods.md: its worked example trains, and its table is the one that the program prints."""

from pathlib import Path

from dhkd.benchmarks.method_table import method_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


def test_the_table_is_the_one_that_the_program_prints() -> None:
    printed = [line.rsplit("|", 2)[0] for line in method_table({})]
    on_the_page = {line.rsplit("|", 2)[0] for line in PAGE.splitlines() if line.startswith("|")}
    assert [line for line in printed if line not in on_the_page] == []
