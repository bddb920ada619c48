"""Forwards of the published networks, written a second time as functions of the tensors in a state."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Sides = tuple[Tensor, Tensor, Tensor]


class Forward(NamedTuple):
    """What a forward gives; a map is there before and after its activation, and as published code returns it."""

    maps: list[Sides]
    pooled_BD: Tensor
    logits_BK: Tensor


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return weight * (x - mean) / torch.sqrt(var + 1e-5) + bias


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Odd kernels keep the resolution; the convolution is grouped if its kernel has fewer channels than `x`."""
    weight = state[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[2] // 2, groups=groups)


def pointwise(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    return torch.einsum("oi,bihw->bohw", state[f"{name}.weight"][:, :, 0, 0], x[:, :, ::stride, ::stride])


def numbers_in(state: State, prefix: str) -> list[int]:
    return sorted({int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)})


def classified(state: State, maps: list[Sides], last: Tensor, head: str) -> Forward:
    pooled_BD = last.flatten(2).mean(2)
    return Forward(maps, pooled_BD, pooled_BD @ state[f"{head}.weight"].T + state[f"{head}.bias"])


def with_relu(before: Tensor) -> Sides:
    return before, relu(before), relu(before)


def stem(state: State, x: Tensor) -> Sides:
    return with_relu(batch_norm(state, "bn1", conv(state, "conv1", x)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The first channel of each group, then the second of each, …"""
    width = x.shape[1] // groups
    return x[:, [group * width + place for place in range(width) for group in range(groups)]]


def layered(
    state: State,
    x: Tensor,
    block: Callable[[State, str, Tensor, int], Tensor],
    strides: list[int],
    end: Callable[[Tensor], Tensor] = relu,
) -> Forward:
    """The stem, then `layer1` and so on, whose first blocks have the strides; `block` omits its `end`, the last ReLU.

    ShuffleNetV2's blocks end in a ReLU and a shuffle. The published code keeps their maps before both.
    """
    maps = [stem(state, x)]
    x = maps[0][1]
    for stage, stride in enumerate(strides, start=1):
        for number in numbers_in(state, f"layer{stage}."):
            before = block(state, f"layer{stage}.{number}", x, stride if number == 0 else 1)
            x = end(before)
        maps.append((before, x, x))
    head = next(name for name in ("fc", "linear") if f"{name}.weight" in state)
    if head == "linear" and "conv2.weight" in state:
        x = relu(batch_norm(state, "bn2", conv(state, "conv2", x)))
    return classified(state, maps, x, head)


def basic_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        shortcut = batch_norm(state, f"{name}.downsample.1", pointwise(state, f"{name}.downsample.0", x, stride))
    x = relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)))
    return batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x)) + shortcut


def bottleneck(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    shortcut = x
    if f"{name}.shortcut.0.weight" in state:
        shortcut = batch_norm(state, f"{name}.shortcut.1", pointwise(state, f"{name}.shortcut.0", x, stride))
    x = relu(batch_norm(state, f"{name}.bn1", pointwise(state, f"{name}.conv1", x, 1)))
    x = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x, stride)))
    return batch_norm(state, f"{name}.bn3", pointwise(state, f"{name}.conv3", x, 1)) + shortcut


def shuffle_v1_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    groups = x.shape[1] // state[f"{name}.conv1.weight"].shape[1]
    out = shuffled(relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x))), groups)
    out = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", out, stride)))
    out = batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", out))
    if stride == 1:
        return out + x
    ninths = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
    return torch.cat([out, F.conv2d(x, ninths, stride=2, padding=1, groups=x.shape[1])], dim=1)


def shuffle_v2_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    if stride == 1:
        kept, x = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        x = relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x)))
        x = batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", x))
        return torch.cat([kept, batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", x))], 1)
    left = batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, 2))
    left = batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", left))
    right = relu(batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", x)))
    right = batch_norm(state, f"{name}.bn4", conv(state, f"{name}.conv4", right, 2))
    right = batch_norm(state, f"{name}.bn5", conv(state, f"{name}.conv5", right))
    return torch.cat([left, right], dim=1)


def wide_resnet(state: State, x: Tensor) -> Forward:
    maps, x = [], conv(state, "conv1", x)
    for stage in (1, 2, 3):
        for number in numbers_in(state, f"block{stage}.layer."):
            name, stride = f"block{stage}.layer.{number}", 2 if stage > 1 and number == 0 else 1
            before = batch_norm(state, f"{name}.bn1", x)
            if number == 0:
                maps.append((before, relu(before), x))
            inner = relu(batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", relu(before), stride)))
            if f"{name}.convShortcut.weight" in state:
                x = pointwise(state, f"{name}.convShortcut", relu(before), stride)
            x = x + conv(state, f"{name}.conv2", inner)
    before = batch_norm(state, "bn1", x)
    return classified(state, [*maps, (before, relu(before), x)], relu(before), "fc")


def vgg(state: State, x: Tensor) -> Forward:
    maps, height = [], x.shape[2]
    for stage in range(5):
        # The number of a convolution is a multiple of 3; the next is that of its batch norm, then comes a ReLU.
        for number in numbers_in(state, f"block{stage}.")[::2]:
            before = conv(state, f"block{stage}.{number}", x)
            before = batch_norm(state, f"block{stage}.{number + 1}", before)
            x = relu(before)
        maps.append(with_relu(before))
        if stage < 3 or (stage == 3 and height >= 64):
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(3, 5))
    return classified(state, maps, x, "classifier")


def mobilenet_v2(state: State, x: Tensor) -> Forward:
    maps = [with_relu(batch_norm(state, "conv1.1", conv(state, "conv1.0", x, 2)))]
    x = maps[0][1]
    for group, stride in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for number in numbers_in(state, f"blocks.{group}."):
            name = f"blocks.{group}.{number}.conv"
            out = relu(batch_norm(state, f"{name}.1", conv(state, f"{name}.0", x)))
            out = relu(batch_norm(state, f"{name}.4", conv(state, f"{name}.3", out, stride if number == 0 else 1)))
            out = batch_norm(state, f"{name}.7", conv(state, f"{name}.6", out))
            x = x + out if out.shape == x.shape else out
        if group in (1, 2, 4, 6):
            maps.append((x, x, x))
    x = relu(batch_norm(state, "conv2.1", conv(state, "conv2.0", x)))
    return classified(state, maps, x, "classifier")


def mobilenet_v1(state: State, x: Tensor) -> Forward:
    maps = [with_relu(batch_norm(state, "model.0.1", conv(state, "model.0.0", x, 2)))]
    x = maps[0][1]
    for number in range(1, 14):
        name, stride = f"model.{number}", 2 if number in (2, 4, 6, 12) else 1
        x = relu(batch_norm(state, f"{name}.1", conv(state, f"{name}.0", x, stride)))
        before = batch_norm(state, f"{name}.4", conv(state, f"{name}.3", x))
        x = relu(before)
        if number in (3, 5, 11, 13):
            maps.append(with_relu(before))
    return classified(state, maps, x, "fc")


FORWARDS: dict[str, Callable[[State, Tensor], Forward]] = {
    "resnet": lambda state, x: layered(state, x, basic_block, [1, 2, 2]),
    "wrn": wide_resnet,
    "vgg": vgg,
    "MobileNetV2": mobilenet_v2,
    "ShuffleV1": lambda state, x: layered(state, x, shuffle_v1_block, [2, 2, 2]),
    "ShuffleV2": lambda state, x: layered(
        state, x, shuffle_v2_block, [2, 2, 2], lambda before: shuffled(relu(before), 2)
    ),
    "ResNet50": lambda state, x: layered(state, x, bottleneck, [1, 2, 2, 2]),
    "MobileNetV1": mobilenet_v1,
}


def family(name: str) -> str:
    return next(start for start in FORWARDS if name.startswith(start))
