"""Where faults are put and which test files should see them; it imports nothing of the program."""

import re
from collections.abc import Mapping
from pathlib import Path

SOURCES = ("pipeline", "stages", "data", "configs", "benchmarks")


def texts_of(root: Path) -> dict[Path, str]:
    """The text of every source file."""
    return {file: file.read_text() for source in SOURCES for file in sorted((root / source).rglob("*.py"))}


def place_of(text: str, root: Path, texts: Mapping[Path, str] | None = None) -> Path:
    """Find the source file in which a text stands; raises `LookupError` unless it stands exactly once in all files.

    `texts` are those of the files, if they have been read already.
    """
    read = texts_of(root) if texts is None else texts
    matches = [file for file, content in read.items() for _ in range(content.count(text))]
    if len(matches) != 1:
        where = ", ".join(str(file.relative_to(root)) for file in matches) or "no file"
        raise LookupError(f"{text!r}: expected once in one file, found in {where}")
    return matches[0]


def file_of_tests(name: str, root: Path) -> Path:
    """The one test file whose path ends in this name; raises `LookupError` for any other number of files."""
    matches = sorted((root / "tests").rglob(name))
    if len(matches) != 1:
        where = ", ".join(str(file.relative_to(root)) for file in matches) or "no file"
        raise LookupError(f"{name}: expected one test file, found {where}")
    return matches[0]


def unknown_words(expression: str, file: Path) -> list[str]:
    """The words of an expression (pytest's -k) that a test file doesn't hold.

    Words with a hyphen are left out: they are the names of parameters, which another module may hold.
    """
    words = set(re.findall(r"[\w-]+", expression)) - {"and", "or", "not"}
    text = file.read_text()
    return sorted(word for word in words if "-" not in word and word not in text)
