"""Networks of any origin: a `ForeignNetwork` runs a module as it is, and state dicts keep the module's parameter names.

`libraries.py` builds the modules of torchvision and timm by name.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from dhkd.data.errors import ConfigError
from dhkd.stages.models.network import Network, Outputs, StageMap, batch_norms_called
from torch import Tensor, nn

INNER = "inner."  # the prefix that wrapping adds to the module's parameter names


class ForeignNetwork(Network):
    """Wrap another library's classification network `inner`; error messages call it `name`.

    The classifier is the last registered linear or convolutional layer with `num_classes` outputs. The embedding is the
    input of that layer, averaged over positions. `stage_relus` are paths of ReLU modules, one for the stem and one for
    each stage: the last call of such a module in a forward pass is the last activation of its stage. If `stage_relus`
    is empty, the network gives no stage maps. `published_names` is explained in `Network`. Raises `ConfigError` for a
    network without such a classifier.
    """

    def __init__(
        self,
        name: str,
        inner: nn.Module,
        num_classes: int,
        *,
        stage_relus: tuple[str, ...] = (),
        published_names: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.name = name
        self.inner = inner
        self.stage_relus = stage_relus
        self.fan_out_start = bool(stage_relus)  # torchvision's ResNets draw their convolutions in this way
        self._has_run = False  # an error in the first forward pass may be due to the image size
        self.published_names = dict(published_names)
        widths = {path: width for path, module in inner.named_modules() if (width := _width(module, num_classes))}
        if not widths:
            raise ConfigError(f"network {name}: expected a linear classifier of {num_classes} classes, found none")
        head_path, self.embedding_dim = list(widths.items())[-1]
        self.head_name = INNER + head_path
        for path in stage_relus:
            relu = inner.get_submodule(path)
            assert isinstance(relu, nn.ReLU)
            relu.inplace = False  # the ReLU must not overwrite its input, the stage's map before the activation
        self.register_state_dict_post_hook(_take_off_prefix)  # type: ignore[no-untyped-call]  # torch's
        self.register_load_state_dict_pre_hook(_put_on_prefix)  # type: ignore[no-untyped-call]  # torch's

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs of one forward pass, including the stage maps if `maps` is set.

        Raises `ConfigError` if `maps` is set and the network is not one of torchvision's ResNets.
        """
        if maps and not self.stage_relus:
            raise ConfigError(
                f"network {self.name} gives no stage maps: of other libraries' networks only torchvision's ResNets do"
            )
        embeddings: list[Tensor] = []
        stage_maps: dict[nn.Module, StageMap] = {}

        def see_embedding(head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            embeddings.append(_pooled(arguments[0], isinstance(head, nn.Conv2d)))

        def see_map(relu: nn.Module, arguments: tuple[Tensor, ...], after: Tensor) -> None:
            stage_maps[relu] = StageMap(arguments[0], after, after)

        relus = [self.inner.get_submodule(path) for path in self.stage_relus] if maps else []
        handles = [
            self.head.register_forward_pre_hook(see_embedding),
            *(relu.register_forward_hook(see_map) for relu in relus),
        ]
        try:
            logits_BK = self.inner(images_BCHW)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            if self._has_run:
                raise
            height, width = images_BCHW.shape[2:]
            raise ConfigError(
                f"network {self.name} takes no images of {width}×{height} pixels"
                f" ({' '.join(str(error).split())[:200]}); set views.size to what it takes"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        self._has_run = True
        if len(embeddings) != 1:
            raise ConfigError(
                f"network {self.name}: expected one call of its classifier {self.head_name.removeprefix(INNER)},"
                f" saw {len(embeddings)}"
            )
        kept_maps = tuple(stage_maps[relu] for relu in relus)
        return Outputs(logits_BK, embeddings[0], kept_maps, kept_maps[-1].after if kept_maps else None)

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return, for the map of the stem and of every stage, the last batch norm that runs before that map.

        The batch norms are found by a forward pass of these images, whose pixel values don't matter.
        """
        last_before: dict[nn.Module, nn.BatchNorm2d] = {}
        relus = [self.inner.get_submodule(path) for path in self.stage_relus]
        with batch_norms_called(self.inner) as called:

            def remember(relu: nn.Module, *_: object) -> None:
                last_before[relu] = called[-1]

            handles = [relu.register_forward_pre_hook(remember) for relu in relus]
            self.inner(images_BCHW)
            for handle in handles:
                handle.remove()
        return [last_before[relu] for relu in relus]


def _width(module: nn.Module, num_classes: int) -> int | None:
    """Return the input width of a layer with `num_classes` outputs, or None for other layers."""
    if isinstance(module, nn.Linear) and module.out_features == num_classes:
        return module.in_features
    if isinstance(module, nn.Conv2d) and module.out_channels == num_classes:
        return module.in_channels
    return None


def _pooled(x: Tensor, channels_first: bool) -> Tensor:
    """Average x over positions, to (B, D); x has shape (B, D, H, W) if channels come first, else (B, …, D)."""
    if x.ndim == 2:
        return x
    return x.mean(dim=(2, 3)) if channels_first else x.flatten(1, -2).mean(dim=1)


def _take_off_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    _rename(state, prefix + INNER, prefix)


def _put_on_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    _rename(state, prefix, prefix + INNER)


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)
