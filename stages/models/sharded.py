"""Weights of one network in several files, with a JSON index that says which file holds which tensor.

This is how transformers and huggingface_hub save large networks: `weight_map` maps each tensor's name to a file beside
it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from dhkd.data import strict_json
from dhkd.data.errors import WeightsError
from dhkd.data.shown import printable_line, some_of
from dhkd.stages.models.file_kinds import LONGEST_HEADER

NAMES_LISTED = 3
MAP = "weight_map"


def weight_map_of(path: Path) -> Mapping[str, str] | None:
    """Return the file of each tensor if `path` is such an index, or None if it is another file.

    Raises `WeightsError` for an index that names files in another folder than its own, and `OSError` if it can't be
    read.
    """
    with path.open("rb") as stream:
        if not stream.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
        stream.seek(0)
        content = stream.read(LONGEST_HEADER)
    try:
        tree = strict_json.decode(content)
    except (ValueError, RecursionError):
        return None
    entries = tree.get(MAP) if isinstance(tree, dict) else None
    if not isinstance(entries, dict):
        return None
    for name, file in entries.items():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise WeightsError(
                f"weights {path}: expected the names of files beside this index, got {printable_line(str(file), 100)!r}"
                f" for {printable_line(name, 100)}"
            )
    return entries


def joined(path: Path, weight_map: Mapping[str, str], read: Callable[[Path], object]) -> dict[str, object]:
    """Read all files of an index with `read`, and return the tensors that the index lists, by name.

    Raises `WeightsError` for files and names that are missing.
    """
    files = sorted(set(weight_map.values()))
    lacking = [file for file in files if not (path.parent / file).is_file()]
    if lacking:
        raise WeightsError(
            f"weights {path}: expected {len(files)} files beside this index, {len(lacking)} are missing"
            f" ({some_of(lacking, NAMES_LISTED)}); copy or download them as well"
        )
    contents: dict[str, object] = {}
    for file in files:
        held = read(path.parent / file)
        names = [name for name, place in weight_map.items() if place == file]
        absent = [name for name in names if not isinstance(held, dict) or name not in held]
        if absent:
            raise WeightsError(
                f"weights {path}: expected {some_of(absent, NAMES_LISTED)} in {file}, as this index says, found none;"
                f" index and files are of different versions"
            )
        assert isinstance(held, dict)
        contents |= {name: held[name] for name in names}
    return contents
