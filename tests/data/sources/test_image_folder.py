"""A folder of class folders: which files are listed, how they are numbered, and that their order mixes classes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from dhkd.data.draws.orders import order_of_epoch
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.base import PerChannel
from dhkd.data.images.decoding_workers import PhotoRenderer
from dhkd.data.images.encoded import MEAN, STD, PhotoSet
from dhkd.data.recipes.random_resized_crop import CenterCrop
from dhkd.data.render import Normalization
from dhkd.data.sources import load_source
from dhkd.data.sources.base import Place
from dhkd.data.stream.batches import Stream
from dhkd.data.stream.signals import NoSignals

from tests.samples import encoded, make_photo

# of the files in `test_golden_order`
GOLDEN_ORDER = ["1/00", "0/02", "1/02", "0/00", "1/03", "0/01", "1/01", "0/03"]


def put(root: Path, *names: str, content: bytes = b"") -> None:
    """Files that are never decoded, because listing only looks at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def load(
    root: Path,
    split: str = "train",
    *,
    limit: int | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    **place: object,
) -> PhotoSet:
    where = Place(root=str(root), **place)  # type: ignore[arg-type]
    images = load_source("image-folder", split, where, limit=limit, mean=mean, std=std)
    assert isinstance(images, PhotoSet)
    return images


def listed(images: PhotoSet, root: Path) -> dict[str, int]:
    """Label by path."""
    paths = [os.path.relpath(images.files.name(index), root) for index in range(len(images))]
    assert len(set(paths)) == len(paths), "nothing twice"
    return dict(zip(paths, images.labels_N.tolist(), strict=True))


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, "train/n02/b.JPEG", "train/n02/a.JPEG", "train/n10/a.JPEG", "train/n01/z.JPEG", "val/n10/v.JPEG")
    train, test = load(tmp_path), load(tmp_path, "test")
    assert listed(train, tmp_path) == {
        "train/n01/z.JPEG": 0,
        "train/n02/a.JPEG": 1,
        "train/n02/b.JPEG": 1,
        "train/n10/a.JPEG": 2,
    }
    assert listed(test, tmp_path) == {"val/n10/v.JPEG": 2}, "numbered as in the training split, which has all classes"
    for images, split in ((train, "train"), (test, "test")):
        assert (images.name, images.split, images.num_classes) == ("image-folder", split, 3)
        assert images.labels_N.dtype == torch.int64
        assert (images.mean, images.std) == (MEAN, STD)


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    """As in Tiny ImageNet's train/CLASS/images/NAME.JPEG."""
    put(tmp_path, "train/a/images/1.JPEG", "train/a/images/more/2.JPEG", "train/b/images/1.JPEG", "train/b/3.JPEG")
    assert listed(load(tmp_path), tmp_path / "train") == {
        "a/images/1.JPEG": 0,
        "a/images/more/2.JPEG": 0,
        "b/images/1.JPEG": 1,
        "b/3.JPEG": 1,
    }


def test_only_images_are_listed(tmp_path: Path) -> None:
    good = [f"train/a/{n}{suffix}" for n, suffix in enumerate([".jpg", ".JPEG", ".Png", ".bmp", ".webp", ".tif"])]
    put(tmp_path, *good, "train/b/1.jpg")
    put(tmp_path, "train/a/.hidden.jpg", "train/a/._1.jpg", "train/a/notes.txt", "train/a/jpg", "train/a/x.jpg.part")
    put(tmp_path, "train/README.jpg", "train/.cache/1.jpg", "train/a/x.cls", "train/b/Thumbs.db")
    assert listed(load(tmp_path), tmp_path) == {**dict.fromkeys(good, 0), "train/b/1.jpg": 1}


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/a/.thumbnails/1.jpg")
    assert listed(load(tmp_path), tmp_path) == {"train/a/1.jpg": 0, "train/b/1.jpg": 1}


ODD = ["naïve café.jpg", "日本語.jpg", "a b.jpg", "-rf.jpg", "x.tar.jpg", "'\"$&.jpg", "%20{1..3}.jpg"]


