"""Pixel operations. Each is a file in this folder and a line in `OPERATIONS`; `base.py` has the interface."""

from collections.abc import Callable, Mapping

from dhkd.data.errors import ConfigError
from dhkd.data.options import with_options
from dhkd.data.recipes.operations.affine import Affine
from dhkd.data.recipes.operations.base import Operation
from dhkd.data.recipes.operations.blur import Blur
from dhkd.data.recipes.operations.color_jitter import ColorJitter
from dhkd.data.recipes.operations.grayscale import Grayscale
from dhkd.data.recipes.operations.policies import build_policy
from dhkd.data.recipes.operations.random_erasing import RandomErasing
from dhkd.data.recipes.operations.rotation import Rotation
from dhkd.data.recipes.operations.solarize import Solarize
from dhkd.data.recipes.operations.vertical_flip import VerticalFlip

# The names are keys of `views` in a preset. Operations are applied in this order.
OPERATIONS: dict[str, Callable[..., Operation]] = {
    "vertical_flip": VerticalFlip,
    "rotation": Rotation,
    "affine": Affine,
    "policy": build_policy,
    "color_jitter": ColorJitter,
    "grayscale": Grayscale,
    "blur": Blur,
    "solarize": Solarize,
    "random_erasing": RandomErasing,
}


def build_operations(settings: Mapping[str, object]) -> dict[str, Operation]:
    """Build the operations that the keys of `views` name, in the order of `OPERATIONS`.

    A value that is not a mapping sets an operation's main field. Raises `ConfigError` for unknown or wrong settings.
    """
    return {name: _built(name, operation, settings[name]) for name, operation in OPERATIONS.items() if name in settings}


def _built(name: str, operation: Callable[..., Operation], setting: object) -> Operation:
    if isinstance(setting, bool) or setting is None:
        raise ConfigError(f"views.{name}: expected its settings, got {setting}; leave it out if it isn't wanted")
    main_field = getattr(operation, "main_field", "name")
    options = setting if isinstance(setting, Mapping) else {main_field: setting}
    return with_options(f"views.{name}", operation, options)
