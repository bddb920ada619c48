"""The interface of pixel operations: what happens to a view's pixels after the recipe has cropped or resized them.

An operation's draws come from a domain of its own, so adding an operation changes no draws of others. Its pixels are
computed from integers with integer arithmetic, so that they are the same for any batch, number of threads and device.
Definitions (parameters, ranges, probabilities) are torchvision's.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

from dhkd.data.draws.keyed import DrawBlock, draws_of_blocks
from dhkd.data.draws.philox import Domain
from dhkd.data.errors import ConfigError
from dhkd.data.images.base import PerChannel
from dhkd.data.images.pictures import Pictures
from torch import Tensor


class Operation(ABC):
    """A pixel operation, a frozen dataclass whose fields are its settings in `views`.

    A change of its draws or pixels needs a new `version`, because caches record that number.
    """

    domain: ClassVar[Domain]
    version: ClassVar[int] = 1
    row_draws: ClassVar[int | None] = None  # the most draws that any settings need, if they need more than 8
    main_field: ClassVar[str] = "probability"  # the field that a bare word or number sets

    @property
    def identity(self) -> dict[str, object]:
        """The operation as plain values, which a cache records and compares."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # a dataclass
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return {"version": self.version, **plain}

    @property
    @abstractmethod
    def num_draws(self) -> int:
        """The number of draws for each key."""

    @property
    def block(self) -> DrawBlock:
        """The draws of each key."""
        return DrawBlock(self.domain, self.num_draws, self.row_draws)

    def draws(self, seed: int, view_B: Tensor, index_B: Tensor) -> Tensor:
        """Return the draws of each key, integers in [0, 2³²) as int64 (B, num_draws), on the device of the keys."""
        return draws_of_blocks(seed, [self.block], view_B, index_B)[0]

    @abstractmethod
    def apply(self, pixels_BCHW: Tensor, draws_BD: Tensor) -> Tensor:
        """Return the changed pixels, uint8 (B, C, H, W), C = 1 or 3, from pixels and draws on the same device.

        The pixels given are not changed.
        """

    def change(self, pictures: Pictures, draws_BD: Tensor) -> Pictures:
        """Return the changed pictures, with the bytes that `apply` gives. An operation on photos overrides this."""
        return Pictures(self.apply(pictures.tensor, draws_BD))

    def at_size(self, before: int, after: int) -> "Operation":
        """Return the operation that changes, for every key, the same part of images of another side, in pixels.

        Operations that depend on positions or lengths override this.
        """
        return self

    def for_mean(self, mean: PerChannel) -> "Operation":
        """Return the operation for a data set with this mean pixel value of each channel, 0 to 1."""
        return self


def require(name: str, field: str, condition: bool, expected: str, value: object) -> None:
    """Raise `ConfigError` for the value of an operation's field unless `condition` is true."""
    if not condition:
        raise ConfigError(f"views.{name}: {field}: expected {expected}, got {value}")


def require_probability(name: str, probability: float) -> None:
    """Raise `ConfigError` unless a probability is above 0 and at most 1."""
    require(name, "probability", 0 < probability <= 1, "above 0, up to 1", probability)


def require_range(name: str, field: str, limits: tuple[float, float], least: float, most: float) -> None:
    """Raise `ConfigError` unless two limits are in order, and both from `least` to `most`."""
    ordered = least <= limits[0] <= limits[1] <= most
    require(name, field, ordered, f"{least:g} <= smallest <= largest <= {most:g}", list(limits))
