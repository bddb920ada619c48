"""The largest logits of a row stored one by one, the others as one sum of probabilities."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from dhkd.data.cache.blocks import Array, Part
from dhkd.data.cache.codecs.floats import float16_errors
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

CLASS_BITS = 2**32 - 1


@dataclass(frozen=True)
class TopK:
    """A row's `k` largest logits as float16, and what the other classes' probabilities add up to at `temperature`.

    When a row is read, the other classes share that mass equally: softmax(t / temperature) has the k largest
    probabilities, and the sum of the others, as the teacher gave them. At other temperatures neither holds, and the
    logits of the other classes are lost.
    """

    k: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    kind: Literal["top-k"] = "top-k"

    lossless: ClassVar[bool] = False
    logits_only: ClassVar[bool] = True

    @property
    def kept(self) -> int:
        """How many logits of a row are stored one by one."""
        return self.k

    def misfit(self, row: tuple[int, ...]) -> str | None:
        """Why rows of this shape can't be stored: a row is K logits, with K above k."""
        if len(row) == 1 and self.k < row[0]:
            return None
        return f"top-k keeps fewer than all values of a row, expected k below {row}"

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """The k logits, their classes, and the log-sum-exp of the others in units of logits."""
        (num_classes,) = row
        return {"": ("float16", (self.k,)), "class": (_class_dtype(num_classes), (self.k,)), "tail": ("float32", ())}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """The largest logit first; of equal ones the smaller class first."""
        order = _split_order(values, self.k)
        top, rest = np.sort(order[:, : self.k], axis=1) & CLASS_BITS, order[:, self.k :] & CLASS_BITS
        with np.errstate(over="ignore"):
            logits = np.take_along_axis(values, top, axis=1).astype(np.float16)
        tail = self._log_sum_exp(np.take_along_axis(values, rest, axis=1))
        return {"": logits, "class": top.astype(_class_dtype(values.shape[1])), "tail": tail.astype(np.float32)}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """The values, float32 (rows, K)."""
        (num_classes,) = row
        share = parts["tail"] - self.temperature * float(np.log(num_classes - self.k))
        values = share[:, None].expand(-1, num_classes).clone()
        return values.scatter_(1, parts["class"].long(), parts[""].float())

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """ε of the k logits of each row; the other classes have no bound."""
        return float16_errors(parts[""])

    def tail_mass(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Each row's probability, at `temperature`, of the classes that aren't stored one by one.

        The gradient of KD at that temperature, τ/N · (softmax(s/τ) − softmax(t/τ)), differs by at most twice this times
        τ/N, summed over classes, plus what rounding the k logits to float16 adds.
        """
        top = self._log_sum_exp(parts[""].astype(np.float64))
        tail = parts["tail"].astype(np.float64)
        largest = np.maximum(top, tail)  # so that no exponent is positive, however low the temperature
        top, tail = (np.exp((part - largest) / self.temperature) for part in (top, tail))
        return np.asarray(tail / (top + tail))

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """The largest absolute difference of the k logits, and of the log-sum-exp of the others."""
        classes = parts["class"].astype(np.int64)
        top = np.abs(parts[""].astype(np.float64) - np.take_along_axis(values, classes, axis=1)).max()
        rest = values.astype(np.float64)
        np.put_along_axis(rest, classes, -np.inf, axis=1)
        tail = np.abs(self._log_sum_exp(rest) - parts["tail"].astype(np.float64)).max()
        return max(float(top), float(tail))

    def refusal(self, temperature: float | None) -> str | None:
        """Why the stored values can't serve an objective that reads probabilities at `temperature`, or raw logits."""
        stored = f"only the {self.k} largest logits of a row and the others' mass at temperature {self.temperature:g}"
        if temperature is None:
            return f"it needs raw logits of all classes, and the cache holds {stored}"
        if temperature != self.temperature:
            return f"it needs probabilities at temperature {temperature:g}, and the cache holds {stored}"
        return None

    def _log_sum_exp(self, values: Array) -> NDArray[np.float64]:
        """τ · log Σ exp(value / τ) of each row."""
        exact = values.astype(np.float64)
        largest = exact.max(axis=1)
        with np.errstate(over="ignore"):  # a difference over a low temperature may overflow to -inf: exp then gives 0
            terms = np.exp((exact - largest[:, None]) / self.temperature)
        return np.asarray(largest + self.temperature * np.log(terms.sum(axis=1)))


def _split_order(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Each row's classes with the k largest values first, as integers that sort by falling value, then by class.

    The class is in the lower half, `CLASS_BITS`. All integers differ, so their order is the same whatever sorts them.
    """
    bits = np.subtract(0, values, dtype=np.float32).view(np.int32).astype(np.int64)  # 0 - x makes both zeros equal
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats rise as their bits fall
    order: NDArray[np.int64] = np.partition(rising << 32 | np.arange(values.shape[1]), k - 1, axis=1)
    return order


def _class_dtype(num_classes: int) -> str:
    return "uint8" if num_classes <= 256 else "int16" if num_classes <= 2**15 else "int32"
