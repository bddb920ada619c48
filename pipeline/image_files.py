"""Images that a user names for prediction: files, folders and patterns, read and prepared a batch at a time.

Left out on purpose: samples in a mixed order, black images in place of unreadable ones, and views, as data sets have
them (`dhkd.data.sources`). Here every image stands alone, and the order is that of the arguments.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dhkd.data.disk.regular import open_regular
from dhkd.data.disk.user_cache import expanded
from dhkd.data.errors import ConfigError, DataError
from dhkd.data.images.decoding import SUFFIXES, Reading, decode, in_mode
from dhkd.data.recipes.base import Recipe, rendered
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Reader:
    """How an image file becomes pixels: decoded with the limits of `reading`, rendered in `channels` by `recipe`."""

    recipe: Recipe
    channels: int
    reading: Reading

    def pixels(self, file: Path) -> "Pixels | str":
        """Return the pixels (H, W, C), or the reason why the file is none of an image."""
        try:
            with open_regular(file) as stream:
                photo = in_mode(decode(stream.read(), self.reading), self.channels)
            pixels: Pixels = rendered(self.recipe, photo, self.recipe.draws(_KEY, _KEY))[0]
            return pixels
        except (DataError, ConfigError) as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    def batches(
        self, files: Sequence[Path], size: int, workers: int
    ) -> Iterator[tuple[list[Path], Tensor, dict[str, str]]]:
        """Yield the files of a batch that could be read, their pixels (B, C, H, W), and the reasons for the others.

        The next batch is read while the caller works on one. B may be 0.
        """
        with ThreadPoolExecutor(max(1, workers), "images") as pool:
            waiting: list[tuple[Path, Future[Pixels | str]]] = []
            for start in range(0, len(files), size):
                current, waiting = (
                    waiting,
                    [(file, pool.submit(self.pixels, file)) for file in files[start : start + size]],
                )
                if current:
                    yield _batch(current)
            if waiting:
                yield _batch(waiting)


_KEY = torch.zeros(1, dtype=torch.int64)  # test images have one view, and their recipe draws nothing


def _batch(read: Sequence[tuple[Path, "Future[Pixels | str]"]]) -> tuple[list[Path], Tensor, dict[str, str]]:
    results = [(file, future.result()) for file, future in read]
    good = [(file, pixels) for file, pixels in results if not isinstance(pixels, str)]
    bad = {str(file): reason for file, reason in results if isinstance(reason, str)}
    if not good:
        return [], torch.empty(0), bad
    pixels_BHWC = torch.from_numpy(np.stack([pixels for _, pixels in good]))
    return [file for file, _ in good], pixels_BHWC.permute(0, 3, 1, 2), bad


def files_named(arguments: Sequence[str | Path]) -> tuple[list[Path], dict[str, str]]:
    """Return the files that files, folders and patterns name, in this order, and the reason for each that names none.

    Of a folder, these are the image files at any depth, sorted. In a pattern, ** stands for folders at any depth.
    """
    files: list[Path] = []
    reasons: dict[str, str] = {}
    for argument in (expanded(os.fspath(named)) for named in arguments):
        if os.path.lexists(argument):
            found = _images_of(Path(argument))
            reason = "a folder without images"
        else:
            matches = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
            found = [file for match in matches for file in _images_of(Path(match))]
            reason = "a pattern that matches no image" if glob.has_magic(argument) else "no such file"
        files += found
        if not found:
            reasons[argument] = reason
    return files, reasons


def _images_of(path: Path) -> list[Path]:
    """Return a file itself, or the image files in a folder, without hidden ones."""
    if not path.is_dir():
        return [path]
    found = []
    for folder, inside, names in os.walk(path):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        found += [
            Path(folder, name) for name in sorted(names) if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return found
