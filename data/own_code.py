"""Loads own code, i.e. code that users wrote, and finds it by name: networks, losses, data sets and recipes.

A preset may name a function or class as `my_nets.py:Net` or `package.module:Net`. Presets, caches and runs may
come from other people, so a name alone never runs code: a file or module is loaded only if the option --import or the
environment variable DHKD_IMPORT names it. Installed packages may offer names through entry points of the group `dhkd`,
and a Python program through `offer`.

Runs and caches record the code that they used (`Origin`), so that later changes to it are noticed.
"""

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, TypeVar

from dhkd.data.errors import ConfigError, OwnCodeError, unknown
from dhkd.data.own_failures import failed
from dhkd.data.own_failures import running as running
from dhkd.data.own_files import LoadedFile, load_file
from dhkd.data.own_origins import Origin as Origin
from dhkd.data.own_origins import changes, origin_of_module, origin_of_object

log = logging.getLogger("dhkd")

T = TypeVar("T")
Own = Callable[..., Any]  # a function or class that a user wrote; the caller knows what it should return

GROUP = "dhkd"  # the group of entry points such as my_net = my_package.nets:MyNet
VARIABLE = "DHKD_IMPORT"
SUFFIX = ".py"


@dataclass
class _Known:
    """Own code that this process may use: loaded files by real path, imported modules, and objects offered by name."""

    files: dict[Path, LoadedFile] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)
    offered: dict[str, object] = field(default_factory=dict)
    allow_changed: bool = False  # whether code may differ from what a run or cache recorded
    folder: Path | None = None  # to which relative paths belong, if this is not the process's current folder


_known = _Known()


def known() -> _Known:
    """Return what this process may use; `own_travel` sends it to others."""
    return _known


# Loading


def imported(
    names: Iterable[str] = (), variables: MutableMapping[str, str] = os.environ, *, allow_changed: bool = False
) -> None:
    """Load the modules and files in `names`, from the command line, and those in the variable DHKD_IMPORT.

    A name that ends in .py, begins with ~ or has a slash is the path of a file, relative to the current folder. Nothing
    is loaded twice. Afterwards DHKD_IMPORT lists all that is loaded, for the processes that this process starts. With
    `allow_changed`, code may have changed since a run or cache recorded it. Raises `ConfigError` if a file or module
    doesn't exist, and `OwnCodeError` if its code raises an exception.
    """
    _known.allow_changed = allow_changed
    loaded = []
    for name in [*_listed(variables.get(VARIABLE, "")), *names]:
        if _is_file(name):
            loaded.append(str(_load_file(name)))
        else:
            load_module(name)
            loaded.append(name)
    if loaded:
        variables[VARIABLE] = "".join(f"{name}\n" for name in dict.fromkeys(loaded))


def _listed(text: str) -> list[str]:
    """Split the variable's value at commas and colons, or only at line breaks if it has any."""
    lines = text.split("\n") if "\n" in text else text.replace(",", os.pathsep).split(os.pathsep)
    return [line.strip() for line in lines if line.strip()]


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIX) or "/" in name or name.startswith("~")


def _load_file(name: str) -> Path:
    path = _real(name)
    if path in _known.files:
        return path
    if path.suffix != SUFFIX or not path.is_file():
        found = "a folder" if path.is_dir() else "another kind of file" if path.exists() else "nothing"
        raise ConfigError(f"--import {name}: expected a Python file (.py) or an installed module, found {found}")
    load_as(path, path, name)
    return path


def load_as(path: Path, at: Path, name: str) -> None:
    """Load the file that lies `at` a path as if it were at `path`; `name` stands for it in messages."""
    with _loading(name, path):
        _known.files[path] = load_file(path, at)


