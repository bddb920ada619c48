"""CIFAR-100 in torchvision's layout on disk: ROOT/cifar-100-python/{train,test}.

The files are pickles, so their md5 is checked before they are unpickled: a forged pickle could run code. The names of
the classes are written below, so the file `meta` is not read.
"""

import contextlib
import hashlib
import http.client
import io
import logging
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from dhkd.data.disk.user_cache import user_cache_folder
from dhkd.data.errors import DataError
from dhkd.data.images.in_memory import ImageSet
from dhkd.data.progress import on_terminal
from dhkd.data.shown import line_of
from dhkd.data.sources.base import Place, Size, Source

log = logging.getLogger("dhkd")

FOLDER = "cifar-100-python"
MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

# The names of the fine classes, in the order of their numbers.
_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard "
    "lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
    "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone "
    "television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CLASSES = tuple(_NAMES.split())

# The published checkpoints were trained with these values, which differ slightly from the statistics of the data.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def load(split: str, place: Place) -> ImageSet:
    """Load one split with labels of the 100 fine classes.

    Raises `DataError` if a file is missing or isn't the official one.
    """
    root = Path(place.root) if place.root is not None else user_cache_folder() / "datasets"
    path = root / FOLDER / split
    if place.download and not path.exists():
        _download(root)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cifar100: expected {FOLDER}/{split} under {root}, got: {error.strerror};"
            f" name the folder that holds {FOLDER} with --data-root DIR, or fetch it with --download"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != MD5[split]:
        raise DataError(
            f"cifar100: {path}: md5 expected {MD5[split]}, got {digest} ({len(content):,} bytes);"
            f" the file is damaged, remove it and fetch it again with --download"
        )
    batch = pickle.loads(content, encoding="latin1")
    pixels_NCHW = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    labels_N = torch.tensor(batch["fine_labels"], dtype=torch.int64)
    return ImageSet("cifar100", split, torch.from_numpy(pixels_NCHW), labels_N, len(CLASSES), MEAN, STD, CLASSES)


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR100

    log.info("cifar100: downloading 169 MB to %s", root)
    try:
        # torchvision prints to standard output, where only a command's result belongs, and draws a bar.
        shown = sys.stderr if on_terminal() else io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            CIFAR100(str(root), download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"cifar100: the download to {root} failed ({line_of(error)});"
            f" fetch it elsewhere and name the folder that holds {FOLDER} with --data-root DIR"
        ) from error


SOURCE = Source(load, Size(50_000, 100, 32, tested=10_000))
