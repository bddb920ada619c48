"""Networks of torchvision and timm by name, and the pretrained weights that these libraries provide.

A `ForeignNetwork` runs the library's module and leaves it unchanged; state dicts keep the library's parameter names.
A library is imported only when one of its networks is built, because timm is optional and other networks shouldn't wait
for the import.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import torch
from dhkd.data.errors import ConfigError, WeightsError, unknown
from dhkd.stages.models.network import Network, Outputs, StageMap, batch_norms_called
from torch import Tensor, nn

INNER = "inner."  # the prefix that wrapping adds to the library's parameter names
# Published weights files also hold auxiliary classifiers, which were used in training only. These networks are built
# without auxiliary classifiers, so entries of weights files with these prefixes are left out.
AUXILIARY: Mapping[str, Mapping[str, str | None]] = {
    "googlenet": {"aux1.": None, "aux2.": None},
    "inception_v3": {"AuxLogits.": None},
}
LISTING = {
    "torchvision": "torchvision.models.list_models(module=torchvision.models)",
    "timm": "timm.list_models()",
}
STAGES = ("layer1", "layer2", "layer3", "layer4")  # of torchvision's ResNets

Colours = tuple[float, ...]


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


def torchvision_network(name: str, num_classes: int) -> ForeignNetwork:
    """Build any classification network of torchvision, without auxiliary classifiers.

    GoogLeNet and Inception v3 expect images with torchvision's normalisation, and convert these images to the
    normalisation with which the networks' published weights were trained. Raises `ConfigError` for an unknown name.
    """
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    options: dict[str, bool] = {}
    if name in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    inner = models.get_model(name, weights=None, num_classes=num_classes, **options)
    stage_relus: tuple[str, ...] = ()
    if isinstance(inner, models.ResNet):
        stage_relus = ("relu", *(f"{stage}.{len(inner.get_submodule(stage)) - 1}.relu" for stage in STAGES))
    published_names = AUXILIARY.get(name, _older_densenet_names(inner.state_dict()) if "densenet" in name else {})
    return ForeignNetwork(
        f"torchvision:{name}", inner, num_classes, stage_relus=stage_relus, published_names=published_names
    )


def timm_network(name: str, num_classes: int) -> ForeignNetwork:
    """Build any network of timm. Raises `ConfigError` for an unknown name, and if timm is not installed."""
    timm = _timm(name)
    _check_name("timm", name, timm.list_models())
    return ForeignNetwork(f"timm:{name}", timm.create_model(name, num_classes=num_classes), num_classes)


def packaged_weights(name: str, tag: str | None) -> tuple[dict[str, Tensor], tuple[Colours, Colours] | None]:
    """Return the pretrained weights of "torchvision:NAME" or "timm:NAME", and the mean and deviation of the images.

    Images are normalised with this mean and standard deviation; None stands for both if the library doesn't give them.
    `tag` chooses among several weights of one network (torchvision's IMAGENET1K_V1, timm's a1_in1k); None chooses the
    library's default. The library downloads files that are missing in its download cache. Raises `ConfigError` for an
    unknown name or tag, and `WeightsError` if there are no weights or they can't be fetched.
    """
    library, colon, name_there = name.partition(":")
    if not colon or library not in PACKAGED:
        raise ConfigError(
            f"network {name} has no packaged weights: expected torchvision:NAME or timm:NAME;"
            " give a file with --teacher FILE"
        )
    return PACKAGED[library](name_there, tag)


def _torchvision_weights(name: str, tag: str | None) -> tuple[dict[str, Tensor], tuple[Colours, Colours] | None]:
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    entries = models.get_model_weights(name)
    if tag is not None and tag not in entries.__members__:
        raise ConfigError(unknown(f"tag of torchvision:{name}", tag, entries.__members__))
    entry = entries.DEFAULT if tag is None else entries[tag]
    try:
        state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # network, disk and unpickling can raise anything
        raise _not_fetched(f"torchvision:{name}", error) from error
    return dict(state), _colours(entry.transforms())


def _timm_weights(name: str, tag: str | None) -> tuple[dict[str, Tensor], tuple[Colours, Colours] | None]:
    timm = _timm(name)
    _check_name("timm", name, timm.list_models())
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag is not None and tag not in tags:
        raise ConfigError(unknown(f"tag of timm:{name}", tag, tags))
    if not timm.is_model_pretrained(name):
        raise WeightsError(f"packaged weights of timm:{name}: timm has none; give a file with --teacher FILE")
    try:
        network = timm.create_model(name if tag is None else f"{name}.{tag}", pretrained=True)
    except Exception as error:  # network, disk and unpickling can raise anything
        raise _not_fetched(f"timm:{name}", error) from error
    expected = network.pretrained_cfg
    return dict(network.state_dict()), (tuple(expected["mean"]), tuple(expected["std"]))


PACKAGED = {"torchvision": _torchvision_weights, "timm": _timm_weights}


def _timm(name: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(f"network timm:{name}: timm is not installed; pip install timm") from error
    return timm


def _check_name(library: str, name: str, valid: Iterable[str]) -> None:
    """Raise `ConfigError` for an unknown name, without listing all names: timm has more than a thousand."""
    names = list(valid)
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{library}:{near[0]}'? " if near else ""
        raise ConfigError(f"unknown network '{library}:{name}': {hint}{LISTING[library]} gives all {len(names)}")


def _not_fetched(name: str, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return WeightsError(f"packaged weights of {name} could not be fetched ({reason}); give a file with --teacher FILE")


def _colours(transforms: Any) -> tuple[Colours, Colours] | None:
    mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    return None if mean is None or std is None else (tuple(mean), tuple(std))


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


def _older_densenet_names(state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Map published names such as `norm.1`, which torch no longer allows, to the network's names, such as `norm1`."""
    by_older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): name for name in state}
    return {older: name for older, name in by_older.items() if older != name}


def _take_off_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    _rename(state, prefix + INNER, prefix)


def _put_on_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    _rename(state, prefix, prefix + INNER)


def _rename(state: dict[str, Tensor], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)
