"""Means, spreads and paired differences over seeds, compared with scipy and with cases computed by hand."""

import pytest
from dhkd.stages.report.statistics import difference, quantile, spread
from hypothesis import assume, given, settings
from hypothesis import strategies as st

accuracies = st.lists(st.integers(0, 10_000).map(lambda hundredths: hundredths / 100), min_size=2, max_size=12)


@settings(deadline=None)  # the first example imports scipy.stats
@given(accuracies)
def test_the_interval_is_students_t(values: list[float]) -> None:
    from scipy import stats

    assume(stats.tstd(values) > 1e-6)
    found = spread(values)
    low, high = stats.t.interval(0.95, len(values) - 1, stats.tmean(values), stats.sem(values))
    assert found.interval == pytest.approx((low, high))
    assert (found.count, found.mean) == (len(values), pytest.approx(stats.tmean(values)))
    assert found.deviation == pytest.approx(stats.tstd(values))


def test_quantiles_are_those_of_scipy() -> None:
    from scipy.special import stdtrit

    for freedom in (*range(1, 40), 100, 999, 10_000):
        assert quantile(freedom) == pytest.approx(stdtrit(freedom, 0.975), rel=1e-12)


def test_one_value_has_no_spread() -> None:
    found = spread([70.0])
    assert (found.count, found.mean, found.deviation, found.half, found.interval) == (1, 70.0, None, None, None)


@settings(deadline=None)  # the first example imports scipy.stats
@given(accuracies, accuracies)
def test_differences_are_paired_by_seed(one: list[float], other: list[float]) -> None:
    """The verdict is that of a paired t-test at 5 %."""
    from scipy import stats

    count = min(len(one), len(other))
    pairs = list(zip(one[:count], other[:count], strict=True))
    assume(stats.tstd([a - b for a, b in pairs]) > 1e-6)
    found = difference(dict(enumerate(one)), dict(enumerate(other)))
    assert found is not None
    test = stats.ttest_rel(*zip(*pairs, strict=True))
    assume(abs(test.pvalue - 0.05) > 1e-6)
    expected = "within noise" if test.pvalue > 0.05 else "higher" if found.mean > 0 else "lower"
    assert found.verdict == expected


def test_what_seeds_share_drops_out() -> None:
    """The seeds differ widely from one another, but each differs by about one from the baseline's."""
    baseline = {0: 50.0, 1: 60.0, 2: 70.0}
    better = difference({seed: value + 1 + 0.01 * seed for seed, value in baseline.items()}, baseline)
    assert better is not None
    assert better.verdict == "higher"
    assert better.mean == pytest.approx(1.01)


def test_only_seeds_that_both_have_count() -> None:
    found = difference({0: 1.0, 5: 9.0}, {0: 0.0, 7: 100.0})
    assert found is not None
    assert (found.count, found.mean, found.verdict) == (1, 1.0, "one seed")
    assert difference({1: 1.0}, {2: 1.0}) is None
