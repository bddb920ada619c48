"""The shapes in names are checked while these tests run."""

import pytest
import torch
from dhkd.stages.report import conflict
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.crd import Negatives
from dhkd.stages.train.objectives.dkd import decoupled_kd
from dhkd.stages.train.objectives.ofd import partial_l2


def test_a_wrong_number_of_axes_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"kd: student_BK doesn't fit among \{'student_BK': \(2, 3, 4\)"):
        losses.kd(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 1.0)
    negatives = Negatives(torch.arange(6) % 2, 3, seed=0)
    with pytest.raises(AssertionError, match=r"draw: index_B"):
        negatives.draw(0, torch.zeros(2, 1, dtype=torch.int64))


def test_an_axis_of_two_lengths_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"binary_kl: teacher_BK doesn't fit"):
        losses.binary_kl(torch.zeros(2, 3), torch.zeros(1, 3), 1.0)  # broadcasting would hide it
    with pytest.raises(AssertionError, match=r"decoupled_kd: labels_B doesn't fit"):
        decoupled_kd(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), 1.0)
    with pytest.raises(AssertionError, match=r"partial_l2: margin_C doesn't fit"):
        partial_l2(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1))
    with pytest.raises(AssertionError, match=r"cross_entropy_residual"):
        conflict.cross_entropy_residual(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))


def test_what_fits_is_computed() -> None:
    assert losses.kd(torch.ones(2, 3), torch.ones(2, 3), 1.0) == 0
