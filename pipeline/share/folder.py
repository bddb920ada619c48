"""The folder that is shared: what may be in it, the limits of hubs, and the files that every shared folder has.

The card is a README.md that hubs show. It ends with a mark of its text, so that a card that someone edited is kept.
"""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from dhkd.data.disk.atomic import write_atomically
from dhkd.data.errors import ConfigError
from dhkd.data.storage.sums import SUMS, sums_text
from dhkd.pipeline.share.private import require_public

log = logging.getLogger("dhkd")

CARD, ATTRIBUTES = "README.md", ".gitattributes"
OF_EVERY_FOLDER = frozenset({CARD, ATTRIBUTES, SUMS})
NOT_OURS = (".git/", ".cache/")  # what git and a hub's command line keep in the folder; neither is pushed
PARTIAL = ".partial"  # ends what an interrupted write leaves behind

# Of Hugging Face's hub; a push that exceeds them is refused or fails.
MOST_FILES, MOST_ENTRIES = 100_000, 10_000  # of a repository, and of a folder
LARGEST_TEXT = 10 * 10**6  # bytes; a larger file has to be kept by LFS, whatever it is

LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_MARK = re.compile(r"\n<!-- dhkd share ([0-9a-f]{64}) -->\n\Z")


@dataclass(frozen=True)
class Sharing:
    """What the user chose: the license's identifier, the store of a cache, and whether names are not private."""

    license: str | None = None
    store: str | None = None
    allow_names: bool = False


def require_number(number: int, remedy: str) -> None:
    """Raise `ConfigError` if a hub would refuse so many files in a repository."""
    if number > MOST_FILES:
        raise ConfigError(f"share: expected at most {MOST_FILES:,} files, as a hub takes, got {number:,}; {remedy}")


def require_entries(keys: Iterable[str], remedy: str) -> None:
    """Raise `ConfigError` if a hub would refuse so many files and folders in one folder."""
    entries: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        above, _, name = key.rpartition("/")
        while name:
            entries[above].add(name)
            above, _, name = above.rpartition("/")
    fullest = max(entries, key=lambda folder: len(entries[folder]))
    if len(entries[fullest]) > MOST_ENTRIES:
        raise ConfigError(
            f"share: expected at most {MOST_ENTRIES:,} entries in a folder, as a hub takes, got"
            f" {len(entries[fullest]):,} in {fullest or 'the folder itself'}; {remedy}"
        )


def require_ours(folder: Path, keys: Collection[str]) -> None:
    """Raise `ConfigError` if the folder holds anything else than what is written there, perhaps in part."""
    for name in files_in(folder):
        if name not in keys and name not in OF_EVERY_FOLDER:
            raise ConfigError(
                f"{folder}: expected a new or empty folder, or one that 'dhkd share' made of the same, found {name};"
                f" choose another folder"
            )


def files_in(folder: Path) -> Iterator[str]:
    """Yield the paths of all files in the folder, relative to it, except litter and what is not pushed."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(NOT_OURS) and not name.endswith(PARTIAL) and not path.is_dir():
            yield name


def finish(folder: Path, card: str, large: Iterable[str], options: Sharing) -> dict[str, int]:
    """Write what every shared folder has besides its content; return the size of each of the folder's files, by path.

    `large` are patterns of files that git keeps in LFS. The card comes last: a folder without one is not finished.
    """
    card = _licensed(card, options.license)
    require_public(CARD, card, allow_names=options.allow_names)
    sizes = {name: (folder / name).stat().st_size for name in files_in(folder) if name not in OF_EVERY_FOLDER}
    patterns = [*large, *(name for name, size in sizes.items() if size > LARGEST_TEXT)]
    lines = ["* -text", *(f"{pattern} filter=lfs diff=lfs merge=lfs -text" for pattern in dict.fromkeys(patterns))]
    put(folder / ATTRIBUTES, ("\n".join(lines) + "\n").encode())
    put(folder / SUMS, sums_text({name: _sha256(folder / name) for name in sizes}).encode())
    _put_card(folder / CARD, card)
    return sizes | {name: (folder / name).stat().st_size for name in OF_EVERY_FOLDER}


def put(file: Path, content: bytes) -> None:
    """Write a file unless it has this content already."""
    if not file.is_file() or file.read_bytes() != content:
        write_atomically(file, lambda stream: stream.write(content))


def _licensed(card: str, license_id: str | None) -> str:
    """Return a card whose YAML names the license; without one, a comment says where to find it."""
    known = yaml.safe_dump({"license": license_id}) if license_id else f"# license: choose one of {LICENSES}\n"
    start, head, rest = card.partition("---\n")
    assert not start, "a card begins with YAML"
    return f"{head}{known}{rest}"


def _put_card(file: Path, card: str) -> None:
    """Write a card unless somebody edited the one that is there."""
    existing = file.read_text(errors="replace") if file.is_file() else None
    if existing is not None and not _is_unedited(existing):
        log.warning("%s: it was edited, and is kept; remove it to have it written anew", file)
        return
    put(file, f"{card}\n<!-- dhkd share {hashlib.sha256(card.encode()).hexdigest()} -->\n".encode())


def _is_unedited(text: str) -> bool:
    mark = _MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start()].encode()).hexdigest() == mark[1]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
