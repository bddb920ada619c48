"""What every network offers: logits, and the pooled feature that they are computed from, out of one forward."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A classification network as feature extractor and classifier; `embedding_dim` is the pooled feature's width."""

    embedding_dim: int

    @abstractmethod
    def features(self, images_BCHW: Tensor) -> Tensor:
        """The pooled feature (B, embedding_dim) of images (B, 3, H, W)."""

    @abstractmethod
    def classify(self, embedding_BD: Tensor) -> Tensor:
        """Logits (B, K) of pooled features."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        return self.classify(self.features(images_BCHW))


def count_parameters(module: nn.Module) -> int:
    """How many trainable numbers a module has."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
