"""Pictures on the way through a recipe's operations, as photos or as pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from dhkd.data.images.decoding import Photo, photo_of, pixels_of
from numpy.typing import NDArray
from torch import Tensor


class Pictures:
    """Pictures of one size, given either as photos or as pixels; the other is computed if it is asked for.

    So photos that an operation changes by Pillow's functions are converted only if another operation needs pixels.
    """

    def __init__(self, given: Sequence[Photo] | Tensor) -> None:
        self._given = given

    @property
    def photos(self) -> Sequence[Photo]:
        """The pictures as photos."""
        if not isinstance(self._given, Tensor):
            return self._given
        return [photo_of(pixels_CHW) for pixels_CHW in self._given.numpy()]

    @property
    def tensor(self) -> Tensor:
        """The pictures as pixels, uint8 (B, C, H, W)."""
        if isinstance(self._given, Tensor):
            return self._given
        return torch.from_numpy(np.stack([pixels_of(photo) for photo in self._given])).permute(0, 3, 1, 2)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The pictures as pixels, uint8 (B, H, W, C), which may be read-only."""
        if not isinstance(self._given, Tensor) and len(self._given) == 1:  # as usual in training: no copy
            return pixels_of(self._given[0])[None]
        pixels_BHWC: NDArray[np.uint8] = channels_last(self.tensor).permute(0, 2, 3, 1).numpy()
        return pixels_BHWC


def channels_last(pixels_BCHW: Tensor) -> Tensor:
    """Return the pixels channels last in memory."""
    if pixels_BCHW.is_contiguous(memory_format=torch.channels_last):
        return pixels_BCHW
    # Faster than `contiguous`, which handles three channels one by one for every pixel.
    return torch.stack(pixels_BCHW.unbind(1), dim=-1).permute(0, 3, 1, 2)
