"""The labels of a batch: one class for each image, two classes and a share if images were mixed, or no labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import torch
from dhkd.data.errors import ConfigError
from dhkd.data.render import Keys, Renderer
from torch import Tensor

DRAWN_TOGETHER = 4096  # keys


@dataclass(frozen=True)
class Labels:
    """Classes `first_B`, int64. Mixed images also have `second_B`, int64, and `weight_B`, the first class's share.

    If `first_B` is None, the images have no labels; a loss that asks for them raises `ConfigError`. `weight_B` is in 0
    to 1; if only some images of a batch are mixed, the others have weight 1. `smoothing`, in [0, 1], is the share of
    the target that cross-entropy spreads over all classes.
    """

    first_B: Tensor | None = None
    second_B: Tensor | None = None
    weight_B: Tensor | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        assert (self.second_B is None) == (self.weight_B is None)
        if self.second_B is not None and self.weight_B is not None:
            assert self.first_B is not None
            assert self.second_B.shape == self.weight_B.shape == self.first_B.shape

    def __len__(self) -> int:
        return len(self.classes_B)

    @property
    def are_absent(self) -> bool:
        """Whether the images have no labels."""
        return self.first_B is None

    @property
    def classes_B(self) -> Tensor:  # noqa: N802 - a shape suffix
        """The first class of each row, int64 (B,). Raises `ConfigError` for images without labels."""
        if self.first_B is None:
            raise ConfigError(
                "objective: expected images with labels, which its loss compares with, got images without; choose an"
                " objective without labels, such as mse with ce_weight 0"
            )
        return self.first_B

    @property
    def are_mixed(self) -> bool:
        """Whether rows may have two classes."""
        return self.second_B is not None

    def shares(self, num_classes: int) -> Tensor:
        """Return the share of each class in each row, float32 (B, K), as `torch.nn.functional.cross_entropy` takes."""
        shares_BK = torch.zeros((len(self), num_classes), device=self.classes_B.device)
        if self.second_B is None or self.weight_B is None:
            return shares_BK.scatter_(1, self.classes_B[:, None], 1.0)
        shares_BK.scatter_add_(1, self.classes_B[:, None], self.weight_B[:, None])
        return shares_BK.scatter_add_(1, self.second_B[:, None], 1 - self.weight_B[:, None])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Labels":
        """Return new labels, with `change` applied to each tensor, for example to move, clone or gather it."""
        second_B = None if self.second_B is None else change(self.second_B)
        weight_B = None if self.weight_B is None else change(self.weight_B)
        return Labels(None if self.first_B is None else change(self.first_B), second_B, weight_B, self.smoothing)

    def smoothed(self, smoothing: float) -> "Labels":
        """Return these labels with another share of smoothing."""
        return replace(self, smoothing=smoothing)

    def copy_(self, source: "Labels") -> None:
        """Overwrite these tensors in place with those of `source`, which must be labels of the same kind."""
        assert (self.are_mixed, self.are_absent) == (source.are_mixed, source.are_absent)
        if self.first_B is not None and source.first_B is not None:
            self.first_B.copy_(source.first_B)
        if self.second_B is not None and source.second_B is not None:
            self.second_B.copy_(source.second_B)
        if self.weight_B is not None and source.weight_B is not None:
            self.weight_B.copy_(source.weight_B)

    def hit_by(self, predicted_B: Tensor) -> Tensor:
        """Return whether each prediction is right, bool (B,). Of two classes, the class with more weight counts."""
        if self.second_B is None or self.weight_B is None:
            return predicted_B == self.classes_B
        return predicted_B == torch.where(self.weight_B >= 0.5, self.classes_B, self.second_B)

    def require_one_class(self, objective: str) -> None:
        """Raise `ConfigError` if labels are mixed, because `objective` is not defined for an image of two classes."""
        if self.are_mixed:
            raise ConfigError(
                f"objective {objective!r}: expected images of one class each, got mixed ones; choose another objective,"
                f" or views that don't mix images"
            )

    def one_class_each(self, objective: str) -> Tensor:
        """Return the class of each row, int64 (B,). Raises `ConfigError`, naming `objective`, for mixed labels."""
        self.require_one_class(objective)
        return self.classes_B


def labels_of_keys(labels_N: Tensor | None, renderer: Renderer, view_B: Tensor, index_B: Tensor) -> Labels:
    """Return the labels of the pictures that `renderer` makes of these keys, on the device of `labels_N`.

    `labels_N` has the classes of all samples, int64; None stands for images without labels.
    """
    if labels_N is None:
        return Labels()
    mixing, device = renderer.recipe.mixing, labels_N.device
    if mixing is None:
        return Labels(labels_N[index_B.to(device)])
    shape = renderer.recipe.shape or renderer.images.shape
    assert shape is not None, "images of several sizes make no batch"
    mixed = mixing.drawn(view_B, index_B, len(labels_N), shape)
    return Labels(labels_N[index_B.to(device)], labels_N[mixed.partner_B.to(device)], mixed.weight_B.to(device))


def labels_of_batches(labels_N: Tensor | None, renderer: Renderer, batches: Sequence[Keys]) -> Iterator[Labels]:
    """Yield the labels of each batch of keys, as `labels_of_keys` returns them.

    If pictures are mixed, the labels of several batches are drawn together: a draw takes far less time than its call.
    """
    together = DRAWN_TOGETHER if renderer.recipe.mixing is not None else 1
    start = 0
    while start < len(batches):
        stop, rows = start, 0
        while stop < len(batches) and rows < together:
            rows += len(batches[stop][1])
            stop += 1
        views, indices = zip(*batches[start:stop], strict=True)
        labels = labels_of_keys(labels_N, renderer, torch.cat(views), torch.cat(indices))
        first = 0
        for index_B in indices:
            rows_of_batch = slice(first, first + len(index_B))
            yield labels.map(itemgetter(rows_of_batch))
            first = rows_of_batch.stop
        start = stop
