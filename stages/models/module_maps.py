"""Maps of any network: the outputs of modules, named by their paths, as (B, C, H, W).

Tokens (B, N, D) become the map of their grid. Class and register tokens are left out: they come first, and are as many
as don't fit into a grid of the image's proportions. Maps (B, H, W, C) are recognised by timm's `output_fmt`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models.forward_results import described
from dhkd.stages.models.network import StageMap
from torch import Tensor, nn

MOST_PREFIX_TOKENS = 9  # a class token, a distillation token and registers
USUAL_MAPS = 4  # as many as ResNets have stages after the stem


class ModuleMaps:
    """The outputs of the modules at `paths` of `inner`, as the maps of the network `name`."""

    def __init__(self, name: str, inner: nn.Module, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._name, self._inner, self._modules = name, inner, [_module(name, inner, path) for path in paths]
        self._channels_last = _is_channels_last(inner)
        self._sizes: dict[tuple[str, int, int], tuple[int, ...]] = {}  # by path and size of the images
        if len(set(self.paths)) < len(self.paths):
            raise ConfigError(f"network {name}: maps: expected each path once, got {', '.join(paths)}")

    def protect(self) -> None:
        """Prevent modules from overwriting their input in place, which may be a map before or after its activation."""
        for module in self._inner.modules():
            if getattr(module, "inplace", None) is True:
                module.inplace = False  # type: ignore[assignment]  # an attribute of activations

    @contextmanager
    def seen(self, height: int, width: int) -> Iterator[list[StageMap]]:
        """Yield a list, which the end of the `with` block fills with the maps of the forward pass that ran in it.

        `height` and `width` are the size of the images. Raises `ConfigError` for a module that does not run or has no
        map.
        """
        outputs: dict[nn.Module, object] = {}
        before: dict[nn.Module, Tensor] = {}
        last: dict[nn.Module, tuple[object, object]] = {}

        def see_relu(relu: nn.Module, arguments: tuple[Tensor, ...], after: Tensor) -> None:
            last[relu] = (arguments[0], after)

        def see(module: nn.Module, _: object, output: object) -> None:
            outputs[module] = output
            before.pop(module, None)
            for relu_input, after in reversed(last.values()):
                if after is output and isinstance(relu_input, Tensor):
                    before[module] = relu_input

        relus = {child for module in self._modules for child in module.modules() if isinstance(child, nn.ReLU)}
        # The ReLUs' hooks are registered first, because a module that is itself a ReLU has both hooks.
        handles = [relu.register_forward_hook(see_relu) for relu in relus]
        handles += [module.register_forward_hook(see) for module in self._modules]
        maps: list[StageMap] = []
        try:
            yield maps
        finally:
            for handle in handles:
                handle.remove()
        for path, module in zip(self.paths, self._modules, strict=True):
            if module not in outputs:
                raise ConfigError(
                    f"network {self._name}: maps: {path} does not run in its forward; name another module"
                )
            after = self._as_map(path, outputs[module], height, width)
            size = self._sizes.setdefault((path, height, width), tuple(after.shape[1:]))
            if after.shape[1:] != size:
                raise ConfigError(
                    f"network {self._name}: maps: expected of {path} the size {size} that it had for other images of"
                    f" {height}×{width} pixels, got {tuple(after.shape[1:])}; name another module"
                )
            unactivated = self._as_map(path, before[module], height, width) if module in before else after
            maps.append(StageMap(unactivated, after, after))

    def _as_map(self, path: str, output: object, height: int, width: int) -> Tensor:
        tensor = output[0] if isinstance(output, list | tuple) and output else output
        if isinstance(tensor, Tensor) and tensor.ndim == 4:
            return tensor.permute(0, 3, 1, 2) if self._channels_last else tensor
        if isinstance(tensor, Tensor) and tensor.ndim == 3:
            grid = grid_of(tensor.shape[1], height, width)
            if grid is not None:
                rows, columns = grid
                patches = tensor[:, tensor.shape[1] - rows * columns :]
                return torch.unflatten(patches.transpose(1, 2), 2, grid)
        raise ConfigError(
            f"network {self._name}: maps: expected of {path} a map (B, C, H, W) or tokens (B, N, D) of the image's"
            f" proportions, got {described(output)}; name another module"
        )


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Return the rows and columns of the grid that an image's tokens form; None if they form none.

    As few leading tokens as possible are left out.
    """
    for prefix in range(min(MOST_PREFIX_TOKENS, tokens - 1) + 1):
        rows = round(((tokens - prefix) * height / width) ** 0.5)
        columns = (tokens - prefix) // rows if rows else 0
        if rows * columns == tokens - prefix and rows * width == columns * height:
            return rows, columns
    return None


def timm_maps(inner: nn.Module) -> tuple[str, ...]:
    """Return at most four of the paths that timm's `feature_info` names.

    These are the last four or, if all have the same reduction of the image's size, four that are evenly spaced.
    """
    info = getattr(inner, "feature_info", None)
    try:
        entries = [(str(entry["module"]), entry.get("reduction")) for entry in info or ()]
    except (TypeError, KeyError, AttributeError):
        return ()
    modules = dict(inner.named_modules())
    entries = [(path, reduction) for path, reduction in entries if path in modules]
    if len({reduction for _, reduction in entries}) == 1 and len(entries) > USUAL_MAPS:
        chosen = [entries[(number + 1) * len(entries) // USUAL_MAPS - 1] for number in range(USUAL_MAPS)]
    else:
        chosen = entries[-USUAL_MAPS:]
    return tuple(path for path, _ in chosen)


def candidates(inner: nn.Module) -> str:
    """Name some modules that may have maps, for a message."""
    paths = [
        f"{path}.{len(module) - 1}" if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) else path
        for path, module in inner.named_children()
    ]
    return ", ".join(paths[:4]) or "none"


def _module(name: str, inner: nn.Module, path: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(inner.named_modules())
    modules.pop("", None)
    if path not in modules:
        near = get_close_matches(path, modules, n=3, cutoff=0.5) or list(modules)[:3]
        raise ConfigError(f"network {name}: maps: it has no module {path!r}; near are {', '.join(near) or 'none'}")
    return modules[path]


def _is_channels_last(inner: nn.Module) -> bool:
    """Return whether the network's maps have shape (B, H, W, C), as in timm's and torchvision's Swin Transformers."""
    return (
        str(getattr(inner, "output_fmt", "")) == "NHWC"
        or type(inner).__module__ == "torchvision.models.swin_transformer"
    )
