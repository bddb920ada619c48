"""Saved weights: read back, the same bytes every time, and a hash that sees every change."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from dhkd.data.errors import WeightsError
from dhkd.stages.models import Network
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights, save_weights, weights_sha256

from tests.stages.models.weight_files import Holder, assert_state, copy_of, trained


def test_the_hash_is_the_documented_one() -> None:
    """With another hash, no existing cache would match its teacher."""
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    digest = hashlib.sha256()
    digest.update(b"a torch.float32 (2, 3)\n" + struct.pack("<6f", 0, 1, 2, 3, 4, 5))
    digest.update(b"b torch.int64 ()\n" + struct.pack("<q", 7))
    holder = Holder(b=torch.tensor(7), a=values, num_batches_tracked=torch.tensor(3))
    assert weights_sha256(holder) == digest.hexdigest()
    assert digest.hexdigest() == "3c8bf233e360d196ddc08ffe31b0211d64f6fa909b733c0a75b2011b7f24804b"


def test_the_hash_sees_every_change() -> None:
    zeros = torch.zeros(2, 3)
    holders = {
        "itself": Holder(a=zeros, b=torch.ones(2)),
        "one value": Holder(a=zeros.index_fill(1, torch.tensor(2), 1e-38), b=torch.ones(2)),
        "a sign of zero": Holder(a=-zeros, b=torch.ones(2)),
        "shape": Holder(a=zeros.reshape(3, 2), b=torch.ones(2)),
        "dtype of the same bytes": Holder(a=zeros.int(), b=torch.ones(2)),
        "name": Holder(c=zeros, b=torch.ones(2)),
        "names swapped": Holder(b=zeros, a=torch.ones(2)),
        "one tensor less": Holder(a=zeros),
        "one tensor more": Holder(a=zeros, b=torch.ones(2), c=torch.zeros(0)),
    }
    hashes = {weights_sha256(holder): name for name, holder in holders.items()}
    assert len(hashes) == len(holders), sorted(hashes.values())


def test_the_hash_sees_parameters_and_statistics_alike(network: Network) -> None:
    for name in ("layer2.0.downsample.0.weight", "bn1.running_var", "fc.bias"):
        other = trained()
        assert weights_sha256(other) == weights_sha256(network)
        with torch.no_grad():
            other.state_dict()[name].view(-1)[0] += 1e-3
        assert weights_sha256(other) != weights_sha256(network), name


def test_the_hash_depends_on_neither_layout_nor_order_nor_counters(network: Network) -> None:
    other = trained()
    other.to(memory_format=torch.channels_last)
    assert not other.get_parameter("layer1.0.conv1.weight").is_contiguous()
    other.get_buffer("bn1.num_batches_tracked").add_(5)
    assert weights_sha256(other) == weights_sha256(network)
    a, b = torch.randn(2), torch.randn(3)
    assert weights_sha256(Holder(a=a, b=b)) == weights_sha256(Holder(b=b, a=a))


def test_what_was_saved_is_read(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    facts = {"architecture": "resnet8", "mean": "[0.5, 0.4]", "name": "σ → τ"}
    save_weights(path, network, facts)
    assert read_metadata(path) == facts
    assert os.listdir(path.parent) == ["w.safetensors"]
    other = trained(seed=1)
    fit_weights(other, read_weights(path), str(path))
    assert_state(other, copy_of(network))


def test_safetensors_alone_reads_what_was_saved(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, network, {"architecture": "resnet8"})
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert (file.get_tensor("fc.bias") == network.get_parameter("fc.bias").detach().numpy()).all()
        assert {key: json.loads(text) for key, text in file.metadata().items()} == {"dhkd": {"architecture": "resnet8"}}


def test_saving_again_replaces_the_file(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, trained("resnet14"), {"a": "1"})
    save_weights(path, network, {})
    assert read_metadata(path) == {}
    assert set(read_weights(path)) == set(network.state_dict())


def test_the_bytes_do_not_depend_on_the_memory_format(network: Network, tmp_path: Path) -> None:
    reordered = trained()
    reordered.to(memory_format=torch.channels_last)
    assert not reordered.get_parameter("layer1.0.conv1.weight").is_contiguous()
    for name, saved in (("contiguous", network), ("reordered", reordered)):
        save_weights(tmp_path / name, saved, {"architecture": "resnet8"})
    assert (tmp_path / "contiguous").read_bytes() == (tmp_path / "reordered").read_bytes()


def test_the_bytes_are_the_same_every_time(network: Network, tmp_path: Path) -> None:
    """Safetensors by itself writes metadata in the order of a hash map, which changes."""
    facts = {key: json.dumps([key]) for key in ("architecture", "num_classes", "mean", "std")}
    contents = set()
    for _ in range(8):
        save_weights(tmp_path / "w", network, facts)
        contents.add((tmp_path / "w").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("kind", ["zip.pth", "missing", "folder"])
def test_metadata_of_another_kind_of_file_is_refused(kind: str, whole_files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind in whole_files:
        path.write_bytes(whole_files[kind])
    with pytest.raises(WeightsError, match=r"^weights .*w\.safetensors: expected a \.safetensors file [^\n]*$"):
        read_metadata(path)


def test_a_file_without_our_entry_has_no_metadata(whole_files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(whole_files["w.safetensors"])
    assert read_metadata(tmp_path / "w.safetensors") == {}
