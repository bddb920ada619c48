"""A network, data and a loss of a user's own, for tests of the Python interface."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]

SHIFTS = {"kind": "crop-flip", "padding": 1, "flip": False}
TRAINED = {"epochs": 2, "lr": 0.1, "batch_size": 32}  # a student's settings in these tests


class Net(nn.Module):
    """Two convolutions and a linear classifier."""

    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.classifier = nn.Linear(16 * width, num_classes)

    def forward(self, images: Tensor) -> Any:
        return self.classifier(self.body(images))


def small(num_classes: int) -> Net:
    return Net(num_classes, width=2)


def cosine(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    likeness = F.cosine_similarity(student_logits, teacher_logits).mean()
    return F.cross_entropy(student_logits, labels) + 4 * (1 - likeness)


def digits(split: str) -> Arrays:
    """200 images to train on and 100 to test with, uint8 (N, 8, 8)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_digits()
    pixels, labels = (data.images * 15).astype(np.uint8), data.target.astype(np.int64)
    part = slice(200) if split == "train" else slice(200, 300)
    return pixels[part], labels[part]


def trained(make: Callable[[], nn.Module] = Net, steps: int = 30) -> nn.Module:
    """A network that was trained in a loop of the user's own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
        pixels, labels = digits("train")
        images = (torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1) / 255 - 0.5) / 0.25
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(images), torch.from_numpy(labels)).backward()
            optimizer.step()
    return network
