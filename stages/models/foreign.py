"""Networks of any origin: a `ForeignNetwork` runs a module as it is, and state dicts keep the module's parameter names.

`libraries.py` builds the modules of torchvision and timm by name, `own.py` those of users.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.own_failures import failed
from dhkd.stages.models.architecture import AUTO, NO_CLASSIFIER, Architecture
from dhkd.stages.models.checkpointing import enable_in_library, keep_buffers_in_backward
from dhkd.stages.models.forward_results import features_in, first_logits, is_one_of_several, logits_in
from dhkd.stages.models.module_maps import ModuleMaps, candidates, timm_maps
from dhkd.stages.models.network import Network, Outputs, batch_norms_called
from torch import Tensor, nn

log = logging.getLogger("dhkd")

INNER = "inner."  # the prefix that wrapping adds to the module's parameter names
POOLINGS = ("AdaptiveAvgPool2d", "SelectAdaptivePool2d", "FastAdaptiveAvgPool")  # torch's and timm's


class ForeignNetwork(Network):
    """Wrap a classification network `inner` of another origin; error messages call it `name`.

    The classifier is the module that `wanted` names or, if it names none, the last registered linear or convolutional
    layer with `num_classes` outputs. The embedding is the input of that layer, averaged over positions. Without such a
    layer the embedding is unknown; with the head "none", the module's outputs are the embedding, and there are no
    logits. The maps are the outputs of the modules that `wanted` names, else of `stages` (that of the stem first), else
    of those that timm names. `of_library` says that the module is a library's, so that errors in it are not reported as
    errors in user code. `published_names` is explained in `Network`. Raises `ConfigError` for paths that the module
    doesn't have.
    """

    def __init__(
        self,
        name: str,
        inner: nn.Module,
        num_classes: int,
        wanted: Architecture | None = None,
        *,
        stages: tuple[str, ...] = (),
        of_library: bool = False,
        published_names: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        wanted = wanted or Architecture(name)
        self.name, self.num_classes, self.of_library = name, num_classes, of_library
        self.inner = _in_float32(inner, name)
        self.fan_out_start = bool(stages)  # torchvision's ResNets draw their convolutions in this way
        self.may_leave_parameters_out = not stages
        self.pools_last_map = bool(stages) and wanted.maps is None
        self.published_names = dict(published_names)
        self._has_run = False  # an error in the first forward pass may be due to the image size
        self._features_only = wanted.head == NO_CLASSIFIER
        self._head_is_named = wanted.head is not None and not self._features_only
        head = None if self._features_only else wanted.head or _last_classifier(inner, num_classes)
        if self._head_is_named and head not in dict(inner.named_modules()):
            raise ConfigError(f"network {name}: head: it has no module {head!r}; near are {candidates(inner)}")
        self.head_name = None if head is None else INNER + head
        self.embedding_dim = _width(self.head) if head is not None else None
        self._maps = ModuleMaps(name, inner, self._map_paths(wanted, stages))
        self._protected = False
        self.register_state_dict_post_hook(_take_off_prefix)  # type: ignore[no-untyped-call]  # torch's
        self.register_load_state_dict_pre_hook(_put_on_prefix)  # type: ignore[no-untyped-call]  # torch's

    def _map_paths(self, wanted: Architecture, stages: tuple[str, ...]) -> tuple[str, ...]:
        if wanted.maps is None and stages:
            return stages
        self.first_stage = 1
        self.may_leave_out_stages = wanted.maps in (None, AUTO)
        self.map_paths = timm_maps(self.inner) if self.may_leave_out_stages else wanted.maps or ()
        if wanted.maps == AUTO and not self.map_paths:
            raise ConfigError(
                f"network {self.name}: maps: auto expects a network that names its maps, as timm's do (feature_info);"
                f" name modules, such as {candidates(self.inner)}"
            )
        return self.map_paths

    def prepare_maps(self) -> None:
        """Prevent modules from overwriting a map in place; this changes no values."""
        if not self._protected:
            self._maps.protect()
            self._protected = True

    def checkpoint_activations(self) -> None:
        """Let a training step keep fewer activations, in the way of timm or transformers.

        The module itself or modules in it must have the function of one of these libraries.
        """
        if not enable_in_library(self.inner):
            raise ConfigError(
                f"checkpointing: expected a network that can compute its activations again, as those of dhkd, timm and"
                f" transformers can, got {self.name}; leave checkpointing out, or give the network a method"
                f" set_grad_checkpointing"
            )
        keep_buffers_in_backward(self.inner)

    def drop_head(self) -> None:
        """Remove the classifier."""
        if self.head_name is not None:
            self.set_submodule(self.head_name, nn.Identity())
        self.head_name, self._features_only = None, True

    def outputs(self, images_BCHW: Tensor, *, maps: bool = False) -> Outputs:
        """Return the outputs of one forward pass, including the maps if `maps` is set.

        Raises `ConfigError` if `maps` is set but no modules with maps are known, and if the outputs are not logits.
        """
        if maps and not self._maps.paths:
            raise ConfigError(
                f"network {self.name} gives no maps: name modules whose outputs are maps with student.maps or"
                f" teacher.maps, such as {candidates(self.inner)}"
            )
        if not maps:
            return self._outputs(images_BCHW)
        self.prepare_maps()
        with self._maps.seen(*images_BCHW.shape[2:]) as seen, _inputs_of_poolings(self.inner) as pooled:
            outputs = self._outputs(images_BCHW)
        return outputs._replace(maps=tuple(seen), final=_final(outputs.embedding, [*pooled, seen[-1].after]))

    def logits_of(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits as `forward` does, without hooks and without checks of their shape."""
        return first_logits(self.inner(images_BCHW), self.name)

    def _outputs(self, images_BCHW: Tensor) -> Outputs:
        """Return the outputs of one forward pass, without maps."""
        calls: list[tuple[object, object]] = []
        handles = []
        if self.head_name is not None:
            handles.append(
                self.head.register_forward_hook(lambda _, given, out: calls.append((given[0] if given else None, out)))
            )
        try:
            result = self.inner(images_BCHW)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._failure(error, images_BCHW) from error
        finally:
            for handle in handles:
                handle.remove()
        if self._features_only:
            features = features_in(result, self.name, images_BCHW.shape[0])
            final = features if features.ndim == 4 else None
            return Outputs(None, _pooled(features, channels_first=True), (), final)
        # Not `len`, which would make a number of what exporters keep open.
        logits_BK = logits_in(result, self.name, images_BCHW.shape[0], self.num_classes)
        if not self._has_run and is_one_of_several(result) and not self.of_library:
            log.info("network %s returns several outputs; its logits are the first, or those of that name", self.name)
        self._has_run = True
        return Outputs(logits_BK, self._embedding(calls, logits_BK, result), (), None)

    def _embedding(self, calls: list[tuple[object, object]], logits_BK: Tensor, result: object) -> Tensor | None:
        """Return the input of the classifier; None if it is unknown which layer classifies."""
        if self._head_is_named and len(calls) != 1:
            assert self.head_name is not None
            raise ConfigError(
                f"network {self.name}: head: expected one call of {self.head_name.removeprefix(INNER)}, saw"
                f" {len(calls)}"
            )
        if len(calls) != 1:
            return None
        (given, out), head = calls[0], self.head
        # If there are several outputs, the layer may have computed another one than the first.
        if not self._head_is_named and is_one_of_several(result) and out is not logits_BK:
            return None
        return _pooled(given, channels_first=not isinstance(head, nn.Linear)) if isinstance(given, Tensor) else None

    def _failure(self, error: Exception, images_BCHW: Tensor) -> Exception:
        """Return the error to raise for an exception in the module's forward pass."""
        if self._has_run and self.of_library:
            return error
        if not self.of_library:
            return failed(f"network {self.name}: its forward", error)
        if not isinstance(error, AssertionError | RuntimeError | ValueError):
            return error
        height, width = images_BCHW.shape[2:]
        return ConfigError(
            f"network {self.name} takes no images of {width}×{height} pixels ({' '.join(str(error).split())[:200]});"
            " set views.size to what it takes, teacher.size for the teacher alone, or options.img_size if it has one"
        )

    def batch_norms(self, images_BCHW: Tensor) -> list[nn.BatchNorm2d]:
        """Return, for each map, the last batch norm that runs before it.

        The batch norms are found by a forward pass of these images, whose pixel values don't matter. Raises
        `ConfigError` for a map before which none runs.
        """
        last_before: dict[nn.Module, nn.BatchNorm2d] = {}
        modules = [self.inner.get_submodule(path) for path in self._maps.paths]
        with batch_norms_called(self.inner) as called:

            def remember(module: nn.Module, *_: object) -> None:
                if called:
                    last_before[module] = called[-1]

            handles = [module.register_forward_hook(remember) for module in modules]
            self.inner(images_BCHW)
            for handle in handles:
                handle.remove()
        without = [path for path, module in zip(self._maps.paths, modules, strict=True) if module not in last_before]
        if without:
            raise ConfigError(f"network {self.name}: expected a batch norm before the map {without[0]}, found none")
        return [last_before[module] for module in modules]


