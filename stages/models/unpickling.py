"""torch's files, read without running anything that they name.

torch reads such a file with an unpickler that refuses whatever is not on a list. This module adds to that list the
types that training programs keep beside the weights: paths, dates, NumPy's scalars, settings. Their own code never
runs, and their libraries needn't be installed: each name stands for a placeholder that takes any content and drops it,
except that mappings and lists stay, because weights may lie in them.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dhkd.data.errors import WeightsError
from dhkd.data.shown import printable_line


class _Setting:
    """Stands for a setting of any type. It holds nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Setting":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Mapping:
    """Stands for a mapping: what is made is a plain one, which the unpickler fills."""

    def __new__(cls, *_: object) -> "OrderedDict[object, object]":  # type: ignore[misc]  # on purpose another class
        return OrderedDict()


class _Sequence:
    """Stands for a sequence: what is made is a list of what it is given."""

    def __new__(cls, values: object = (), *_: object) -> "list[object]":  # type: ignore[misc]  # on purpose another class
        return list(values) if isinstance(values, list | tuple) else []


NUMPY_TYPES = (
    *("bool", "bool_", "str_", "bytes_", "void", "object_"),
    *(f"{kind}{bits}" for kind, bits in product(("int", "uint"), (8, 16, 32, 64))),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
)
NUMPY_DTYPES = (
    *("Bool", "Str", "Bytes", "Void", "Object", "DateTime64", "TimeDelta64", "LongDouble"),
    *(f"{kind}{bits}" for kind, bits in product(("Int", "UInt"), (8, 16, 32, 64))),
    *("Float16", "Float32", "Float64", "Complex64", "Complex128"),
)

# By the module that a pickle names. Modules that were moved are listed under both names.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID", "SafeUUID"),
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    ),
    "numpy": ("dtype", "ndarray", *NUMPY_TYPES),
    "numpy.dtypes": tuple(f"{name}DType" for name in NUMPY_DTYPES),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), ("scalar", "_reconstruct")),
    "typing": ("Any",),
    "builtins": ("dict", "list", "tuple", "int", "float", "str", "bool", "bytes", "object", "frozenset"),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        *("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "PathNode", "StringNode"),
    ),
}
MAPPINGS: Mapping[str, tuple[str, ...]] = {
    "collections": ("defaultdict",),
    **dict.fromkeys(
        (
            *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
            *("lightning_fabric.utilities.data", "lightning.fabric.utilities.data"),
        ),
        ("AttributeDict",),
    ),
    "easydict": ("EasyDict",),
    "addict.addict": ("Dict",),
    "yacs.config": ("CfgNode",),
    **dict.fromkeys(("mmcv.utils.config", "mmengine.config.config"), ("ConfigDict",)),
}
SEQUENCES: Mapping[str, tuple[str, ...]] = {"collections": ("deque",)}

ALLOWED = [
    (placeholder, f"{module}.{name}")
    for placeholder, names_of in ((_Setting, SETTINGS), (_Mapping, MAPPINGS), (_Sequence, SEQUENCES))
    for module, names in names_of.items()
    for name in names
]


def load_torch_file(path: Path) -> object:
    """Read what `torch.save` wrote to `path`, on the CPU; settings are replaced by placeholders.

    Raises `WeightsError` if the file names anything that is not allowed, or if it is damaged.
    """
    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol: if it can't be read, there is an error, too
            with path.open("rb") as stream:  # not the path, whose name would make torch expect another format
                return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"weights {path}: expected a readable file, got an error ({error.strerror})") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        # torch's messages also explain how to load the file anyway, which is unsafe; so nothing of them is passed on.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise WeightsError(
                f"weights {path}: expected tensors and plain values only, got {printable_line(code[1], 100)};"
                " the file was not loaded, since that would run code; ask its author for the network's state_dict()"
            ) from error
        raise WeightsError(
            f"weights {path}: expected a file of weights, got one that is damaged or of another kind; the file was"
            " refused; copy or download it again"
        ) from error


def _allowed() -> list[Any]:  # Any: torch wants callables, which placeholders are
    return list(ALLOWED)
