"""Sources whose files need no labels under `data.labels: none`, and parquet files that are read where they lie."""

import gc
import io
import pickle
import tarfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dhkd.data.errors import DhkdError
from dhkd.data.images.base import Decoding
from dhkd.data.images.encoded import PhotoSet
from dhkd.data.own_code import offer
from dhkd.data.recipes.random_resized_crop import RandomResizedCrop
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from dhkd.data.sources.mixed_order import permutation

from tests.samples import encoded, make_photo

NUMBER, CLASSES = 24, 5
CONTENTS = [encoded(make_photo(number, 20, 16), "PNG") for number in range(NUMBER)]
LABELS = [(7 * number) % CLASSES for number in range(NUMBER)]
Write = Callable[[Path, bool], None]  # below a folder, with or without labels


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_own_code: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    return tmp_path / "cache-home" / "dhkd"


def parquet(root: Path, labelled: bool, splits: tuple[str, ...] = ("train", "test")) -> None:
    """Two files for each split, of row groups of five rows."""
    import datasets

    datasets.disable_progress_bars()
    root.mkdir(exist_ok=True)
    for split in splits:
        for part in (slice(0, 13), slice(13, NUMBER)):
            columns: dict[str, Any] = {"image": [{"bytes": content, "path": None} for content in CONTENTS[part]]}
            features: dict[str, Any] = {"image": datasets.Image()}
            if labelled:
                columns["label"], features["label"] = LABELS[part], datasets.ClassLabel(num_classes=CLASSES)
            made = datasets.Dataset.from_dict(columns, datasets.Features(features))
            made.to_parquet(root / f"{split}-{part.start:05}.parquet", batch_size=5)


def lists(root: Path, labelled: bool) -> None:
    (root / "images").mkdir(parents=True)
    for number, content in enumerate(CONTENTS):
        (root / "images" / f"{number}.png").write_bytes(content)
    rows = [f"images/{number}.png{f',{LABELS[number]}' if labelled else ''}" for number in range(NUMBER)]
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("\n".join(rows))


def shards(root: Path, labelled: bool) -> None:
    for folder in ("train", "val"):
        (root / folder).mkdir(parents=True)
        with tarfile.open(root / folder / "0.tar", "w") as shard:
            for number, content in enumerate(CONTENTS):
                members = {f"{number:03}.png": content, f"{number:03}.json": b"{}", f"{number:03}.mask.png": content}
                members |= {f"{number:03}.cls": str(LABELS[number]).encode()} if labelled else {}
                for name, of_member in members.items():
                    header = tarfile.TarInfo(name)
                    header.size = len(of_member)
                    shard.addfile(header, io.BytesIO(of_member))


SOURCES: dict[str, tuple[str, Write, dict[str, Any], bool]] = {
    "parquet": ("huggingface", parquet, {}, True),
    "streamed": ("huggingface", parquet, {"options": {"streaming": True}}, True),
    "csv": ("csv", lists, {}, True),
    "shards": ("webdataset", shards, {}, False),
}


def load(kind: str, root: Path, split: str = "train", **place: Any) -> PhotoSet:
    source, _, usual, _ = SOURCES[kind]
    images = load_source(source, split, Place(str(root), **{**usual, **place}))
    assert isinstance(images, PhotoSet)
    return images


def contents(images: PhotoSet) -> list[bytes]:
    return [images.files.read(index) for index in range(len(images))]  # type: ignore[attr-defined]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_without_labels_every_image_is_read_whether_labels_are_there_or_not(
    kind: str, labelled: bool, tmp_path: Path
) -> None:
    _, write, _, mixed = SOURCES[kind]
    write(tmp_path / "data", labelled)
    order = permutation(NUMBER) if mixed else np.arange(NUMBER)
    for split in ("train", "test"):
        images = load(kind, tmp_path / "data", split, labels="none", network_classes=7)
        assert (len(images), images.labels_N, images.num_classes, images.class_names) == (NUMBER, None, 7, ())
        assert contents(images) == [CONTENTS[row] for row in order]
        assert images.files.names(3) == images.first(3).files.names(3) != images.files.names(4)


@pytest.mark.parametrize("kind", SOURCES)
def test_without_labels_the_number_of_classes_has_to_be_known(kind: str, tmp_path: Path) -> None:
    SOURCES[kind][1](tmp_path / "data", False)
    with pytest.raises(DhkdError, match=r"^data\.num_classes: images without labels don't say .* set it"):
        load(kind, tmp_path / "data", labels="none")


@pytest.mark.parametrize("kind", SOURCES)
def test_labels_of_the_test_images_alone(kind: str, tmp_path: Path) -> None:
    """The training files have none, and the test files have some."""
    _, write, _, _ = SOURCES[kind]
    write(tmp_path / "none", False)
    write(tmp_path / "all", True)
    for path in (tmp_path / "all").iterdir():
        if path.name.startswith(("test", "val")):
            target = tmp_path / "none" / path.name
            if target.is_dir():
                (target / "0.tar").unlink()
                target.rmdir()
            path.rename(target)
    place = {"labels": "test", "num_classes": CLASSES, "network_classes": CLASSES}
    train, test = (load(kind, tmp_path / "none", split, **place) for split in ("train", "test"))
    assert train.labels_N is None
    assert len(train) == NUMBER
    assert test.labels_N is not None
    assert test.labels_N.tolist() == LABELS
    assert test.num_classes == CLASSES


