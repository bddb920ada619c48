"""docs/methods.md: its worked example trains, and its table is the one that the program prints."""

from pathlib import Path

import pytest
from dhkd.benchmarks.method_table import HEADER, PRESETS, method_table
from dhkd.stages.train.objectives import OBJECTIVES

from tests.few import few

IMAGENET, COST = (HEADER.index(name) + 1 for name in ("MB a view, ImageNet", "step / ce"))

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


@pytest.mark.slow
# Networks for photographs take several times as long, and are described by the same code.
@pytest.mark.parametrize("photographs", few([False, True], [False]))
def test_the_table_is_the_one_that_the_program_prints(photographs: bool) -> None:
    def cells(line: str) -> tuple[str, ...]:
        """All but the cost of a step, which is measured, and the sizes for photographs unless they are computed."""
        return tuple(cell for at, cell in enumerate(line.split("|")) if at != COST and (photographs or at != IMAGENET))

    printed = [cells(line) for line in method_table({}, PRESETS if photographs else (PRESETS[0], PRESETS[0]))]
    on_the_page = {cells(line) for line in PAGE.splitlines() if line.startswith("|")}
    assert len(printed) == len(OBJECTIVES) + 2
    header, _, *methods = printed
    assert [line for line in [header, *methods] if line not in on_the_page] == []
