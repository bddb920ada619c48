"""What lies in a folder of class folders: the images, what is left out, and what is refused.

Links are followed inside of the folder and of the data root only, unless `follow` is set. Named pipes and devices are
never opened. Whatever is left out is counted by its ending, and reported.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dhkd.data.errors import DataError
from dhkd.data.images.decoding import SUFFIXES

# Folders that storage servers and operating systems put beside a user's own; they hold thumbnails, copies or trash.
LITTER = {
    *(b"@eaDir", b"__MACOSX", b"#recycle", b"@Recycle", b"#snapshot", b"@Recently-Snapshot", b"lost+found"),
    *(b"$RECYCLE.BIN", b"System Volume Information"),
}
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ClassFolders:
    """Lists the class folders in `folder` and their images; `skipped` counts what was left out, by ending.

    `root` is the data root; messages begin with `source`. Raises `DataError` for a folder that can't be listed, and for
    a link that is broken, leads into a folder that holds it, or leads out of both `folder` and `root` although `follow`
    is false.
    """

    def __init__(self, folder: Path, root: Path, *, follow: bool = False, source: str = "image-folder") -> None:
        self.folder, self.skipped, self._source = folder, Counter[str](), source
        self._inside = None if follow else [os.path.realpath(os.fsencode(path)) for path in (folder, root)]

    def names(self) -> list[bytes]:
        """Return the sorted names of the class folders."""
        try:
            with os.scandir(os.fsencode(self.folder)) as entries:
                kept = [entry for entry in entries if not self._left_out(entry)]
                names = sorted(entry.name for entry in kept if self._is_folder(entry))
        except OSError as error:
            raise DataError(
                f"image-folder: expected a folder of class folders at {self.folder}, got: {error.strerror};"
                f" name the folder above it with --data-root DIR and, where it isn't train or val, set data.train and"
                f" data.test{hint_of_missing(self.folder)}"
            ) from error
        if len(names) < len(kept):
            self.skipped["beside the class folders"] += len(kept) - len(names)
        return names

    def images(self, name: bytes) -> list[bytes]:
        """Return the sorted images at any depth in the class folder `name`, as paths that begin with `name`."""
        before = self.skipped.copy()
        found: list[bytes] = []
        waiting = [name]  # folders, as paths below `self.folder`; a list, because folders may be nested very deep
        while waiting:
            waiting += self._look_into(waiting.pop(), found)
        found.sort()
        if not found:
            others = summary(self.skipped - before)
            raise DataError(
                f"image-folder: {self.folder / os.fsdecode(name)}: expected images ({', '.join(SUFFIXES)}), found"
                f" none{f' but {others}' if others else ''}; fill the folder or remove it"
            )
        return found

    def everything(self) -> list[bytes]:
        """Return the sorted images at any depth, as paths inside the folder; its folders are not taken as classes."""
        found: list[bytes] = []
        try:
            waiting = [b""]
            while waiting:
                waiting += self._look_into(waiting.pop(), found)
        except OSError as error:
            where = error.filename if error.filename is not None else self.folder
            raise DataError(
                f"{self._source}: expected a folder of images at {Path(os.fsdecode(where))}, got: {error.strerror};"
                f" name it with --data-root DIR, or below that with data.train and data.test"
            ) from error
        if not found:
            others = summary(self.skipped)
            raise DataError(
                f"{self._source}: {self.folder}: expected images ({', '.join(SUFFIXES)}), found"
                f" none{f' but {others}' if others else ''}; name their folder with --data-root"
            )
        return sorted(found)

    def _look_into(self, prefix: bytes, found: list[bytes]) -> list[bytes]:
        """Add the images in one folder to `found`, and return the folders in it, all as paths below `self.folder`."""
        folders = []
        with os.scandir(os.path.join(os.fsencode(self.folder), prefix)) as entries:
            for entry in entries:
                if self._left_out(entry):
                    continue
                path = os.path.join(prefix, entry.name)
                if self._is_folder(entry):
                    folders.append(path)
                elif not _is_image(entry.name):
                    self.skipped[_ending(entry.name)] += 1
                elif entry.is_file():
                    found.append(path)
                else:
                    raise DataError(
                        f"{self._source}: {os.fsdecode(entry.path)}: expected an image file, got a named pipe or a"
                        f" device; remove it"
                    )
        return folders

    def _left_out(self, entry: os.DirEntry[bytes]) -> bool:
        litter, hidden = entry.name in LITTER, entry.name.startswith(b".")
        if litter or hidden:
            self.skipped[os.fsdecode(entry.name) if litter else "hidden"] += 1
        return litter or hidden

    def _is_folder(self, entry: os.DirEntry[bytes]) -> bool:
        """Return whether an entry is a folder or a link to one.

        Raises `DataError` for a link that isn't followed, and for a name that would break a list of names.
        """
        if b"\n" in entry.name:
            raise DataError(f"{self._source}: {os.fsdecode(entry.path)!r}: a name with a line break; rename it")
        if not entry.is_symlink():
            return entry.is_dir()
        where = f"{self._source}: {os.fsdecode(entry.path)}: a link"
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):
            raise DataError(f"{where} to {os.fsdecode(target)}, which doesn't exist; restore it or remove the link")
        if self._inside is not None and not any(_is_below(target, inside) for inside in self._inside):
            raise DataError(
                f"{where} that leads outside of the data root, to {os.fsdecode(target)}; put the files there, or set"
                f" data.follow_links=true if you trust the link"
            )
        if os.path.isdir(target) and _is_below(os.path.realpath(os.path.dirname(entry.path)), target):
            raise DataError(f"{where} to a folder that holds it, {os.fsdecode(target)}; remove the link")
        return entry.is_dir()


def summary(skipped: Counter[str]) -> str:
    """Return what was left out in words, for example "12 .txt, 3 hidden"."""
    return ", ".join(f"{count:,} {ending}" for ending, count in skipped.most_common(10))


def require_classes(folder: Path, names: Iterable[bytes]) -> None:
    """Raise `DataError` unless these are at least two class folders, and not those of splits, with where they may be.

    A network that knows only one class is always right, so a root one folder too high or too low would go unnoticed.
    """
    words = [os.fsdecode(name) for name in names]
    if len(words) >= 2 and not ({word.lower() for word in words} <= SPLIT_NAMES):
        _require_distinct(folder, words)
        return
    found = "none" if not words else ", ".join(words)
    likely = [folder / word for word in words if len(_subfolders_with_images(folder / word)) >= 2]
    beside = _subfolders_with_images(folder.parent)
    if len(words) < 2 <= len(beside) and not {name.lower() for name in beside} <= SPLIT_NAMES:
        likely.append(folder.parent)
    hint = ""
    if likely:
        inner = _subfolders_with_images(likely[0])
        hint = f"; {likely[0]} holds {_some(inner)}: is it the right one? name it with --data-root and data.train"
    elif len(words) < 2:
        hint = "; --data-root may be one folder too high or too low"
    several = "" if len(words) < 2 else ", the names of splits"
    raise DataError(
        f"image-folder: {folder}: expected a folder for each class, found {found}{several}; at least two classes are"
        f" needed{hint}"
    )


def hint_of_missing(folder: Path) -> str:
    """Return a clause that says where a split's folder may be if it isn't at `folder`, or else an empty text."""
    root = folder.parent
    for place in (root.parent, *_folders(root)):
        if (place / folder.name).is_dir() and place != root:
            return f"; {place / folder.name} exists: try --data-root {place}"
    inner = _subfolders_with_images(root)
    return f"; {root} itself holds {_some(inner)}" if len(inner) >= 2 else ""


def _require_distinct(folder: Path, words: list[str]) -> None:
    """Raise `DataError` if two names differ in Unicode form alone."""
    form_of: dict[str, str] = {}
    for word in words:
        first = form_of.setdefault(unicodedata.normalize("NFC", word), word)
        if first != word:
            raise DataError(
                f"image-folder: {folder}: the class folders {first!a} and {word!a} look alike and differ in"
                f" Unicode form alone; merge them into one"
            )


def alike_in_case(names: Iterable[bytes]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ in case alone."""
    first_of: dict[str, str] = {}
    words = [os.fsdecode(name) for name in names]
    return [(first, word) for word in words if (first := first_of.setdefault(word.casefold(), word)) != word]


def _subfolders_with_images(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that seem to be class folders."""
    return [path.name for path in _folders(folder) if _holds_image(path) or any(map(_holds_image, _folders(path)[:1]))]


def _folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted, at most about a thousand; none if it can't be listed."""
    try:
        with os.scandir(folder) as entries:
            few = [entry for _, entry in zip(range(1000), entries, strict=False)]
            names = sorted(entry.name for entry in few if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".") and os.fsencode(name) not in LITTER]


def _holds_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_image(os.fsencode(entry.name)) for _, entry in zip(range(1000), entries, strict=False))
    except OSError:
        return False


def _some(names: list[str]) -> str:
    return f"{len(names):,} folders of images ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _is_image(name: bytes) -> bool:
    return os.fsdecode(name).lower().endswith(SUFFIXES)


def _ending(name: bytes) -> str:
    return os.path.splitext(os.fsdecode(name))[1].lower() or "without ending"


def _is_below(path: bytes, folder: bytes) -> bool:
    return os.path.commonpath([path, folder]) == folder