def test_a_part_without_labels_can_be_held_out(tmp_path: Path) -> None:
    lists(tmp_path / "data", False)
    place = Place(str(tmp_path / "data"), labels="none", network_classes=3)
    left, held = (load_source("csv", split, place, held_out=(0.25, 0)) for split in ("train", "test"))
    assert (len(left), len(held), left.labels_N, held.labels_N) == (18, 6, None, None)


def test_an_unlabelled_shard_without_images_or_with_dotted_keys_is_refused(tmp_path: Path) -> None:
    for name, says in (
        ("0.json", "expected images, but the shard has none; it holds 1 .json"),
        ("a.b.png", "first dot"),
    ):
        with tarfile.open(tmp_path / "0.tar", "w") as shard:
            shard.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        with pytest.raises(DhkdError, match=says):
            load("shards", tmp_path, train="0.tar", labels="none", network_classes=3)


# parquet files where they lie


def test_streamed_rows_are_those_of_the_arrow_table(tmp_path: Path, cache_home: Path) -> None:
    parquet(tmp_path / "data", True)
    recipe, keys = RandomResizedCrop(size=8, flip=True, seed=3), (torch.tensor([0, 1, 2]), torch.tensor([23, 4, 13]))
    for split in ("train", "test"):
        streamed = load("streamed", tmp_path / "data", split)
        assert not (cache_home / "arrow").exists(), "no copy is made"
        table = load("parquet", tmp_path / "data", split)
        (cache_home / "arrow").rename(tmp_path / split)
        assert streamed.labels_N is not None
        assert table.labels_N is not None
        assert streamed.labels_N.tolist() == table.labels_N.tolist()
        assert streamed.class_names == table.class_names
        assert contents(streamed) == contents(table) == CONTENTS
        pixels = [
            next(iter(images.renderer(recipe, torch.device("cpu"), Decoding(workers=workers)).render([keys])))
            for images in (streamed, table)
            for workers in (0, 1)
        ]
        assert all(torch.equal(other, pixels[0]) for other in pixels)
        assert pickle.loads(pickle.dumps(streamed.files)).read(17) == CONTENTS[17]


def test_the_index_of_parquet_files_is_made_once_and_anew_when_a_file_changed(
    tmp_path: Path, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parquet(tmp_path / "data", True, splits=("train",))
    caplog.set_level("INFO", logger="dhkd")
    before = load("streamed", tmp_path / "data")
    load("streamed", tmp_path / "data")
    (kept,) = (cache_home / "parquet-indices").glob("*.npz")
    assert caplog.text.count("reading the images of 2 parquet files, once") == 1
    kept.write_bytes(kept.read_bytes()[:100])
    assert load("streamed", tmp_path / "data").fingerprint() == before.fingerprint()
    assert caplog.text.count("once") == 2, "a damaged index is made again"
    swapped = tmp_path / "data" / "train-00000.parquet"
    content = swapped.read_bytes()
    swapped.unlink()
    at = content.index(CONTENTS[2]) + len(CONTENTS[2]) // 2
    swapped.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    fresh = pickle.loads(pickle.dumps(before.files))  # as a process that reads the file after it was replaced
    assert fresh.read(1) == CONTENTS[1]
    with pytest.raises(DhkdError, match=r"train, row 2: expected the image that was indexed.*00000\.parquet was repl"):
        fresh.read(2)
    assert load("streamed", tmp_path / "data").fingerprint() != before.fingerprint()


def test_few_row_groups_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "data", True, splits=("train",))
    monkeypatch.setattr("dhkd.data.sources.parquet_images.HELD_BYTES", 1)
    images = load("streamed", tmp_path / "data")
    assert contents(images) == CONTENTS
    assert len(images.files._held) == 1  # type: ignore[attr-defined]


def null(root: Path) -> None:
    import datasets

    columns = {"image": [{"bytes": CONTENTS[0], "path": None}, None], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features).to_parquet(root / "train.parquet")


def other_columns(root: Path) -> None:
    parquet(root, True, splits=("train",))
    parquet(root / "more", False, splits=("train",))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no files": (lambda root: None, "data.options.streaming: expected parquet files, found none"),
    "no table": (lambda root: (root / "train.parquet").write_text("text"), "train.parquet: expected a parquet file"),
    "paths": (null, "train, row 1: expected the bytes of an image, got null"),
    "other columns": (other_columns, "expected the columns of"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parquet_files_that_would_go_wrong_are_refused(kind: str, tmp_path: Path) -> None:
    write, says = REFUSED[kind]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    with pytest.raises(DhkdError, match=says) as caught:
        load("streamed", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_not_streamed() -> None:
    with pytest.raises(DhkdError, match="streaming: expected the folder of parquet files of a/b as --data-root"):
        load_source("huggingface:a/b", "train", Place(options={"streaming": True}))


# data of one's own


def test_a_function_that_was_dropped_goes_with_its_data() -> None:
    class Pixels(np.ndarray):  # type: ignore[type-arg]  # a plain array takes no weak reference
        pass

    def function() -> Callable[[str], object]:
        pixels, label_N = np.zeros((10, 4, 4), dtype=np.uint8).view(Pixels), np.arange(10) % 2
        held.append(weakref.ref(pixels))
        return lambda split: (pixels, label_N)

    held: list[weakref.ref[Any]] = []
    offer("dropped", function())
    load_source("dropped", "train")
    load_source("dropped", "test")
    offer("dropped", len)
    gc.collect()
    assert held[0]() is None
