"""Means and differences over seeds as people read them."""

import pytest
from dhkd.stages.report.statistics import Difference, Spread
from dhkd.stages.report.text import difference_text, spread_text


@pytest.mark.parametrize(
    ("spread", "text"),
    [(Spread(1, 61.256, None, None), "61.26"), (Spread(3, 61.256, 0.5, 1.242), "61.26 ± 1.24 (0.50)")],
)
def test_a_mean_has_its_interval_and_deviation(spread: Spread, text: str) -> None:
    assert spread_text(spread) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (None, ""),
        (Difference(1, 1.5, None, None), "+1.50, one seed"),
        (Difference(1, -1.5, None, None), "-1.50, one seed"),
        (Difference(3, 1.5, 0.1, 0.25), "+1.50 ± 0.25, higher"),
        (Difference(3, -1.5, 0.1, 0.25), "−1.50 ± 0.25, lower"),
        (Difference(3, -0.1, 0.1, 0.25), "−0.10 ± 0.25, within noise"),
    ],
)
def test_a_difference_has_its_verdict(difference: Difference | None, text: str) -> None:
    assert difference_text(difference) == text
