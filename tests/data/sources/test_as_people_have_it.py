"""Fashion-MNIST as arrays, lists of files, Arrow tables, torchvision's files and a data set of torch: the same set."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.images.base import Decoding, Images
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.own_code import offer
from dhkd.data.recipes.crop_flip import CropFlip
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from dhkd.data.sources.huggingface import PREFIX
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from tests.e2e.command_line import done
from tests.samples import files_of

NUMBER = {"train": 240, "test": 60}
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CPU = torch.device("cpu")
Fashion = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_own_code: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture(scope="module")
def raw() -> Path:
    """A folder with real Fashion-MNIST in torchvision's layout."""
    folder = os.environ.get("DHKD_TEST_DATA")
    if not folder or not (Path(folder) / "FashionMNIST" / "raw").is_dir():
        pytest.skip("needs real Fashion-MNIST: set DHKD_TEST_DATA to a folder that holds FashionMNIST/raw")
    return Path(folder)


@pytest.fixture(scope="module")
def fashion(raw: Path) -> Fashion:
    """The first images of each split, read without any library."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files = [raw / "FashionMNIST" / "raw" / f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        images = np.frombuffer(files[0].read_bytes()[16:], np.uint8).reshape(-1, 28, 28)[: NUMBER[split]]
        splits[split] = (images, np.frombuffer(files[1].read_bytes()[8:], np.uint8)[: NUMBER[split]].astype(np.int64))
    return splits


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def as_arrays(root: Path, fashion: Fashion) -> None:
    for split, (images, labels) in fashion.items():
        np.save(root / f"{split}-images.npy", images)
        np.save(root / f"{split}-labels.npy", labels)


def as_archive(root: Path, fashion: Fashion) -> None:
    (x_train, y_train), (x_test, y_test) = fashion["train"], fashion["test"]
    np.savez_compressed(root / "fashion.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def as_channels_last(root: Path, fashion: Fashion) -> None:
    for split, (images, labels) in fashion.items():
        np.savez(root / f"{split}.npz", pixels=images[..., None].repeat(3, axis=3), classes=labels[:, None])


def as_lists(root: Path, fashion: Fashion) -> None:
    for split, (images, labels) in fashion.items():
        rows = ["path,label"]
        (root / split).mkdir()
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (root / split / f"{number}.png").write_bytes(png(image))
            rows.append(f"{split}/{number}.png,{label}")
        (root / f"{split}.csv").write_text("\n".join(rows))


def tables(fashion: Fashion) -> dict[str, object]:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    return {
        split: datasets.Dataset.from_dict(
            {"image": [{"bytes": png(image), "path": None} for image in images], "label": labels.tolist()}, features
        )
        for split, (images, labels) in fashion.items()
    }


def as_parquet(root: Path, fashion: Fashion) -> None:
    for split, table in tables(fashion).items():
        table.to_parquet(root / f"{split}-00000-of-00001.parquet", batch_size=100)  # type: ignore[attr-defined]


def as_saved(root: Path, fashion: Fashion) -> None:
    import datasets

    datasets.DatasetDict(tables(fashion)).save_to_disk(root)


class Items(Dataset[tuple[Image.Image, int]]):
    """A data set without attributes."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class Told(Items):
    """A data set that tells its labels and classes, and gives tensors (C, H, W)."""

    classes = NAMES

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        super().__init__(images, labels)
        self.targets = torch.from_numpy(labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return torch.from_numpy(self._images[index])[None], self.targets[index]


Kind = tuple[str, Callable[[Path, Fashion], object]]
KINDS: dict[str, Kind] = {
    "two .npy files": ("arrays", as_arrays),
    "one .npz file": ("arrays", as_archive),
    "channels last": ("arrays", as_channels_last),
    "csv": ("csv", as_lists),
    "parquet": ("huggingface", as_parquet),
    "save_to_disk": ("huggingface", as_saved),
    "torchvision": ("torchvision:FashionMNIST", lambda root, fashion: None),
    "a Dataset": ("mine", lambda root, fashion: offer("mine", lambda split: Items(*fashion[split]))),
    "a Dataset with targets": ("mine", lambda root, fashion: offer("mine", lambda split: Told(*fashion[split]))),
    "a pair of arrays": ("mine", lambda root, fashion: offer("mine", lambda split: fashion[split])),
}


def loaded(kind: str, split: str, tmp_path: Path, raw: Path, fashion: Fashion) -> Images:
    source, write = KINDS[kind]
    if not (tmp_path / "data").exists():
        (tmp_path / "data").mkdir(parents=True)
        write(tmp_path / "data", fashion)
    root = {"mine": None, "torchvision:FashionMNIST": str(raw)}.get(source, str(tmp_path / "data"))
    return load_source(source, split, Place(root), limit=NUMBER[split])


IN_WORKERS = ("csv", "parquet")  # those whose files are also decoded by another process


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_pixels_and_labels(kind: str, tmp_path: Path, raw: Path, fashion: Fashion) -> None:
    decoding = Decoding(workers=int(kind in IN_WORKERS))
    for split, (pixels_NHW, label_N) in fashion.items():
        images = loaded(kind, split, tmp_path, raw, fashion)
        in_memory = images.in_memory(Decoding())
        expected = torch.from_numpy(pixels_NHW.copy())[:, None].repeat(1, 3, 1, 1)
        reference = ImageSet("x", split, expected, torch.from_numpy(label_N), 10, images.mean, images.std)
        assert in_memory.fingerprint() == reference.fingerprint()
        assert images.num_classes == 10
        assert images.class_names == in_memory.class_names
        assert images.class_names in ((), NAMES)
        for recipe in (CropFlip(padding=2, flip=True, seed=3), RandomResizedCrop(size=16, flip=True, seed=3)):
            keys = (torch.tensor([0, 1, 2, 2, 0]), torch.tensor([5, 5, 0, 17, 59]))
            mine, theirs = (
                next(iter(given.renderer(recipe, CPU, decoding).render([keys])))
                for given in (in_memory if recipe.shape is None else images, reference)
            )
            assert torch.equal(mine, theirs)


WORDS = ("--set", "data.limit=240", "--set", "data.test_limit=60", "--set", "cache.views=2", "--cpu", "--workers", "0")
PRESET = """
description: clothes
data: {source: arrays}
views: {kind: crop-flip, padding: 2, flip: true}
teacher: {architecture: resnet8, epochs: 1, batch_size: 64, lr: 0.05, allow_chance: true}
student: {architecture: resnet8, epochs: 1, batch_size: 64, lr: 0.05}
"""
OF_CACHE = ("two .npy files", "csv", "parquet", "torchvision", "a Dataset with targets")


@pytest.mark.slow  # six commands
def test_caches_of_one_data_set_are_the_same_bytes(
    tmp_path: Path, raw: Path, fashion: Fashion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All objects but the manifest, in which the data set's name differs, and the index, which has its checksum."""
    preset = tmp_path / "clothes.yaml"
    preset.write_text(PRESET)
    caches = {}
    for kind in OF_CACHE:
        folder, (source, write) = tmp_path / kind.replace(" ", "-"), KINDS[kind]
        folder.mkdir()
        write(folder, fashion)
        root = {"mine": [], "torchvision:FashionMNIST": ["--data-root", raw]}.get(source, ["--data-root", folder])
        words = [*WORDS, "--set", f"data.source={source}", *root]
        if kind == OF_CACHE[0]:
            done("train-teacher", preset, *words, "--out", tmp_path / "teacher")
        done("cache-teacher", preset, *words, "--teacher", tmp_path / "teacher", "--out", folder / "cache.zarr")
        files = files_of(folder / "cache.zarr")
        caches[kind] = {name: content for name, content in files.items() if not name.endswith(".json")}
    first = caches[OF_CACHE[0]]
    assert len(first) >= 4  # logits and witness of two views
    for kind in OF_CACHE[1:]:
        assert caches[kind] == first, kind


def test_a_table_is_pickled_as_the_files_it_maps(tmp_path: Path, raw: Path, fashion: Fashion) -> None:
    images = loaded("parquet", "train", tmp_path, raw, fashion)
    content = images.files.read(3)  # type: ignore[attr-defined]
    pickled = pickle.dumps(images)
    assert len(pickled) < 20_000 < sum(len(png(image)) for image in fashion["train"][0])
    assert pickle.loads(pickled).files.read(3) == content == png(fashion["train"][0][3])


def test_a_name_of_the_hub_without_download_is_read_from_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="fetch it with --download"):
        load_source(f"{PREFIX}nobody/nothing", "train")


def test_samples_sorted_by_label_get_a_seeded_order(tmp_path: Path, raw: Path, fashion: Fashion) -> None:
    order = np.argsort(fashion["train"][1], kind="stable")
    ordered = {"train": tuple(part[order] for part in fashion["train"]), "test": fashion["test"]}
    prints = set()
    for kind in ("two .npy files", "csv", "parquet", "a Dataset", "a Dataset with targets"):
        images = loaded(kind, "train", tmp_path / kind, raw, ordered)  # type: ignore[arg-type]
        assert len(images.labels_N[:60].unique()) > 6
        prints.add(images.in_memory(Decoding()).fingerprint())
    assert len(prints) == 1
