"""The watch over sums that are not finite: it remembers the first step, whenever it is asked."""

import pytest
import torch
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.train.finite import KEYS_LISTED, Failure, FiniteWatch, non_finite_loss

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("bad", BAD)
def test_the_first_failure_of_an_epoch_is_remembered(bad: float) -> None:
    watch = FiniteWatch(["ce", "kd", "rows"], torch.device("cpu"))
    for epoch in range(2):
        watch.begin_epoch()
        sums_of_steps = [[1.0, 2.0, 3.0], [1.0, bad, 3.0], [bad, 2.0, 3.0], [1.0, 2.0, 3.0]]
        for step, sums in enumerate(sums_of_steps):
            watch.begin_step(step)
            watch.check(torch.tensor(sums, dtype=torch.float64))
            assert watch.found_inf() == (step >= 1), "from the first failure on, updates are left out"
            assert watch.failure() == (None if step < 1 else Failure(1, ["kd"])), epoch


def test_its_tensors_are_written_in_place() -> None:
    """A CUDA graph knows their addresses only."""
    watch = FiniteWatch(["ce"], torch.device("cpu"))
    tensors = {name: value for name, value in vars(watch).items() if isinstance(value, torch.Tensor)}
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    assert len(addresses) == 3
    watch.begin_epoch()
    watch.begin_step(4)
    watch.check(torch.tensor([float("nan")]))
    assert {name: getattr(watch, name).data_ptr() for name in addresses} == addresses
    assert watch.failure() == Failure(4, ["ce"])


@pytest.mark.parametrize("bad", [*BAD, 1e20])
def test_the_error_lists_the_rows_that_are_to_blame(bad: float) -> None:
    """A value whose square overflows is to blame, too; without such a row it is the batch's or another process's."""
    rows = KEYS_LISTED + 3
    logits_BK = torch.zeros(rows, 3)
    embedding_BD = torch.zeros(rows, 2)
    index_B = torch.arange(10, 10 + rows)
    batch = Batch(
        0, torch.full((rows,), 6), index_B, torch.zeros(rows, 3, 2, 2), Labels(index_B % 3), {"e": embedding_BD}, rows
    )
    outputs = StudentOutputs(logits_BK, logits_BK, {"f": torch.zeros(rows, 1, 1)})

    def message() -> str:
        return str(non_finite_loss(Failure(2, ["ce", "kd"]), 4, outputs, batch, "bf16"))

    start = "loss term ce, kd is not finite at epoch 5, step 3, "
    assert message().startswith(f"{start}keys of another process or of the batch as a whole; nothing was updated;")
    embedding_BD[1, 1] = bad
    assert message().startswith(f"{start}keys (view, index) (6, 11); nothing was updated;")
    outputs.features["f"][3] = bad
    assert message().startswith(f"{start}keys (view, index) (6, 11), (6, 13); nothing was updated;")
    logits_BK[:] = bad
    keys = ", ".join(f"(6, {index})" for index in range(10, 10 + KEYS_LISTED))
    assert message().startswith(f"{start}keys (view, index) {keys} and 3 more; nothing was updated;")
