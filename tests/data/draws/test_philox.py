"""Random numbers addressed by key and counter."""

import numpy as np
import pytest
from dhkd.data.draws.philox import Domain, below, permutations, raw_rows
from hypothesis import given
from hypothesis import strategies as st


@given(
    start=st.integers(0, 1000),
    length=st.integers(0, 50),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_row_is_the_same_whichever_range_it_is_drawn_in(start: int, length: int, width: int, seed: int) -> None:
    together = raw_rows(seed, Domain.VIEW, 3, start, start + length, width)
    assert together.shape == (length, width)
    for row in range(length):
        alone = raw_rows(seed, Domain.VIEW, 3, start + row, start + row + 1, width)
        assert (alone[0] == together[row]).all()


def test_rows_do_not_overlap() -> None:
    for width in (1, 3, 4, 5):
        drawn = raw_rows(0, Domain.VIEW, 0, 0, 500, width)
        assert len(np.unique(drawn)) == drawn.size


def test_seed_domain_and_plane_each_make_another_stream() -> None:
    """Seed 0, plane 1 must not equal seed 1, plane 0, nor one domain another."""
    streams = [
        raw_rows(seed, domain, plane, 0, 64).tobytes() for seed in (0, 1, 2) for domain in Domain for plane in (0, 1, 2)
    ]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize("limit", [1, 2, 7, 162, 50_000])
def test_below_is_uniform_over_its_range(limit: int) -> None:
    draws = below(raw_rows(1, Domain.SCHEDULE, 0, 0, 200_000)[:, 0], limit)
    assert draws.min() >= 0
    assert draws.max() < limit
    bins = np.bincount(draws * min(limit, 50) // limit)
    expected = np.bincount(np.arange(limit) * min(limit, 50) // limit) * (200_000 / limit)
    assert np.abs(bins - expected).max() < 6 * np.sqrt(expected.max())


def test_permutations_break_ties_by_position() -> None:
    raw = np.array([[5, 5, 1, 5]], dtype=np.uint64)
    assert permutations(raw).tolist() == [[2, 0, 1, 3]]
