"""Draws of any keys are the numbers of the table that numpy's generator gives row by row."""

import numpy as np
import pytest
import torch
from dhkd.data.draws.keyed import DrawBlock, _philox, below, chosen, draws_of_blocks, keyed_draws
from dhkd.data.draws.philox import Domain, raw_rows
from hypothesis import given
from hypothesis import strategies as st

HALF = np.uint64(32)


@given(
    seed=st.integers(0, 2**63 - 1),
    keys=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 2**40)), min_size=1, max_size=5),
    num=st.integers(3, 20),
)
def test_each_row_is_that_of_numpys_generator(seed: int, keys: list[tuple[int, int]], num: int) -> None:
    view_B, index_B = torch.tensor(keys).unbind(1)
    expected = []
    for view, index in keys:
        raw = raw_rows(seed, Domain.POLICY, view, index, index + 1, (num + 1) // 2)[0]
        expected.append(np.stack([raw >> HALF, raw & np.uint64(0xFFFFFFFF)], axis=1).reshape(-1)[:num].tolist())
    assert keyed_draws(seed, Domain.POLICY, view_B, index_B, num).tolist() == expected


@pytest.mark.parametrize("num", [1, 2])
def test_a_row_does_not_depend_on_how_many_draws_are_asked_for(num: int) -> None:
    view_B, index_B = torch.tensor([(0, 0), (7, 3), (1 << 30, 1_281_166)]).unbind(1)
    few, many = (keyed_draws(5, Domain.BLUR, view_B, index_B, columns) for columns in (num, 8))
    assert torch.equal(few, many[:, :num])


def test_draws_fill_their_range_evenly() -> None:
    index_B = torch.arange(60_000)
    draws = keyed_draws(0, Domain.SOLARIZE, torch.full_like(index_B, 3), index_B, 2)
    counts = torch.bincount(below(draws[:, 0], 6), minlength=6)
    assert counts.tolist() == pytest.approx([10_000] * 6, rel=0.04)
    assert chosen(draws[:, 1], 0.25).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not chosen(draws[:, 1], 0.0).any()
    assert chosen(draws[:, 1], 1.0).all()


def test_several_blocks_give_what_each_gives_alone() -> None:
    view_B, index_B = torch.tensor([(0, 0), (7, 3), (1 << 30, 1_281_166)]).unbind(1)
    blocks = [DrawBlock(Domain.BLUR, 1), DrawBlock(Domain.POLICY, 9), DrawBlock(Domain.AFFINE, 0)]
    together = draws_of_blocks(5, blocks, view_B, index_B)
    alone = [keyed_draws(5, block.domain, view_B, index_B, block.num) for block in blocks]
    assert [draws.tolist() for draws in together] == [draws.tolist() for draws in alone]


def test_the_first_draws_of_a_long_row_do_not_depend_on_how_many_are_asked_for() -> None:
    view_B, index_B = torch.tensor([(0, 0), (7, 3)]).unbind(1)
    (few,), (many,) = (draws_of_blocks(5, [DrawBlock(Domain.POLICY, num, row=24)], view_B, index_B) for num in (6, 24))
    assert torch.equal(few, many[:, :6])


def test_tensors_and_arrays_give_the_same_numbers() -> None:
    """On a GPU, tensors are computed with; on a CPU, arrays."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 3), (2, 5, 3), (2, 1, 1), (10, 2, 1, 1))
    words = [torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator) for shape in shapes]
    for tensor, array in zip(_philox(*words), _philox(*(word.numpy() for word in words)), strict=True):
        assert tensor.tolist() == array.tolist()
