"""The names of the outputs of pretrained networks, as torchvision and timm package them. Nothing is downloaded."""

from collections.abc import Callable, Mapping

from dhkd.data.extras import needing


def torchvisions_names() -> tuple[str, ...]:
    """Return the English names of ImageNet's 1,000 classes, in the order of the usual outputs."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def timms_names() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes, such as n01440764, in the order of the usual outputs.

    Raises `ConfigError` if timm is not installed.
    """
    with needing("timm", "teacher.classes: timm"):
        from timm.data.imagenet_info import ImageNetInfo
    names: list[str] = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]  # timm's
    return tuple(names)


# By the value of `teacher.classes` that selects them.
PACKAGED_NAMES: Mapping[str, Callable[[], tuple[str, ...]]] = {
    "torchvision": torchvisions_names,
    "timm": timms_names,
}


def names_of_packaged_weights(architecture: str, tag: str | None) -> tuple[str, ...]:
    """Return the names of the outputs of a library's pretrained weights; empty if the library gives none."""
    library, _, name = architecture.partition(":")
    if library != "torchvision":
        return ()
    from torchvision import models

    entries = models.get_model_weights(name)
    entry = entries.DEFAULT if tag is None else entries[tag]
    return tuple(entry.meta.get("categories") or ())
