"""Takes the logits or features out of what a module's forward pass returns.

The module may return a tensor, several tensors, a dictionary, or an object. Of several tensors (auxiliary outputs, deep
supervision), the first is taken. From a dictionary or an object, `logits` is taken, as in the transformers library, or
else, for a network without a classifier, `pooler_output` or `last_hidden_state`.
"""

from collections.abc import Mapping

from dhkd.data.errors import ConfigError
from torch import Tensor

LOGITS = ("logits",)
FEATURES = ("pooler_output", "last_hidden_state", "embedding", "features")


def logits_in(result: object, name: str, batch: int, num_classes: int) -> Tensor:
    """Return the logits (B, K) in what the network `name` returned. Raises `ConfigError` for anything else."""
    tensor = first_logits(result, name)
    if tuple(tensor.shape) != (batch, num_classes) or not tensor.is_floating_point():
        raise ConfigError(
            f"network {name}: expected logits of shape ({batch}, {num_classes}) for {batch} images and {num_classes}"
            f" classes, got {described(tensor)}; {_remedy(tensor, batch, num_classes)}"
        )
    return tensor


def first_logits(result: object, name: str) -> Tensor:
    """Return the tensor of logits in what the network `name` returned, of whatever shape."""
    tensor = _tensor(result, LOGITS)
    if tensor is None:
        raise ConfigError(
            f"network {name}: expected logits as a tensor, the first of several tensors, or under 'logits', got"
            f" {described(result)}; return the logits from its forward"
        )
    return tensor


def features_in(result: object, name: str, batch: int) -> Tensor:
    """Return the features (B, D), (B, N, D) or (B, C, H, W) in what a network without a classifier returned."""
    tensor = _tensor(result, FEATURES)
    if tensor is None or tensor.ndim not in (2, 3, 4) or len(tensor) != batch or not tensor.is_floating_point():
        raise ConfigError(
            f"network {name}: expected features of shape ({batch}, D), tokens or maps, got {described(result)}; return"
            f" the features of each image from its forward"
        )
    return tensor


def is_one_of_several(result: object) -> bool:
    """Return whether the forward pass returned further tensors beside the one that is taken."""
    return not isinstance(result, Tensor) and isinstance(result, list | tuple | Mapping) and len(result) > 1


def described(value: object) -> str:
    """Describe a value for a message: shapes and dtypes of tensors, types of other things."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if value is None:
        return "nothing (None)"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, list(value)[:5])) or 'no entries'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(described(entry) for entry in value[:3]) or 'nothing'}"
    return f"a {type(value).__name__}"


def _tensor(result: object, names: tuple[str, ...]) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    for name in names:
        value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if isinstance(value, Tensor):
            return value
    first = result[0] if isinstance(result, list | tuple) and result else None
    return first if isinstance(first, Tensor) else None


def _remedy(tensor: Tensor, batch: int, num_classes: int) -> str:
    if not tensor.is_floating_point():
        return "return the values before argmax or rounding"
    if tensor.ndim == 2 and len(tensor) == batch:
        return f"build it with {num_classes} outputs, or set head: none if these are features"
    if tensor.ndim > 2 and len(tensor) == batch:
        return "pool positions or tokens before the classifier"
    return "return one row of logits for each image"
