"""Every published layout of weights is read, and nothing in a file is executed."""

import contextlib
import pickle
import random
from itertools import product
from pathlib import Path

import pytest
import torch
from dhkd.data.errors import WeightsError
from dhkd.data.images.in_memory import ResidentRenderer
from dhkd.data.recipes.unaugmented import AsTheyAre
from dhkd.data.render import Normalization
from dhkd.data.sources import cifar100
from dhkd.data.sources.base import Place
from dhkd.stages.models import Network, build_network
from dhkd.stages.models.evaluate import evaluate
from dhkd.stages.models.weights import fit_weights, read_weights, weights_sha256
from dhkd.stages.processes import Processes
from torch import Tensor

from tests.few import few
from tests.stages.models.weight_files import CLASSES, LAYOUTS, CreatesAFolder, assert_state, copy_of, trained


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


PUBLISHED_LAYOUTS = ("bare", "under model", "under state_dict", "module. prefix", "beside a Namespace")
# The file of ResNet50 is large, so it is written only once.
ONE_LAYOUT = [
    *(("vgg8", "bare"), ("MobileNetV2", "under model"), ("ShuffleV1", "under state_dict")),
    *(("ShuffleV2", "module. prefix"), ("MobileNetV1", "beside a Namespace"), ("ResNet50", "beside a Namespace")),
    *(("torchvision:resnet18", "module. prefix"), ("torchvision:mnasnet0_5", "under model")),
]
ALL_LAYOUTS = list(product(["wrn_16_2"], PUBLISHED_LAYOUTS))
OTHER_PAIRS = product(["vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "MobileNetV1"], PUBLISHED_LAYOUTS)


@pytest.mark.parametrize(
    ("name", "layout"),
    few(dict.fromkeys([*ALL_LAYOUTS, *ONE_LAYOUT, *OTHER_PAIRS]), [*ALL_LAYOUTS, *ONE_LAYOUT]),
)
def test_every_family_is_read_from_published_layouts(name: str, layout: str, tmp_path: Path) -> None:
    images_BCHW = torch.randn(2, 3, 32, 32)
    original, path = trained(name), tmp_path / "w.pth"
    LAYOUTS[layout](copy_of(original), path)
    network = build_network(name, CLASSES).eval()
    fit_weights(network, read_weights(path), "w")
    assert_state(network, copy_of(original))
    assert torch.equal(network(images_BCHW), original(images_BCHW))


@pytest.mark.parametrize("layout", ["bare", "under model", "under state_dict", "module. prefix", "beside a Namespace"])
def test_a_published_mobilenet_v2_has_another_name_for_its_classifier(layout: str, tmp_path: Path) -> None:
    original = trained("MobileNetV2")
    published = {name.replace("classifier.", "classifier.0."): tensor for name, tensor in copy_of(original).items()}
    assert list(published)[-2:] == ["classifier.0.weight", "classifier.0.bias"]
    LAYOUTS[layout](published, tmp_path / "w.pth")
    network = trained("MobileNetV2", seed=1)
    fit_weights(network, read_weights(tmp_path / "w.pth"), "w")
    assert_state(network, copy_of(original))


def test_a_prefix_of_some_names_only_is_kept(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["module.a", "b"]


def refusal(path: Path) -> str:
    """The message of `read_weights`: one line that names the file."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "under model", "alone"])
def test_code_in_a_file_is_refused_and_not_run(place: str, zipped: bool, network: Network, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "created"
    code, state = CreatesAFolder(trace), copy_of(network)
    content = {"beside": {"model": state, "opt": code}, "under model": {"model": {**state, "x": code}}, "alone": code}
    torch.save(content[place], path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "otherwise the file had nothing to execute"


def test_the_error_names_the_code_that_was_refused(tmp_path: Path) -> None:
    torch.save(CreatesAFolder(tmp_path / "created"), tmp_path / "w.pth")
    assert "posix.mkdir" in refusal(tmp_path / "w.pth")


def test_a_whole_pickled_network_is_refused(network: Network, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "w.pth")
    assert "got dhkd.stages.models.resnet.ResNet; the file was not loaded" in refusal(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "created"
    path.write_bytes(pickle.dumps(CreatesAFolder(trace)))
    refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_refused(suffix: str, tmp_path: Path) -> None:
    assert "expected a file, found none" in refusal(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_folder_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").mkdir()
    refusal(tmp_path / f"w{suffix}")


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
def test_flipped_bytes_are_refused_or_give_tensors(kind: str, whole_files: dict[str, bytes], tmp_path: Path) -> None:
    """Neither format has checksums, so a flipped value goes unnoticed; but nothing else may happen."""
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


@pytest.mark.slow
def test_a_published_teacher_loads_unchanged_and_is_as_good_as_published(
    real_teacher: Path, real_data: Path, processes: Processes
) -> None:
    state = read_weights(real_teacher)
    network = build_network("resnet56", 100)
    fit_weights(network, state, str(real_teacher))
    for name, tensor in network.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, state[f"model.{name}"]), name
    images = cifar100.load("test", Place(str(real_data))).first(1000)
    normalize = Normalization(images.mean, images.std)
    renderer = ResidentRenderer(images, AsTheyAre(), processes.device)
    accuracy = evaluate(network.eval(), renderer, normalize, batch_size=100, processes=processes)
    assert accuracy.top1 >= 70
    assert accuracy.top5 >= 90
