"""Paths as users type them: `~` in front of them, and places to write, which are checked before a command begins.

A shell expands `~` at the beginning of a word only, so not in --out=~/runs.
"""

import os
from pathlib import Path
from typing import Any

import click
from dhkd.data.disk.user_cache import expanded
from dhkd.data.disk.writable import require_writable_file, require_writable_folder
from dhkd.data.errors import ConfigError


class _Expanded(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """The type of a path: a `Path`, or a `str` if it may be a URL as well; with `writes`, a place to write.

    `writes` is "folder" or "file".
    """

    name = "path"

    def __init__(self, kind: type[Path] | type[str], writes: str | None = None) -> None:
        self._kind, self._writes = kind, writes

    # Any: click hands over what the user typed, or a default of any type.
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = expanded(os.fspath(value))
        if self._writes is not None:
            if not text:
                self.fail("expected a path, got nothing", param, ctx)
            if not text.isprintable() and os.fsencode(text).decode(errors="replace") != text:
                raise ConfigError(f"{text!r}: expected a path in UTF-8, got other bytes; choose another one")
            what = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name if param else "OUT"
            if "://" in text and self._kind is Path:
                raise ConfigError(f"{what} {text}: expected a path, got a URL; choose a place on this machine")
            if "://" not in text:
                require = require_writable_folder if self._writes == "folder" else require_writable_file
                require(Path(text), what)
        return self._kind(text)


class _Run(_Expanded):
    """The type of a path of weights: a file, or the folder of a run, which may lie at a URL and is then fetched."""

    # Any: as for paths.
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" not in os.fspath(value):
            return super().convert(value, param, ctx)
        from dhkd.data.runs.near import FINAL_WEIGHTS
        from dhkd.data.runs.place import runs_at

        place = runs_at(value)
        place.refresh(FINAL_WEIGHTS)
        return self._kind(place.folder)


PATH = _Expanded(Path)
RUN = _Run(Path)
PRESET_OR_RUN = _Run(str)
LOCATION = _Expanded(str)  # a path or a URL
OUT_FOLDER, OUT_FILE = _Expanded(Path, "folder"), _Expanded(Path, "file")
OUT_LOCATION = _Expanded(str, "folder")


def require_apart(out: Path | str, option: str = "--out", /, **inputs: Path | str | None) -> None:
    """Raise `ConfigError` if `out` is one of the places from which the command reads, named as the options.

    `option` is what the user knows `out` by.
    """
    for name, place in inputs.items():
        if place is not None and _same(str(out), str(place)):
            raise ConfigError(
                f"{option} {out}: expected another place than that of {name}, which would be written into;"
                f" choose another {option}"
            )


def _same(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return os.path.realpath(one) == os.path.realpath(other)
