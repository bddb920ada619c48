"""Order and views of an epoch."""

from itertools import groupby

import pytest
import torch
from dhkd.data.draws.orders import order_of_epoch, windowed_order
from dhkd.data.draws.schedules import block, cycle, independent
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    orders = [order_of_epoch(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], order_of_epoch(0, 0, 1000))


def test_independent_draws_all_views_equally_often_and_again_in_each_epoch() -> None:
    first, second = independent(0, 0, 50_000, 10, 100), independent(0, 1, 50_000, 10, 100)
    for views in (first, second):
        assert (torch.bincount(views, minlength=10) - 5000).abs().max() < 420  # six standard deviations
    assert abs((first == second).float().mean() - 0.1) < 0.01, "epochs are independent of each other"


def test_views_are_independent_of_the_order() -> None:
    views, order = independent(3, 2, 50_000, 2, 100).double(), order_of_epoch(3, 2, 50_000).double()
    assert abs(torch.corrcoef(torch.stack([views, order]))[0, 1]) < 0.03


def test_cycle_shows_one_view_after_the_other() -> None:
    assert [cycle(9, epoch, 3, 4, 2).tolist() for epoch in range(5)] == [[v] * 3 for v in (0, 1, 2, 3, 0)]


@pytest.mark.parametrize(("num_samples", "block_rows"), [(1000, 10), (1003, 10), (7, 10), (10, 1)])
def test_block_shows_all_samples_of_a_block_in_one_view(num_samples: int, block_rows: int) -> None:
    views = block(3, 5, num_samples, 7, block_rows)
    assert views.dtype == torch.int64
    assert len(views) == num_samples
    for rows in views.split(block_rows):
        assert len(rows.unique()) == 1
    assert torch.equal(views, block(3, 5, num_samples, 7, block_rows))


def test_block_draws_all_views_equally_often_and_again_in_each_epoch() -> None:
    first, next_epoch, next_seed = (
        block(*seed_epoch, 500_000, 10, 10)[::10] for seed_epoch in ((0, 0), (0, 1), (1, 0))
    )
    for views in (first, next_epoch, next_seed):
        assert (torch.bincount(views, minlength=10) - 5000).abs().max() < 420  # six standard deviations
    for views in (next_epoch, next_seed, first.roll(1)):
        assert abs((first == views).float().mean() - 0.1) < 0.01, "epochs, seeds and neighbours are independent"


def test_a_blocks_view_does_not_depend_on_its_place_in_the_order() -> None:
    order = windowed_order(3, 2, 50_000, 10, 10)[::10] // 10  # a window is a block
    views = block(3, 2, 50_000, 2, 10)[::10]
    place = torch.empty(5000).scatter_(0, order, torch.arange(5000.0))
    assert abs(torch.corrcoef(torch.stack([views.float(), place]))[0, 1]) < 0.09  # six standard deviations


# windowed order


def blocks_of_windows(order: Tensor, num_samples: int, block_rows: int, window: int) -> list[list[int]]:
    """Each window's blocks, sorted; every window holds all samples of its blocks and no others."""
    per_window = max(1, window // block_rows)
    left = order.tolist()
    windows = []
    while left:
        blocks: list[int] = []
        rows = 0
        # A window ends where its blocks' samples are used up.
        while len(blocks) < per_window and rows < len(left):
            blocks += [number for number in [left[rows] // block_rows] if number not in blocks]
            rows += 1
        size = sum(min(block_rows, num_samples - number * block_rows) for number in blocks)
        assert sorted({index // block_rows for index in left[:size]}) == sorted(blocks)
        windows.append(sorted(blocks))
        left = left[size:]
    return windows


@given(
    num_samples=st.integers(1, 300),
    block_rows=st.integers(1, 40),
    window=st.integers(1, 400),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_a_windowed_order_holds_whole_blocks_one_window_after_the_other(
    num_samples: int, block_rows: int, window: int, seed: int, epoch: int
) -> None:
    order = windowed_order(seed, epoch, num_samples, block_rows, window)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(num_samples))
    windows = blocks_of_windows(order, num_samples, block_rows, window)
    num_blocks, per_window = -(-num_samples // block_rows), max(1, window // block_rows)
    assert len(windows) == -(-num_blocks // per_window)
    assert sorted(number for blocks in windows for number in blocks) == list(range(num_blocks))
    assert all(len(blocks) == per_window for blocks in windows[:-1]), "only the last window may have fewer"
    assert torch.equal(order, windowed_order(seed, epoch, num_samples, block_rows, window))


def test_windows_change_with_epoch_and_seed() -> None:
    orders = [windowed_order(seed, epoch, 1000, 10, 100) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assignments = {str(blocks_of_windows(order, 1000, 10, 100)) for order in orders}
    assert len(assignments) == 4, "which blocks meet in a window, not only the order inside it"


def test_a_window_of_all_samples_is_a_full_shuffle() -> None:
    for window in (1000, 1001, 10**9):
        for block_rows in (1, 10, 1000, 5000):
            assert torch.equal(windowed_order(4, 2, 1000, block_rows, window), order_of_epoch(4, 2, 1000))


def test_a_window_smaller_than_a_block_is_a_block() -> None:
    order = windowed_order(0, 0, 1000, 50, 7)
    runs = [number for number, _ in groupby((order // 50).tolist())]
    assert sorted(runs) == list(range(20))
    assert runs != sorted(runs), "blocks are shuffled"
    assert (order.view(20, 50).diff(dim=1) < 0).any(dim=1).all(), "and so are the samples of each"
    assert torch.equal(order, windowed_order(0, 0, 1000, 50, 99)), "one whole block and part of another count as one"


def test_samples_of_a_window_are_mixed() -> None:
    """Each block of a window of ten has about as many samples in each tenth of it."""
    order = windowed_order(0, 0, 10_000, 1000, 10_000)
    counts = torch.stack([torch.bincount(part // 1000, minlength=10) for part in order.split(1000)])
    assert (counts - 100).abs().max() < 60  # six standard deviations


def test_a_short_last_block_may_be_anywhere() -> None:
    places = {int((windowed_order(0, epoch, 35, 10, 10) == 34).nonzero()) // 5 for epoch in range(60)}
    assert {0, 3, 5} <= {place for place in places if place in (0, 3, 5)} or len(places) >= 4
