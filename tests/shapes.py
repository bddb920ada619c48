"""Shape checks while tests run: an array argument whose name ends in a shape must have this shape.

`student_BK` must have two axes, `margin_C` one, and `scale_B1` two, the second of length 1. Axes with the same letter
must have the same length in all arguments of a call. An import hook adds the checks to the package's modules. They are
made for every step of every training run in the tests, hence without jaxtyping, which takes ten times as long.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import numpy as np
from torch import Tensor

CHECKED = ("dhkd.data", "dhkd.stages.train", "dhkd.stages.report", "dhkd.stages.models.signals")
ARRAYS = (Tensor, np.ndarray)
SHAPE = re.compile(r"_([A-Z0-9]+)$")


def check_shapes() -> None:
    """Install the import hook, which adds shape checks to the modules in `CHECKED`."""
    early = [name for name in sys.modules if name.startswith(CHECKED)]
    assert not early, f"imported before shapes could be checked: {early}"
    sys.meta_path.insert(0, _Finder())


def checked(function: Callable[..., object]) -> Callable[..., object]:
    """Wrap a function so that its arrays' shapes are checked; if no argument name has a shape, return it unchanged."""
    signature = inspect.signature(function)
    shapes = {name: match[1] for name in signature.parameters if (match := SHAPE.search(name))}
    if not shapes:
        return function
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert inspect.Parameter.VAR_POSITIONAL not in kinds, f"{function.__qualname__} takes any number of arguments"
    names = list(signature.parameters)

    @functools.wraps(function)
    def call(*arguments: object, **options: object) -> object:
        given = dict(zip(names, arguments, strict=False)) | options  # too many arguments fail in the call itself
        arrays = {name: value for name, value in given.items() if isinstance(value, ARRAYS)}
        lengths: dict[str, int] = {}
        for name, axes in shapes.items():
            if name in arrays and not fits(arrays[name].shape, axes, lengths):
                sizes = {argument: tuple(value.shape) for argument, value in arrays.items()}
                raise AssertionError(f"{function.__qualname__}: {name} doesn't fit among {sizes}")
        return function(*arguments, **options)

    return call


def fits(shape: Sequence[int], axes: str, lengths: dict[str, int]) -> bool:
    """Whether an array has these axes, with the lengths that are known; adds those that were not."""
    return len(shape) == len(axes) and all(
        length == (int(axis) if axis.isdigit() else lengths.setdefault(axis, length))
        for axis, length in zip(axes, shape, strict=True)
    )


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(CHECKED):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for holder in (module, *(value for value in vars(module).values() if inspect.isclass(value))):
            if getattr(holder, "__module__", holder.__name__) != module.__name__:
                continue
            for name, value in list(vars(holder).items()):
                if inspect.isfunction(value) and value.__module__ == module.__name__:
                    setattr(holder, name, checked(value))
