"""Loads a Python file that isn't installed, and the modules beside it, as Python runs a script.

The file becomes a module under a unique name, so that files of the same name in different folders, or with the name of
an installed module, don't get in each other's way. Its folder is searched first for the modules that it imports, except
for modules of the standard library: libraries need the originals.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

LARGEST_SOURCE = 2**24  # bytes; a larger file is not taken for code


@dataclass(frozen=True)
class LoadedFile:
    """A file that was loaded: its module and the SHA-256 of the bytes that ran.

    `path` is where the file lies. `beside` has the SHA-256 of each file beside it that it imports, by the file's path
    relative to its folder.
    """

    path: Path
    module: ModuleType
    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)


def load_file(path: Path, at: Path | None = None) -> LoadedFile:
    """Run the file at the absolute `path` as a module; `at` is where the file lies, if that is elsewhere.

    The module's name depends on `path` alone. The bytes that run are the bytes whose hash is returned, never an older
    compiled copy. Raises whatever the code raises, `SyntaxError` if the file isn't valid Python, and `OSError` if it
    can't be read.
    """
    at = at or path
    content = _read(at)
    code = compile(content, str(at), "exec", dont_inherit=True)
    neighbours = files_imported(at, content, at.parent)
    name = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = ModuleSpec(name, None, origin=str(at))
    spec.has_location = True  # sets __file__
    module = importlib.util.module_from_spec(spec)
    with _beside(at.parent, neighbours):
        sys.modules[name] = module  # dataclasses and pickle look their module up
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    hashes = {str(file.relative_to(at.parent)): hashlib.sha256(_read(file)).hexdigest() for file in neighbours}
    return LoadedFile(at, module, hashlib.sha256(content).hexdigest(), hashes)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_SOURCE + 1)
    if len(content) > LARGEST_SOURCE:
        raise SyntaxError(f"expected at most {LARGEST_SOURCE:,} bytes of Python, got more")
    return content


def files_imported(path: Path, content: bytes, root: Path) -> list[Path]:
    """Return the sorted files below the folder `root` that the file at `path` imports, directly or indirectly."""
    found: dict[Path, None] = {}
    pending = [(path, content)]
    while pending:
        importer, text = pending.pop()
        for name in _imported_names(ast.parse(text), importer, root):
            for file in files_of(name, root):
                if file not in found and file != path:
                    found[file] = None
                    pending.append((file, _read(file)))
    return sorted(found)


def _imported_names(tree: ast.Module, importer: Path, root: Path) -> Iterator[str]:
    """Yield the dotted names in all import statements of a file; some may be attributes instead of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = importer.parent.relative_to(root).parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def files_of(name: str, root: Path) -> Iterator[Path]:
    """Yield the files below `root` that run when the module with this dotted name is imported."""
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names:
        return
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
        yield from (file for file in files[: 1 if files[0].is_file() else 2] if file.is_file())


class _Folders(MetaPathFinder):
    """Finds modules in `folders`, except for modules whose names the standard library has."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is not None or name.partition(".")[0] in sys.stdlib_module_names:
            return None
        specs = {folder: PathFinder.find_spec(name, [str(folder)]) for folder in self.folders}
        found = {folder: spec for folder, spec in specs.items() if spec is not None}
        # A folder without __init__.py must not hide an installed package of its name.
        if not found or (_is_bare_folder(found) and PathFinder.find_spec(name) is not None):
            return None
        if len(found) > 1:
            places = " and ".join(map(str, found))
            raise ImportError(f"{name!r} is in {places}; import it at the top of the file that needs it", name=name)
        return next(iter(found.values()))


def _is_bare_folder(found: Mapping[Path, ModuleSpec]) -> bool:
    return all(spec.loader is None for spec in found.values())


_later = _Folders()  # for imports in functions of loaded files, which run only when the functions are called


@contextmanager
def _beside(folder: Path, neighbours: Sequence[Path]) -> Iterator[None]:
    """Search `folder` first, and hide modules that were loaded from elsewhere under the names of these `neighbours`."""
    names = {file.relative_to(folder).parts[0].removesuffix(".py") for file in neighbours}
    hidden = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in names and not _is_in(module, [folder])
    }
    for name in hidden:
        del sys.modules[name]
    finder = _Folders()
    finder.folders = [folder]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        taken_twice = {name.partition(".")[0] for name in hidden}
        for name in [name for name in sys.modules if name.partition(".")[0] in taken_twice]:
            del sys.modules[name]
        # If modules of two folders have one name, a later import must not take one for the other.
        sys.modules.update({name: module for name, module in hidden.items() if not _is_in(module, _later.folders)})
        if folder not in _later.folders:
            _later.folders.append(folder)
        if _later not in sys.meta_path:
            sys.meta_path.append(_later)


def _is_in(module: ModuleType, folders: Sequence[Path]) -> bool:
    file = getattr(module, "__file__", None)
    places = [Path(place).resolve() for place in ([file] if file else getattr(module, "__path__", []))]
    return any(place.is_relative_to(folder) for place in places for folder in folders)
