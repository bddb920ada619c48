"""Files of weights: every published layout is read, nothing in a file is run, and what doesn't fit is refused whole."""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from dhkd.data.errors import ConfigError, WeightsError
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Normalization
from dhkd.data.sources import cifar100
from dhkd.data.sources.base import Place
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.foreign import packaged_weights
from dhkd.stages.models.weights import fit_weights, read_metadata, read_weights, save_weights, weights_sha256
from dhkd.stages.processes import Processes
from torch import Tensor, nn

CLASSES = 5


def trained(name: str = "resnet8", seed: int = 0, num_classes: int = CLASSES) -> Network:
    """As after a step of training: no buffer has its initial value."""
    torch.manual_seed(seed)
    network = build_network(name, num_classes)
    network.train()(torch.randn(4, 3, 8, 8))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> Network:
    return trained()


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_state(network: nn.Module, expected: dict[str, Tensor]) -> None:
    state = network.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def channels_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    strided = torch.channels_last
    return {name: t.contiguous(memory_format=strided) if t.ndim == 4 else t for name, t in state.items()}


# What the published files look like, as functions of a state; all but the last two are torch files.
LAYOUTS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "bare": torch.save,
    "legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "under model": lambda state, path: torch.save({"epoch": 240, "model": state, "best_acc": 72.3}, path),
    "under state_dict": lambda state, path: torch.save({"state_dict": state, "optimizer": {"lr": 0.1}}, path),
    "module. prefix": lambda state, path: torch.save(prefixed(state), path),
    "beside a Namespace": lambda state, path: torch.save(
        {"opt": argparse.Namespace(model="resnet8", lr=0.1), "model": prefixed(state), "accuracy": torch.tensor(72.3)},
        path,
    ),
    "without counters": lambda state, path: torch.save(without_counters(state), path),
    "channels last": lambda state, path: torch.save(channels_last(state), path),
    "other order": lambda state, path: torch.save(dict(reversed(state.items())), path),
    "safetensors": safetensors.torch.save_file,
    "module. prefix, safetensors": lambda state, path: safetensors.torch.save_file(prefixed(state), path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout: str, network: Network, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if "safetensors" in layout else "w.pth")
    LAYOUTS[layout](copy_of(network), path)
    other = trained(seed=1)
    assert weights_sha256(other) != weights_sha256(network)
    fit_weights(other, read_weights(path), "w")
    assert weights_sha256(other) == weights_sha256(network)
    images_BCHW = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(images_BCHW), network(images_BCHW))


# ResNet50's file is large, so that it is written once.
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        *(
            (name, ["bare", "under model", "under state_dict", "module. prefix", "beside a Namespace"])
            for name in ("wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "MobileNetV1")
        ),
        *(("ResNet50", ["beside a Namespace"]), ("torchvision:resnet18", ["module. prefix"])),
        ("torchvision:mnasnet0_5", ["under model"]),
    ],
)
def test_every_family_is_read_from_published_layouts(name: str, layouts: list[str], tmp_path: Path) -> None:
    images_BCHW = torch.randn(2, 3, 32, 32)
    there, path = trained(name), tmp_path / "w.pth"
    for layout in layouts:
        LAYOUTS[layout](copy_of(there), path)
        here = build_network(name, CLASSES).eval()
        fit_weights(here, read_weights(path), "w")
        assert_state(here, copy_of(there))
        assert torch.equal(here(images_BCHW), there(images_BCHW)), layout


@pytest.mark.parametrize("layout", ["bare", "under model", "under state_dict", "module. prefix", "beside a Namespace"])
def test_a_published_mobilenet_v2_calls_its_classifier_otherwise(layout: str, tmp_path: Path) -> None:
    there = trained("MobileNetV2")
    published = {name.replace("classifier.", "classifier.0."): tensor for name, tensor in copy_of(there).items()}
    assert list(published)[-2:] == ["classifier.0.weight", "classifier.0.bias"]
    LAYOUTS[layout](published, tmp_path / "w.pth")
    here = trained("MobileNetV2", seed=1)
    fit_weights(here, read_weights(tmp_path / "w.pth"), "w")
    assert_state(here, copy_of(there))


def test_entries_of_auxiliary_classifiers_have_no_place() -> None:
    googlenet = build_network("torchvision:googlenet", CLASSES)
    state = copy_of(googlenet)
    fit_weights(googlenet, {"aux1.fc1.weight": torch.zeros(3), **state, "aux2.conv.bn.bias": torch.zeros(2)}, "w")
    assert "aux3.fc1.weight expected nothing, got 3" in unfit(googlenet, {**state, "aux3.fc1.weight": torch.zeros(3)})


