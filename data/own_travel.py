"""Own code that goes along with work to another machine, where its files don't exist.

The files that --import named travel with the modules that they import from beside them, and are loaded from a private
folder as if they were at their old place: settings find them by the same names, and runs and caches record the same
hashes. If the old place exists there with the same bytes, as on a shared file system, they are loaded from that place,
so that code finds the data beside it. Other files that the code opens don't travel.

Modules that lie in a folder of the user's travel in the same way. An installed one doesn't: it must be installed there
with the same code. Objects that a Python program offered don't travel.
"""

import hashlib
import importlib.util
import os
import site
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

from dhkd.data.errors import ConfigError
from dhkd.data.own_code import VARIABLE, known, load_as, load_module
from dhkd.data.own_files import LoadedFile, files_imported, files_of
from dhkd.data.own_origins import SHOWN

Files = Mapping[str, bytes]  # contents by the path below a folder


@dataclass(frozen=True)
class _File:
    path: Path
    files: Files  # the file itself, and those that it imports, by their paths below its folder


@dataclass(frozen=True)
class _Module:
    name: str
    hashes: Mapping[str, str]  # of the files of the modules in its package that were loaded
    files: Files  # empty for an installed module


@dataclass(frozen=True)
class OwnCode:
    """The own code of a command: what its --import named, and the folder in which the command was typed."""

    files: Sequence[_File]
    modules: Sequence[_Module]
    allow_changed: bool
    folder: Path

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Let settings of this process find this code, and keep its files until the context ends.

        Raises `ConfigError` for a module that isn't installed here or has other code, and `OwnCodeError` if the code
        raises an exception.
        """
        used = known()
        used.allow_changed = self.allow_changed
        used.folder = None if self.folder == Path.cwd() else self.folder
        with tempfile.TemporaryDirectory(prefix="dhkd-code-", ignore_cleanup_errors=True) as folder:
            places = [_placed(file, Path(folder, str(number))) for number, file in enumerate(self.files)]
            for file, at in zip(self.files, places, strict=True):
                if not _is_loaded(file):
                    load_as(file.path, at, str(file.path))
            for module in self.modules:
                _import(module, Path(folder, "modules"))
            names = [*map(str, places), *(module.name for module in self.modules)]
            if names:  # for the processes that this one starts
                os.environ[VARIABLE] = "".join(f"{name}\n" for name in names)
            yield


def own_code() -> OwnCode:
    """Return the code that this process has loaded. Raises `ConfigError` if its files have changed since then."""
    used = known()
    files = [_file_of(path, loaded) for path, loaded in used.files.items()]
    modules = [_module_of(name, module) for name, module in used.modules.items()]
    return OwnCode(files, modules, used.allow_changed, used.folder or Path.cwd())


# In the command


def _file_of(path: Path, loaded: LoadedFile) -> _File:
    hashes = {loaded.path.name: loaded.sha256, **loaded.beside}
    contents = {name: _read(loaded.path.parent / name) for name in hashes}
    changed = [name for name, content in contents.items() if _hash(content) != hashes[name]]
    if changed:
        raise ConfigError(
            f"--import {path}: expected the code that was loaded, got changes in {', '.join(changed)} since then; give"
            " the command again"
        )
    return _File(path, contents)


def _module_of(name: str, module: ModuleType) -> _Module:
    package = name.partition(".")[0]
    names = [other for other in list(sys.modules) if f"{other}.".startswith(f"{package}.")]
    hashes = {other: _hash(_read(file)) for other in names if (file := _python_file(other)) is not None}
    root = _root(name, module)
    if root is None:
        return _Module(name, hashes, {})
    found = dict.fromkeys(files_of(name, root))
    for file in list(found):
        found |= dict.fromkeys(files_imported(file, _read(file), root))
    return _Module(name, hashes, {str(file.relative_to(root)): _read(file) for file in found})


def _root(name: str, module: ModuleType) -> Path | None:
    """Return the user's folder in which a module was found, or None if the module is installed."""
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    levels = name.count(".") + (Path(file).name == "__init__.py")
    root = Path(file).resolve().parents[levels]
    installed = [sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), *site.getsitepackages()]
    inside = any(root.is_relative_to(Path(place).resolve()) for place in installed)
    return None if inside or "site-packages" in root.parts else root


# On the worker


def _placed(file: _File, folder: Path) -> Path:
    """Return where the file is to be loaded from: its old place if the same files are there, else `folder`."""
    if all(_is_at(file.path.parent / name, content) for name, content in file.files.items()):
        return file.path
    _write(file.files, folder)
    return folder / file.path.name


def _is_loaded(file: _File) -> bool:
    """Return whether this process has loaded the same file before, for example because it is the command's."""
    loaded = known().files.get(file.path)
    hashes = {name: _hash(content) for name, content in file.files.items()}
    return loaded is not None and hashes == {loaded.path.name: loaded.sha256, **loaded.beside}


def _import(module: _Module, folder: Path) -> None:
    _write(module.files, folder)
    before = list(sys.path)
    sys.path.append(str(folder))  # last, as the command searched the user's folder last
    try:
        load_module(module.name)
        for name, expected in module.hashes.items():
            file = _python_file(name)
            found = None if file is None else _hash(_read(file))
            if found != expected:
                got = "none" if found is None else f"{found[:SHOWN]}… ({file})"
                raise ConfigError(
                    f"--import {module.name}: expected the command's code, with sha256 {expected[:SHOWN]}… for {name},"
                    f" got {got}; install the same code here"
                )
    finally:
        sys.path[:] = before


def _write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        file = folder / PurePath(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _is_at(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _python_file(module: str) -> Path | None:
    """Return the Python file of a module, whether or not it was imported; None if it has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: a module without a specification
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") and Path(origin).is_file() else None


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