def test_odd_names_are_read(tmp_path: Path) -> None:
    photos = {name: make_photo(number, 30, 30) for number, name in enumerate(ODD)}
    for name, photo in photos.items():
        put(tmp_path, f"train/Ärger/{name}", content=encoded(photo, "PNG"))
    latin = os.fsencode(tmp_path / "train" / "Ärger") + b"/caf\xe9.jpg"  # no UTF-8
    with open(latin, "wb") as stream:
        stream.write(encoded(make_photo(99, 30, 30), "PNG"))
    put(tmp_path, "train/Österreich/1.jpg", content=encoded(make_photo(99, 30, 30), "PNG"))
    images = load(tmp_path)
    assert {os.fsencode(images.files.name(index)) for index in range(len(images))} == {
        latin,
        os.fsencode(tmp_path / "train" / "Österreich" / "1.jpg"),
        *(os.fsencode(tmp_path / "train" / "Ärger" / name) for name in ODD),
    }
    index_B = torch.arange(len(images))
    renderer = PhotoRenderer(images, CenterCrop(30, 30), torch.device("cpu"), workers=1)
    (pixels,) = renderer.render([(torch.zeros_like(index_B), index_B)])
    for index, got in enumerate(pixels):
        photo = photos.get(Path(images.files.name(index)).name, make_photo(99, 30, 30))
        assert (got.permute(1, 2, 0).numpy() == np.asarray(photo)).all()
    assert len(images.fingerprint()) == 64


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (
            ["train/a/1.jpg", "train/c/1.jpg", "val/b/1.jpg"],
            "test",
            r"class folder b is none of the 2 classes of .*/train; both splits",
        ),
        (["train/a/1.jpg", "train/b/no.txt"], "train", r"/train/b: expected images \(\.jpg, .*\), found none"),
        (["train/1.jpg"], "train", r"/train: expected a folder for each class, found none"),
        (["val/a/1.jpg"], "train", r"expected a folder of class folders at .*/train, got: No such file or directory;"),
        (["train/a/1.jpg"], "test", r"expected a folder of class folders at .*/val, got: No such file .*data\.test$"),
        (["train"], "train", r"expected a folder of class folders at .*/train, got: Not a directory;"),
    ],
)
def test_an_unusable_folder_is_named(tmp_path: Path, files: Sequence[str], split: str, message: str) -> None:
    put(tmp_path, *files)
    with pytest.raises(DataError, match=rf"^image-folder: .*{message}") as caught:
        load(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_a_test_split_alone_numbers_its_own_classes(tmp_path: Path) -> None:
    put(tmp_path, "val/b/1.jpg", "val/c/1.jpg")
    images = load(tmp_path, "test")
    assert listed(images, tmp_path) == {"val/b/1.jpg": 0, "val/c/1.jpg": 1}
    assert images.num_classes == 2


# order


def classes_and_files(num_classes: int, per_class: int) -> list[str]:
    return [f"train/class-{label:03}/{n:02}.jpg" for label in range(num_classes) for n in range(per_class)]


def test_the_order_does_not_depend_on_how_the_files_were_written(tmp_path: Path) -> None:
    names = classes_and_files(5, 8)
    put(tmp_path / "one", *names)
    put(tmp_path / "two", *names[::-1])
    one, two = (load(tmp_path / folder) for folder in ("one", "two"))
    assert list(listed(one, tmp_path / "one").items()) == list(listed(two, tmp_path / "two").items())
    assert one.fingerprint() == two.fingerprint()
    assert sorted(listed(one, tmp_path / "one")) == sorted(names)
    assert list(listed(one, tmp_path / "one")) != sorted(names)


def test_golden_order(tmp_path: Path) -> None:
    """A cache's indices refer to this order. If it changed, every cache of a folder would be wrong."""
    put(tmp_path, *classes_and_files(2, 4))
    order = [name[len("train/class-00") : -len(".jpg")] for name in listed(load(tmp_path), tmp_path)]
    assert order == GOLDEN_ORDER


def test_a_windowed_epoch_mixes_classes_nearly_as_a_shuffle_does(tmp_path: Path) -> None:
    num_classes, per_class, batch = 100, 20, 64
    put(tmp_path, *classes_and_files(num_classes, per_class))
    images = load(tmp_path)
    renderer = PhotoRenderer(images, CenterCrop(8, 8), torch.device("cpu"))
    stream = Stream(
        renderer,
        Normalization(MEAN, STD),
        NoSignals(4),
        schedule="block",
        seed=0,
        batch_size=batch,
        block_rows=50,
        window=200,
    )

    def distinct(index_N: torch.Tensor) -> float:
        batches = images.labels_N[index_N][: len(images) // batch * batch].reshape(-1, batch)
        return sum(len(labels.unique()) for labels in batches) / len(batches)

    windowed = sum(distinct(stream.keys(epoch)[1]) for epoch in range(5)) / 5
    shuffled = sum(distinct(order_of_epoch(0, epoch, len(images))) for epoch in range(5)) / 5
    assert windowed >= 0.95 * shuffled
    assert shuffled > 40, "of 64 samples, or the comparison says nothing"
    by_name = torch.tensor([label for _, label in sorted(listed(images, tmp_path).items())])
    assert len(by_name[:200].unique()) == 10, "as the files are sorted, a window would hold ten classes"


# selection


def test_a_limit_keeps_the_first(tmp_path: Path) -> None:
    put(tmp_path, *classes_and_files(3, 4), "val/class-000/1.jpg", "val/class-001/1.jpg", "val/class-002/1.jpg")
    whole = list(listed(load(tmp_path), tmp_path).items())
    for limit in (1, 5, 12):
        limited = load(tmp_path, limit=limit)
        assert list(listed(limited, tmp_path).items()) == whole[:limit]
        assert limited.num_classes == 3
    assert len(load(tmp_path, "test", limit=2)) == 2


@pytest.mark.parametrize(("split", "key"), [("train", "limit"), ("test", "test_limit")])
@pytest.mark.parametrize("limit", [-1, 0, 3])
def test_an_impossible_limit_is_refused(tmp_path: Path, split: str, key: str, limit: int) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")
    with pytest.raises(ConfigError, match=rf"^data\.{key}: expected 1 to 2, the size of image-folder, got {limit}$"):
        load(tmp_path, split, limit=limit)


def test_splits_may_be_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "photos/big/a/1.jpg", "photos/big/b/1.jpg", "photos/small/a/2.jpg")
    places = {"train": "photos/big", "test": "photos/small"}
    assert listed(load(tmp_path, **places), tmp_path) == {"photos/big/a/1.jpg": 0, "photos/big/b/1.jpg": 1}
    assert listed(load(tmp_path, "test", **places), tmp_path) == {"photos/small/a/2.jpg": 0}


def test_mean_and_std_may_be_given(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    images = load(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (images.mean, images.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert images.fingerprint() == load(tmp_path).fingerprint()


def test_a_number_of_classes_is_refused_because_the_folder_has_it(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg")
    with pytest.raises(ConfigError, match=r"^data\.num_classes: image-folder counts its class folders; leave it out$"):
        load(tmp_path, num_classes=1)


@pytest.mark.parametrize("name", ["image-folder", "webdataset"])
def test_a_users_own_files_need_a_place(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected the place of its files; name it with --data-root$"):
        load_source(name, "train", Place(num_classes=2) if name == "webdataset" else None)


def test_real_photographs_are_listed(photographs: Path) -> None:
    images = load(photographs.parent, train=photographs.name)
    assert images.num_classes == len(images) == 250
    assert sorted(images.labels_N.tolist()) == list(range(250))
    classes = sorted(folder.name for folder in photographs.iterdir() if folder.is_dir())
    for index in range(250):
        assert Path(images.files.name(index)).parent.name == classes[int(images.labels_N[index])]
