"""Packages that only some uses need: the extra that installs each of them, and the one line where one is missing.

An extra is a group of optional packages of pyproject.toml: pip install 'dhkd[report]'. Modules import these packages
where they use them, inside `needing`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from dhkd.data.errors import ConfigError

# By the name under which a package is imported.
EXTRAS = {
    "datasets": "huggingface",
    "matplotlib": "report",
    "mlflow": "mlflow",
    "obstore": "remote",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "plotly": "report",
    "ray": "ray",
    "sklearn": "report",
    "submitit": "slurm",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "wandb": "wandb",
}
# The names of packages that are installed under another name than they are imported.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@contextmanager
def needing(package: str, what: str) -> Iterator[None]:
    """Raise `ConfigError` if `package` turns out to be missing in this context; `what` names the use that needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigError(f"{what}: {missing(package)}") from None


def require(package: str, what: str) -> None:
    """Raise `ConfigError` unless `package` is installed; `what` names the use that needs it. Nothing is imported."""
    if not is_installed(package):
        raise ConfigError(f"{what}: {missing(package)}")


def is_installed(package: str) -> bool:
    """Return whether a package can be found. Nothing is imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or a module was put in its place
        return False


def missing(package: str) -> str:
    """Return what a message says of a package that isn't installed, with the remedy."""
    name = _DISTRIBUTIONS.get(package, package)
    return f"expected {name} to be installed, found none; pip install 'dhkd[{EXTRAS[package]}]'"