def load_module(name: str) -> None:
    """Import an installed module, or one that lies in the current folder. Raises as `imported` does."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"--import {name}: expected a file that ends in .py, or a module such as package.module")
    if name in _known.modules:
        return
    here, before = os.getcwd(), list(sys.path)
    sys.path.append(here)  # last, so that no file in this folder hides an installed package
    try:
        with _loading(name, None):
            _known.modules[name] = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--import {name}: no module {error.name!r} is installed or lies in {here}") from error
    finally:
        sys.path[:] = before


@contextmanager
def _loading(name: str, path: Path | None) -> Iterator[None]:
    """Turn an exception from loading code into a one-line error."""
    try:
        yield
    except ModuleNotFoundError as error:
        if path is None and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise
        raise failed(f"--import {name}", error) from error
    except (Exception, SystemExit) as error:
        raise failed(f"--import {name}", error) from error


@contextmanager
def changes_allowed(allowed: bool) -> Iterator[None]:
    """Set, while the context lasts, whether code may have changed since a run or cache recorded it."""
    before, _known.allow_changed = _known.allow_changed, allowed
    try:
        yield
    finally:
        _known.allow_changed = before


# Finding


def offer(name: str, thing: object) -> str:
    """Give a Python object a name that settings may use, and return the name; it replaces an earlier one.

    Raises `ConfigError` for a name that settings can't hold.
    """
    if not name or set(name) & set("+* \t\n"):
        raise ConfigError(f"name {name!r}: expected some characters, without spaces, + and *")
    _known.offered[name] = thing
    return name


def find(kind: str, name: str, table: Mapping[str, T], instances: tuple[type, ...] = ()) -> T | Own:
    """Return what `name` stands for: an entry of `table`, an offered object, or an object in own code that was loaded.

    `kind` is the word for the wanted thing in messages. Anything that isn't in the table must be callable or of one of
    the types `instances`. Raises `ConfigError`, with a one-line message, if the name is unknown, if its code was not
    loaded, or if the object is of another kind.
    """
    if name in table:
        if name in _known.offered:
            raise ConfigError(f"{kind} {name!r}: expected another name than that of a built-in {kind}")
        return table[name]
    if name in _known.offered:
        thing = _known.offered[name]
    elif (entry := _entries().get(name)) is not None:
        thing = _of_entry(kind, entry)
    elif is_reference(name):
        thing = _of_reference(kind, name)
    elif name.endswith(SUFFIX):
        raise ConfigError(f"{kind} {name}: expected FILE.py:NAME, got no name of a function or class in it")
    else:
        raise ConfigError(unknown(kind, name, [*table, *_known.offered, *_entries()]))
    if not (callable(thing) or isinstance(thing, instances)):
        raise ConfigError(f"{kind} {name}: expected a function or a class, got a {type(thing).__name__}")
    return thing  # type: ignore[return-value]  # callable, or an instance of `instances`


def is_reference(name: str) -> bool:
    """Return whether a name has the form FILE.py:NAME or PACKAGE.MODULE:NAME."""
    place, colon, attribute = name.rpartition(":")
    is_module = all(part.isidentifier() for part in place.split("."))
    return bool(colon) and attribute.isidentifier() and (_is_file(place) or is_module)


def origin_of(name: str, kind: str = "setting") -> Origin | None:
    """Return where the code of `name` comes from, or None if the name doesn't stand for own code.

    `kind` is the word in messages for what the name stands for. Raises `ConfigError` for own code that was not loaded.
    """
    if name in _known.offered:
        return origin_of_object(name, _known.offered[name])
    if (entry := _entries().get(name)) is not None:
        _of_entry(kind, entry)
        return origin_of_module(name, sys.modules[entry.module])
    if not is_reference(name):
        return None
    place = name.rpartition(":")[0]
    if not _is_file(place):
        return origin_of_module(name, _loaded_module(kind, name, place))
    loaded = _loaded_file(kind, name, place)
    return Origin(name, place, loaded.sha256, loaded.beside)


def explained(error: BaseException) -> OwnCodeError | None:
    """Return the one-line error for an exception that own code raised or passed on; None for any other exception."""
    frame, what = error.__traceback__, None
    while frame is not None:
        what = _own_place(frame.tb_frame.f_code.co_filename, frame.tb_frame.f_globals.get("__name__", "")) or what
        frame = frame.tb_next
    found = None if what is None else failed(what, error)
    return found if isinstance(found, OwnCodeError) else None


def _own_place(file: str, module: str) -> str | None:
    """Return the name of the loaded file or module to which a frame belongs, or None if it belongs to none."""
    packages = [*_known.modules, *(entry.module.partition(".")[0] for entry in _entries().values())]
    if any(f"{module}.".startswith(f"{package}.") for package in packages):
        return module
    for loaded in _known.files.values():
        if file in (str(loaded.path), *(str(loaded.path.parent / name) for name in loaded.beside)):
            return Path(file).name
    return None


def require_unchanged(
    where: str, recorded: object, current: Mapping[str, Mapping[str, object]], error: Callable[[str], Exception]
) -> None:
    """Raise `error` if code has changed since `where` recorded it, unless the user allows that.

    `recorded` and `current` are as in `changes`.
    """
    changed = changes(recorded, current)
    if not changed:
        return
    if not _known.allow_changed:
        raise error(f"{where}: {'; '.join(changed)}; put the code back, or allow the change with --allow-changed-code")
    log.warning("%s: %s, as --allow-changed-code allows", where, "; ".join(changed))


def _of_reference(kind: str, name: str) -> object:
    place, _, attribute = name.rpartition(":")
    if attribute.startswith("_"):
        raise ConfigError(f"{kind} {name}: expected a public name, which doesn't begin with an underscore")
    if _is_file(place):
        loaded = _loaded_file(kind, name, place)
        module, homes = loaded.module, {PurePath(file).parts[0].removesuffix(SUFFIX) for file in loaded.beside}
    else:
        module = _loaded_module(kind, name, place)
        homes = {module.__package__.partition(".")[0]} if module.__package__ else set()
    public = [key for key in vars(module) if _is_offered_by(module, key, homes)]
    if attribute not in vars(module):
        raise ConfigError(f"{kind} {name}: {unknown(f'name in {place}', attribute, public)}")
    if attribute not in public:
        raise ConfigError(
            f"{kind} {name}: expected a name that {place} defines, got one that it imports; define it there, or list it"
            f" in its __all__"
        )
    return vars(module)[attribute]


def _is_offered_by(module: ModuleType, name: str, homes: Collection[str]) -> bool:
    """Return whether settings may use `name` of a module; `homes` are packages whose code counts as the module's own.

    A preset also chooses the arguments of a call, so it must not reach functions that the module merely imports.
    """
    thing = vars(module)[name]
    if name.startswith("_") or isinstance(thing, ModuleType):
        return False
    if name in getattr(module, "__all__", ()) or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return True
    home = getattr(thing, "__module__", None) or ""
    return home == module.__name__ or home.partition(".")[0] in homes


def _loaded_file(kind: str, name: str, place: str) -> LoadedFile:
    """Return the loaded file at the path `place`, or else the only loaded file whose path ends in `place`.

    A run records the path as its command gave it, and may be read from another folder or on another machine.
    """
    path = _real(place)
    if path in _known.files:
        return _known.files[path]
    parts = tuple(part for part in PurePath(place).parts if part not in ("/", ".", "..", "~"))
    ending = parts[-1:] if PurePath(place).is_absolute() else parts
    elsewhere = _known.folder is not None or not path.exists()
    matches = [file for file in _known.files if elsewhere and file.parts[-len(ending) :] == ending]
    if len(matches) == 1:
        return _known.files[matches[0]]
    if matches:
        raise ConfigError(f"{kind} {name}: expected one imported file {place}, got {' and '.join(map(str, matches))}")
    raise ConfigError(_not_loaded(kind, name, place))


def _loaded_module(kind: str, name: str, place: str) -> ModuleType:
    """Return the module `place` if --import named it, or if it is a loaded submodule of a package that --import named.

    This function loads nothing.
    """
    if any(f"{place}.".startswith(f"{module}.") for module in _known.modules) and place in sys.modules:
        return sys.modules[place]
    raise ConfigError(_not_loaded(kind, name, place))


def _not_loaded(kind: str, name: str, place: str) -> str:
    return f"{kind} {name} names code in {place}, which is run only if you say so: add --import {place}"


@cache
def _entries() -> dict[str, EntryPoint]:
    """Return the names that installed packages offer."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _of_entry(kind: str, entry: EntryPoint) -> object:
    where = f"{kind} {entry.name} ({entry.value}, offered by {entry.dist.name if entry.dist else 'a package'})"
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise failed(where, error) from error


def _real(name: str) -> Path:
    try:
        return Path(_known.folder or "", Path(name).expanduser()).resolve()
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user, a loop of links, or a NUL in the path
        raise ConfigError(f"file {name}: expected a path ({error})") from error
