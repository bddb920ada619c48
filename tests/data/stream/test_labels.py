"""Labels: which predictions are right, how labels are moved and copied, and where mixed ones are refused."""

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels


def mixed() -> Labels:
    return Labels(torch.tensor([3, 1, 4, 2]), torch.tensor([0, 2, 2, 4]), torch.tensor([0.75, 0.25, 0.5, 1.0]))


def test_a_prediction_hits_the_label_or_the_heavier_of_two() -> None:
    predicted_B = torch.tensor([3, 2, 4, 4])
    assert Labels(mixed().first_B).hit_by(predicted_B).tolist() == [True, False, True, False]
    assert mixed().hit_by(predicted_B).tolist() == [True, True, True, False]
    assert mixed().hit_by(torch.tensor([0, 1, 2, 2])).tolist() == [False, False, False, True]


def test_every_tensor_is_mapped() -> None:
    twice = mixed().map(lambda tensor: torch.cat([tensor, tensor]))
    assert len(twice) == 8
    assert twice.first_B.tolist() == 2 * mixed().first_B.tolist()
    assert twice.second_B is not None
    assert twice.second_B.tolist() == 2 * [0, 2, 2, 4]
    assert twice.weight_B is not None
    assert twice.weight_B.tolist() == 2 * [0.75, 0.25, 0.5, 1.0]
    plain = Labels(torch.tensor([1, 0])).map(torch.neg)
    assert plain.first_B.tolist() == [-1, 0]
    assert not plain.are_mixed


def test_a_copy_is_made_in_place() -> None:
    """A CUDA graph knows the addresses of its tensors, not the tensors."""
    for source in (mixed(), Labels(mixed().first_B)):
        target = source.map(torch.zeros_like)
        addresses = [tensor.data_ptr() for tensor in vars(target).values() if isinstance(tensor, torch.Tensor)]
        target.copy_(source)
        for name, tensor in vars(source).items():
            copied = getattr(target, name)
            assert torch.equal(copied, tensor) if isinstance(tensor, torch.Tensor) else copied == tensor, name
        assert [tensor.data_ptr() for tensor in vars(target).values() if isinstance(tensor, torch.Tensor)] == addresses
    with pytest.raises(AssertionError):
        Labels(torch.zeros(4, dtype=torch.int64)).copy_(mixed())


def test_one_class_is_given_or_mixed_labels_are_refused() -> None:
    plain = Labels(torch.tensor([3, 1]))
    plain.require_one_class("dkd")
    assert plain.one_class_each("dkd") is plain.first_B
    for ask in (mixed().one_class_each, mixed().require_one_class):
        with pytest.raises(ConfigError) as raised:
            ask("dkd")
        assert str(raised.value) == (
            "objective 'dkd': expected images of one class each, got mixed ones; choose another objective, or views"
            " that don't mix images"
        )


def test_a_second_class_comes_with_a_weight_for_every_row() -> None:
    first_B = torch.tensor([3, 1])
    for second_B, weight_B in ((first_B, None), (None, torch.ones(2)), (first_B[:1], torch.ones(2))):
        with pytest.raises(AssertionError):
            Labels(first_B, second_B, weight_B)
