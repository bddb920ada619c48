"""A network of one input channel computes of grey images what it computed of the same images repeated three times."""

import pytest
import torch
from dhkd.data.errors import ConfigError
from dhkd.data.render import Normalization
from dhkd.stages.models import NETWORKS, build_network
from dhkd.stages.models.network import input_channels, with_input_channels
from dhkd.stages.models.signals import Shapes
from torch import nn

from tests.few import few

OWN = [*NETWORKS, "simkd:resnet8+wrn_16_1"]
OF_EVERY_FAMILY = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "MobileNetV1", OWN[-1]]
LIBRARIES = {"torchvision:resnet18": 64, "torchvision:inception_v3": 75, "timm:vit_tiny_patch16_224": 224}


@pytest.mark.parametrize(
    ("name", "size"),
    few(
        [*((name, 32) for name in OWN), *LIBRARIES.items()],
        [*((name, 32) for name in OF_EVERY_FAMILY), ("torchvision:resnet18", 64), ("timm:vit_tiny_patch16_224", 224)],
    ),
)
def test_one_channel_gives_what_three_equal_ones_give(name: str, size: int) -> None:
    grey = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    logits = []
    for channels in (3, 1):
        torch.manual_seed(1)
        network = build_network(name, 5, channels).eval()
        assert input_channels(network) == channels
        if hasattr(getattr(network, "inner", None), "transform_input"):  # for the weights of three colours
            network.inner.transform_input = False
        with torch.no_grad():
            logits.append(network(grey.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-5)


def test_shapes_and_normalisation_follow() -> None:
    shapes = Shapes("resnet8", 5, (8, 8), 1)
    assert shapes.maps == Shapes("resnet8", 5, (8, 8)).maps
    assert shapes.of("resnet14").channels == 1
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    three, one = Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), Normalization((0.4,), (0.2,))
    assert torch.equal(three(grey), three(grey.repeat(1, 3, 1, 1)))
    assert torch.equal(one(grey.repeat(1, 3, 1, 1)), one(grey))
    assert torch.equal(three(grey)[:, 1:2], one(grey))


class Odd(nn.Module):
    """A network of two input channels."""

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3) if channels is None else nn.Conv2d(channels, 3, 3)


@pytest.mark.parametrize(("channels", "found"), [(None, "no convolution"), (2, "one of 2 channels")])
def test_networks_that_take_other_images_are_refused(channels: int | None, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"^network odd: expected a first convolution of 3 .* found {found}; choose"):
        with_input_channels(Odd(channels), 1, "odd")  # type: ignore[arg-type]
