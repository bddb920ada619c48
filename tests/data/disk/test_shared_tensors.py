"""Tensors that processes share: equal to their own, and never a damaged file."""

from pathlib import Path

import pytest
import torch
from dhkd.data.disk import shared_tensors
from dhkd.data.disk.copies import BoundedCopies
from dhkd.data.disk.shared_tensors import Keep, sharing_with
from torch import Tensor


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoundedCopies:
    monkeypatch.setattr(shared_tensors, "LEAST_BYTES", 1000)
    return BoundedCopies(tmp_path / "near", 10**6)


def tensor_of(dtype: torch.dtype = torch.uint8, size: int = 4000) -> Tensor:
    return torch.arange(size).to(dtype).view(2, -1)


def files_of(copies: BoundedCopies) -> list[Path]:
    return sorted(copies.folder.glob("*.tensor"))


def is_mapped(tensor: Tensor, copies: BoundedCopies) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in addresses.split("-"))
        if start <= tensor.data_ptr() < stop:
            return path.startswith(str(copies.folder))
    return False


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_equal_tensors_share_one_file(dtype: torch.dtype, copies: BoundedCopies) -> None:
    keep = sharing_with(copies)
    tensor = tensor_of(dtype)
    one, other = keep(tensor), keep(tensor.clone())
    assert len(files_of(copies)) == 1
    for kept in (one, other):
        assert kept.dtype == dtype
        assert torch.equal(kept, tensor)
        assert is_mapped(kept, copies)
    assert not is_mapped(tensor, copies)
    one[0, 0] += 1  # nobody does that; if somebody did, it would be nobody else's tensor
    assert torch.equal(other, tensor)
    assert torch.equal(keep(tensor), tensor)


@pytest.mark.parametrize("how", ["changed", "cut", "empty"])
def test_a_damaged_file_is_written_anew(how: str, copies: BoundedCopies) -> None:
    keep, tensor = sharing_with(copies), tensor_of()
    keep(tensor)
    (file,) = files_of(copies)
    good = file.read_bytes()
    file.write_bytes({"changed": b"x" + good[1:], "cut": good[:-1], "empty": b""}[how])
    kept = keep(tensor)
    assert torch.equal(kept, tensor)
    assert is_mapped(kept, copies)
    assert file.read_bytes() == good


def nowhere(tmp_path: Path) -> Keep:
    (tmp_path / "file").write_bytes(b"")
    return sharing_with(BoundedCopies(tmp_path / "file" / "near", 10**6))


def test_where_it_is_not_possible_the_tensor_stays(
    copies: BoundedCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = tensor_of()
    assert sharing_with(BoundedCopies(copies.folder, 100))(tensor) is tensor, "larger than all copies may be"
    assert sharing_with(copies)(tensor[:, :400]).data_ptr() == tensor.data_ptr(), "too small to be worth it"
    with caplog.at_level("INFO", "dhkd"):
        assert nowhere(tmp_path)(tensor) is tensor
        monkeypatch.setattr(shared_tensors, "file_system_of", lambda path: "nfs4")
        assert sharing_with(copies)(tensor) is tensor
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("so each process holds its own images" in line for line in lines)
    assert not copies.folder.exists()
