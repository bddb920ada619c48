"""Networks of torchvision and timm by name, and the pretrained weights that these libraries provide.

A library is imported only when one of its networks is built, because timm is optional and other networks shouldn't wait
for the import.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from dhkd.data.errors import ConfigError, WeightsError, unknown
from dhkd.data.extras import needing
from dhkd.stages.models.architecture import NO_CLASSIFIER, Architecture, options_refused
from dhkd.stages.models.foreign import ForeignNetwork
from torch import Tensor, nn

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
STAGES = ("relu", "layer1", "layer2", "layer3", "layer4")  # of torchvision's ResNets: the stem's map and the stages'
# A preset may come from a stranger, so options that fetch or read files are refused.
_WEIGHTS = "weights are named with --teacher"
REFUSED = {
    **dict.fromkeys(
        ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"), _WEIGHTS
    ),
    **dict.fromkeys(("checkpoint_path", "cache_dir"), _WEIGHTS),
    "features_only": "feature maps are named with maps",
}

Colours = tuple[float, ...]


def torchvision_network(name: str, num_classes: int, wanted: Architecture) -> ForeignNetwork:
    """Build any classification network of torchvision, without auxiliary classifiers.

    GoogLeNet and Inception v3 expect images with torchvision's normalisation, and convert these images to the
    normalisation with which the networks' published weights were trained. Raises `ConfigError` for an unknown name, and
    for options that the network doesn't take.
    """
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    options: dict[str, object] = {}
    if name in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    inner = _built(
        wanted, lambda given: models.get_model(name, weights=None, num_classes=num_classes, **options | given)
    )
    stages = STAGES if isinstance(inner, models.ResNet) else ()
    published_names = AUXILIARY.get(name, _older_densenet_names(inner.state_dict()) if "densenet" in name else {})
    return ForeignNetwork(
        f"torchvision:{name}",
        inner,
        num_classes,
        wanted,
        stages=stages,
        of_library=True,
        published_names=published_names,
    )


def timm_network(name: str, num_classes: int, wanted: Architecture) -> ForeignNetwork:
    """Build any network of timm.

    Raises `ConfigError` for an unknown name, for options that the network doesn't take, and if timm is not installed.
    """
    timm = _timm(name)
    _check_name("timm", name, timm.list_models())
    asked = wanted.options.get("num_classes")
    if asked not in (None, 0):
        raise ConfigError(
            f"network {wanted.name}: options.num_classes: expected 0, for features without a classifier, got {asked!r};"
            " the number of classes comes from the data"
        )
    inner = _built(wanted, lambda given: timm.create_model(name, **({"num_classes": num_classes} | given)))
    if asked is None:
        return ForeignNetwork(f"timm:{name}", inner, num_classes, wanted, of_library=True)
    without = replace(wanted, head=NO_CLASSIFIER)
    names = getattr(inner, "pretrained_cfg", {}).get("classifier") or ()  # in weights files, but not in this network
    left_out = dict.fromkeys(f"{path}." for path in ([names] if isinstance(names, str) else names))
    return ForeignNetwork(f"timm:{name}", inner, num_classes, without, of_library=True, published_names=left_out)


def _built(wanted: Architecture, build: Callable[[dict[str, object]], nn.Module]) -> nn.Module:
    """Build a library's network with the options of `wanted`; its complaints about them become a `ConfigError`."""
    for option in wanted.options:
        if option in REFUSED:
            raise ConfigError(f"network {wanted.name}: options.{option}: expected another option; {REFUSED[option]}")
    try:
        return build(dict(wanted.options))
    except Exception as error:
        if not wanted.options:
            raise
        raise options_refused(wanted, error) from error


def packaged_weights(name: str, tag: str | None) -> tuple[dict[str, Tensor], tuple[Colours, Colours] | None]:
    """Return the pretrained weights of "torchvision:NAME" or "timm:NAME", and the mean and deviation of the images.

    Images are normalised with this mean and standard deviation; instead of the two, None is returned if the library
    doesn't give them. `tag` chooses among several weights of one network (torchvision's IMAGENET1K_V1, timm's a1_in1k);
    None chooses the library's default. The library downloads files that are missing in its download cache. Raises
    `ConfigError` for an unknown name or tag, and `WeightsError` if there are no weights or they can't be fetched.
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
    with needing("timm", f"network timm:{name}"):
        import timm
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


def _older_densenet_names(state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Map published names such as `norm.1`, which torch no longer allows, to the network's names, such as `norm1`."""
    by_older = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): name for name in state}
    return {older: name for older, name in by_older.items() if older != name}