class _inputs_of_poolings:  # noqa: N801  # used like a function
    """Collect the inputs of a network's average poolings, last one first, in the list that `with` yields."""

    def __init__(self, inner: nn.Module) -> None:
        self._poolings = [module for module in inner.modules() if type(module).__name__ in POOLINGS]

    def __enter__(self) -> list[Tensor]:
        seen: list[Tensor] = []
        self._handles = [
            pooling.register_forward_pre_hook(lambda _, given: seen.insert(0, given[0])) for pooling in self._poolings
        ]
        return seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _final(embedding_BD: Tensor | None, maps: list[Tensor]) -> Tensor | None:
    """Return the first of these maps that has as many channels as the embedding has values."""
    if embedding_BD is None:
        return None
    return next((one for one in maps if one.ndim == 4 and one.shape[1] == embedding_BD.shape[1]), None)


def _in_float32(inner: nn.Module, name: str) -> nn.Module:
    """Convert weights of other floating-point types to float32, because a run's precision is a setting."""
    others = {value.dtype for value in inner.state_dict().values() if value.is_floating_point()} - {torch.float32}
    if others:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        log.info(
            "network %s: its weights are converted from %s to float32; precision sets how it computes", name, found
        )
        inner.float()
    return inner


def _last_classifier(inner: nn.Module, num_classes: int) -> str | None:
    """Return the path of the last registered linear or convolutional layer with `num_classes` outputs."""
    matches = [path for path, module in inner.named_modules() if _num_outputs(module) == num_classes]
    return matches[-1] if matches else None


def _width(module: nn.Module) -> int | None:
    """Return the width of a classifier's input; None for layers whose width is known only when they run."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels if isinstance(module, nn.Conv2d) else None


def _num_outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _pooled(x: Tensor, channels_first: bool) -> Tensor:
    """Average x over positions, to (B, D); x has shape (B, D, H, W) if channels come first, else (B, …, D)."""
    if x.ndim == 2:
        return x
    return x.mean(dim=(2, 3)) if channels_first and x.ndim == 4 else x.flatten(1, -2).mean(dim=1)


def _take_off_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    _rename(state, prefix + INNER, prefix)


def _put_on_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    _rename(state, prefix, prefix + INNER)


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)
