"""Order and views of an epoch."""

import torch
from dhkd.data.schedule import cycle, independent, order_of_epoch


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    orders = [order_of_epoch(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], order_of_epoch(0, 0, 1000))


def test_independent_draws_every_view_equally_often_and_anew_in_each_epoch() -> None:
    first, second = independent(0, 0, 50_000, 10, 100), independent(0, 1, 50_000, 10, 100)
    for views in (first, second):
        assert (torch.bincount(views, minlength=10) - 5000).abs().max() < 420  # six standard deviations
    assert abs((first == second).float().mean() - 0.1) < 0.01, "epochs are independent of each other"


def test_views_are_independent_of_the_order() -> None:
    views, order = independent(3, 2, 50_000, 2, 100).double(), order_of_epoch(3, 2, 50_000).double()
    assert abs(torch.corrcoef(torch.stack([views, order]))[0, 1]) < 0.03


def test_cycle_shows_one_view_after_the_other() -> None:
    assert [cycle(9, epoch, 3, 4, 2).tolist() for epoch in range(5)] == [[v] * 3 for v in (0, 1, 2, 3, 0)]