def test_published_densenets_have_older_names() -> None:
    there, here = (build_network("torchvision:densenet121", CLASSES) for _ in range(2))
    older = {
        re.sub(r"(denselayer[0-9]+[.](norm|conv))(.)[.]", r"\1.\3.", name): tensor
        for name, tensor in copy_of(there).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    fit_weights(here, older, "w")
    assert_state(here, copy_of(there))


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["module.a", "b"]


class Holder(nn.Module):
    """Any tensors by name."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_the_hash_is_the_documented_one() -> None:
    """Whoever changes this makes every cache a stranger to its teacher."""
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    text = hashlib.sha256()
    text.update(b"a torch.float32 (2, 3)\n" + struct.pack("<6f", 0, 1, 2, 3, 4, 5))
    text.update(b"b torch.int64 ()\n" + struct.pack("<q", 7))
    holder = Holder(b=torch.tensor(7), a=values, num_batches_tracked=torch.tensor(3))
    assert weights_sha256(holder) == text.hexdigest()
    assert text.hexdigest() == "3c8bf233e360d196ddc08ffe31b0211d64f6fa909b733c0a75b2011b7f24804b"


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


def refusal(path: Path) -> str:
    """What `read_weights` says: one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


class MakesAFile:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "under model", "alone"])
def test_code_in_a_file_is_refused_and_not_run(place: str, zipped: bool, network: Network, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "was_run"
    code, state = MakesAFile(trace), copy_of(network)
    content = {"beside": {"model": state, "opt": code}, "under model": {"model": {**state, "x": code}}, "alone": code}
    torch.save(content[place], path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "else the file had nothing to run"


def test_the_refusal_names_what_was_refused(tmp_path: Path) -> None:
    torch.save(MakesAFile(tmp_path / "was_run"), tmp_path / "w.pth")
    assert "posix.mkdir" in refusal(tmp_path / "w.pth")


def test_a_whole_pickled_network_is_refused(network: Network, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "w.pth")
    assert "got dhkd.stages.models.resnet.ResNet; the file was not loaded" in refusal(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "was_run"
    path.write_bytes(pickle.dumps(MakesAFile(trace)))
    refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_refused(suffix: str, tmp_path: Path) -> None:
    assert "expected a file, found none" in refusal(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_folder_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").mkdir()
    refusal(tmp_path / f"w{suffix}")


@pytest.fixture(scope="module")
def whole_files(network: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sound files by kind."""
    folder = tmp_path_factory.mktemp("whole")
    for layout, name in (("bare", "zip.pth"), ("legacy", "legacy.pth"), ("safetensors", "w.safetensors")):
        LAYOUTS[layout](copy_of(network), folder / name)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(kind: str, whole_files: dict[str, bytes], tmp_path: Path) -> None:
    whole = whole_files[kind]
    half = len(whole) // 2
    for length in (
        0,
        1,
        2,
        7,
        8,
        9,
        50,
        100,
        500,
        1000,
        5000,
        half,
        len(whole) - 1000,
        len(whole) - 10,
        len(whole) - 1,
    ):
        (tmp_path / kind).write_bytes(whole[:length])
        refusal(tmp_path / kind)
    (tmp_path / kind).write_bytes(whole)
    assert read_weights(tmp_path / kind)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_random_bytes_are_refused(suffix: str, tmp_path: Path) -> None:
    generator, path = random.Random(0), tmp_path / f"w{suffix}"
    for _ in range(300):
        path.write_bytes(generator.randbytes(generator.choice([1, 2, 5, 8, 20, 100, 1000])))
        refusal(path)


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_bytes_are_refused_or_leave_tensors(kind: str, whole_files: dict[str, bytes], tmp_path: Path) -> None:
    """Neither format has checksums of its own, so that a flipped value can't be told; but nothing else may happen."""
    generator, path = random.Random(0), tmp_path / kind
    for _ in range(200):
        content = bytearray(whole_files[kind])
        for _ in range(generator.choice([1, 3, 20])):
            content[generator.randrange(generator.choice([200, 2000]))] = generator.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(WeightsError):
            assert all(isinstance(tensor, Tensor) for tensor in read_weights(path).values())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "text", ["", "\n", "{}", "hello\n", "<html>\n<body>404: Not Found</body>\n", "version https://git-lfs…\noid sha256"]
)
def test_text_is_refused(text: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").write_text(text)
    refusal(tmp_path / f"w{suffix}")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [torch.zeros(2)],
        torch.zeros(2),
        {"epoch": 3},
        {"model": {}},
        {"model": {"lr": 0.1}},
        {0: torch.zeros(2)},
    ],
    ids=["empty", "list", "tensor", "numbers", "empty model", "numbers in model", "numbered"],
)
def test_a_file_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "expected tensors by name" in refusal(tmp_path / "w.pth")


def unfit(network: nn.Module, state: dict[str, Tensor]) -> str:
    """What `fit_weights` says, after which the network must be as it was."""
    before = copy_of(network)
    with pytest.raises(WeightsError) as caught:
        fit_weights(network, state, "teacher.pth")
    assert_state(network, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_classes_are_listed_with_both_shapes(network: Network) -> None:
    assert unfit(trained(num_classes=7), copy_of(network)) == (
        "weights teacher.pth are of another architecture: fc.weight expected 7×64, got 5×64;"
        " fc.bias expected 7, got 5; check the architecture's name"
    )


def test_a_deeper_network_lists_the_first_names_it_misses(network: Network) -> None:
    text = unfit(trained("resnet14"), copy_of(network))
    assert "layer1.1.conv1.weight expected 16×16×3×3, got nothing; layer1.1.bn1.weight expected 16, got nothing" in text
    # Three blocks, each of two convolutions and four tensors of each of two norms; three are listed.
    assert f"; layer1.1.bn1.bias expected 16, got nothing and {3 * (2 + 2 * 4) - 3} more; check" in text


def test_a_shallower_network_lists_what_it_has_no_place_for(network: Network) -> None:
    text = unfit(trained(), copy_of(trained("resnet14")))
    assert "layer1.1.conv1.weight expected nothing, got 16×16×3×3" in text


def test_a_wide_resnet_of_another_width_lists_the_first_shapes() -> None:
    text = unfit(build_network("wrn_40_2", CLASSES), copy_of(build_network("wrn_40_1", CLASSES)))
    assert text.startswith(
        "weights teacher.pth are of another architecture:"
        " block1.layer.0.conv1.weight expected 32×16×3×3, got 16×16×3×3;"
        " block1.layer.0.bn2.weight expected 32, got 16; block1.layer.0.bn2.bias expected 32, got 16 and "
    )


def test_one_missing_tensor_and_a_scalar_in_place_of_another() -> None:
    state = copy_of(trained(seed=1))
    del state["bn1.running_mean"]
    state["fc.bias"] = torch.tensor(1.0)
    text = unfit(trained(), state)
    assert "bn1.running_mean expected 16, got nothing; fc.bias expected 5, got a scalar; check" in text


@pytest.mark.parametrize("name", ["conv1.weight", "layer3.0.bn2.running_var", "fc.bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    state = copy_of(trained(seed=1))
    state[name].view(-1)[-1] = bad
    assert f"weights teacher.pth: {name} has values that are not finite" in unfit(trained(), state)


def test_a_file_in_half_precision_fits_and_becomes_float32(network: Network) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in copy_of(network).items()}
    other = trained(seed=1)
    fit_weights(other, state, "teacher.pth")
    assert other.get_parameter("conv1.weight").dtype == torch.float32
    assert torch.equal(other.get_parameter("conv1.weight"), state["conv1.weight"].float())


def test_a_counter_of_another_shape_is_refused_or_left_out() -> None:
    network, state = trained(), copy_of(trained(seed=1))
    state["bn1.num_batches_tracked"] = torch.zeros(3, dtype=torch.int64)
    before, expected = weights_sha256(network), weights_sha256(trained(seed=1))
    try:
        fit_weights(network, state, "teacher.pth")
    except WeightsError:
        expected = before
    assert weights_sha256(network) == expected


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((CLASSES,), 1e300, dtype=torch.float64),
        torch.ones(CLASSES, dtype=torch.complex64),
        torch.ones(CLASSES).to_sparse(),
    ],
    ids=["infinite in float32", "complex", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_tensors_that_a_network_cannot_hold_are_refused(tensor: Tensor) -> None:
    state = copy_of(trained(seed=1))
    state["fc.bias"] = tensor
    assert "fc.bias" in unfit(trained(), state)


def test_what_was_saved_is_read(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    facts = {"architecture": "resnet8", "mean": "[0.5, 0.4]", "name": "σ → τ"}
    save_weights(path, network, facts)
    assert read_metadata(path) == facts
    assert os.listdir(path.parent) == ["w.safetensors"]
    other = trained(seed=1)
    fit_weights(other, read_weights(path), str(path))
    assert_state(other, copy_of(network))


def test_anyone_can_read_what_was_saved(network: Network, tmp_path: Path) -> None:
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
    strided = trained()
    strided.to(memory_format=torch.channels_last)
    assert not strided.get_parameter("layer1.0.conv1.weight").is_contiguous()
    for name, one in (("contiguous", network), ("strided", strided)):
        save_weights(tmp_path / name, one, {"architecture": "resnet8"})
    assert (tmp_path / "contiguous").read_bytes() == (tmp_path / "strided").read_bytes()


def test_the_bytes_are_the_same_every_time(network: Network, tmp_path: Path) -> None:
    """Safetensors itself writes metadata in the ever changing order of a hash map."""
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


def test_a_file_that_says_nothing_has_no_metadata(whole_files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(whole_files["w.safetensors"])
    assert read_metadata(tmp_path / "w.safetensors") == {}


@pytest.mark.slow
def test_a_published_teacher_loads_unchanged_and_is_as_good_as_published(
    real_teacher: Path, real_data: Path, processes: Processes
) -> None:
    state = read_weights(real_teacher)
    network = build_network("resnet56", 100)
    fit_weights(network, state, str(real_teacher))
    for name, tensor in network.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, state[name]), name
    images = cifar100.load("test", Place(str(real_data))).first(1000)
    normalize = Normalization(images.mean, images.std)
    renderer = ResidentRenderer(images, AsTheyAre(), processes.device)
    accuracy = evaluate(network.eval(), renderer, normalize, batch_size=100, processes=processes)
    assert accuracy.top1 >= 70
    assert accuracy.top5 >= 90


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps downloaded files: an empty folder, and no host has an address."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nin this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_packaged_weights_without_network_say_so_in_one_line(offline: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        packaged_weights("torchvision:resnet50", None)
    assert str(caught.value) == (
        "packaged weights of torchvision:resnet50 could not be fetched (<urlopen error no network in this test>);"
        " give a file with --teacher FILE"
    )
    assert not any(offline.iterdir())


def test_packaged_weights_on_disk_need_no_network(offline: Path) -> None:
    there = trained("torchvision:mobilenet_v3_small", num_classes=1000)
    offline.mkdir(parents=True)
    torch.save(copy_of(there), offline / "mobilenet_v3_small-047dcff4.pth")
    state, colours = packaged_weights("torchvision:mobilenet_v3_small", None)
    assert colours == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    here = build_network("torchvision:mobilenet_v3_small", 1000)
    fit_weights(here, state, "torchvision:mobilenet_v3_small")
    assert_state(here, copy_of(there))


def test_a_tag_chooses_among_packaged_weights(offline: Path) -> None:
    offline.mkdir(parents=True)
    for number, name in ((1, "mobilenet_v2-b0353104.pth"), (2, "mobilenet_v2-7ebf99e0.pth")):
        torch.save({"number": torch.tensor(number)}, offline / name)
    for tag, number in (("IMAGENET1K_V1", 1), ("IMAGENET1K_V2", 2), (None, 2)):
        assert packaged_weights("torchvision:mobilenet_v2", tag)[0] == {"number": torch.tensor(number)}


def test_code_in_packaged_weights_is_refused_and_not_run(offline: Path, tmp_path: Path) -> None:
    offline.mkdir(parents=True)
    torch.save(MakesAFile(tmp_path / "was_run"), offline / "mobilenet_v3_small-047dcff4.pth")
    with pytest.raises(
        WeightsError, match=r"^packaged weights of torchvision:mobilenet_v3_small could not be fetched"
    ) as caught:
        packaged_weights("torchvision:mobilenet_v3_small", None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "tag", "text"),
    [
        (
            "resnet56",
            None,
            "network resnet56 has no packaged weights: expected torchvision:NAME or timm:NAME;"
            " give a file with --teacher FILE",
        ),
        (
            "torchvision:resnet18",
            "IMAGENET1K_V2",
            "unknown tag of torchvision:resnet18 'IMAGENET1K_V2': did you mean 'IMAGENET1K_V1'?"
            " valid are DEFAULT, IMAGENET1K_V1",
        ),
    ],
)
def test_what_is_not_packaged_is_told(name: str, tag: str | None, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        packaged_weights(name, tag)
    assert str(caught.value) == text


def test_packaged_weights_of_an_unknown_network_are_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown network 'torchvision:resnet19': did you mean"):
        packaged_weights("torchvision:resnet19", None)


def test_networks_of_timm_without_weights_or_of_another_tag() -> None:
    timm = pytest.importorskip("timm", reason="timm is optional")
    bare = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(WeightsError) as caught:
        packaged_weights(f"timm:{bare}", None)
    assert str(caught.value) == f"packaged weights of timm:{bare}: timm has none; give a file with --teacher FILE"
    with pytest.raises(ConfigError, match=r"^unknown tag of timm:resnet18 'a1_in2k': did you mean 'a1_in1k'\?"):
        packaged_weights("timm:resnet18", "a1_in2k")
