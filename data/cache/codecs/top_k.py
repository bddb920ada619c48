"""The largest logits of a row stored individually, and the other classes as one sum of probabilities."""

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
    """A row's `k` largest logits as float16, and the sum of the other classes' probabilities at `temperature`.

    When a row is read, the other classes share that sum equally. In softmax(logits / temperature), the k largest
    probabilities and the sum of the others then equal the teacher's, up to rounding. At other temperatures, they don't.
    The individual logits of the other classes are lost.
    """

    k: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    kind: Literal["top-k"] = "top-k"

    lossless: ClassVar[bool] = False
    logits_only: ClassVar[bool] = True

    @property
    def kept(self) -> int:
        """How many logits of a row are stored individually."""
        return self.k

    def misfit(self, row: tuple[int, ...]) -> str | None:
        """Return why rows of this shape can't be stored; a row must consist of K logits, with K above k."""
        if len(row) == 1 and self.k < row[0]:
            return None
        return f"top-k keeps fewer than all values of a row, expected k below {row}"

    def parts(self, row: tuple[int, ...]) -> dict[str, Part]:
        """Return dtype and row shape of each part, by the part's name.

        The part whose name is the empty string holds the k largest logits, and "class" holds their classes. The part
        "tail" holds τ · log Σ exp(logit / τ), where τ is `temperature` and the sum runs over the row's other logits.
        """
        (num_classes,) = row
        return {"": ("float16", (self.k,)), "class": (_class_dtype(num_classes), (self.k,)), "tail": ("float32", ())}

    def encode(self, values: NDArray[np.float32]) -> dict[str, Array]:
        """Encode the k largest logits in falling order; among equal logits, the smaller class comes first."""
        order = _split_order(values, self.k)
        top, rest = np.sort(order[:, : self.k], axis=1) & CLASS_BITS, order[:, self.k :] & CLASS_BITS
        with np.errstate(over="ignore"):
            logits = np.take_along_axis(values, top, axis=1).astype(np.float16)
        tail = self._log_sum_exp(np.take_along_axis(values, rest, axis=1))
        return {"": logits, "class": top.astype(_class_dtype(values.shape[1])), "tail": tail.astype(np.float32)}

    def decode(self, parts: Mapping[str, Tensor], row: tuple[int, ...]) -> Tensor:
        """Return logits, float32 (rows, K); all classes that are not stored individually get the same logit."""
        (num_classes,) = row
        share = parts["tail"] - self.temperature * float(np.log(num_classes - self.k))
        values = share[:, None].expand(-1, num_classes).clone()
        return values.scatter_(1, parts["class"].long(), parts[""].float())

    def impossible(self, parts: Mapping[str, Array], row: tuple[int, ...]) -> str | None:
        """Return which class the parts name that there isn't, or None."""
        least, most = int(parts["class"].min()), int(parts["class"].max())
        if 0 <= least <= most < row[0]:
            return None
        return f"classes expected 0 to {row[0] - 1}, got {least} to {most}"

    def errors(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Return ε of each row, the largest rounding error of its k stored logits; the other logits have no bound."""
        return float16_errors(parts[""])

    def tail_mass(self, parts: Mapping[str, Array]) -> NDArray[np.float64]:
        """Return each row's total probability, at `temperature`, of the classes that aren't stored individually.

        With τ = `temperature`, batch size N, student logits s and teacher logits t, the gradient of the KD loss in s is
        τ/N · (softmax(s/τ) − softmax(t/τ)). The absolute errors of this gradient, summed over classes, are at most
        twice the returned probability times τ/N, plus the error from rounding the k logits to float16.
        """
        top = self._log_sum_exp(parts[""].astype(np.float64))
        tail = parts["tail"].astype(np.float64)
        largest = np.maximum(top, tail)  # so that no exponent is positive, however low the temperature
        top, tail = (np.exp((part - largest) / self.temperature) for part in (top, tail))
        return np.asarray(tail / (top + tail))

    def difference(self, parts: Mapping[str, Array], values: NDArray[np.float32]) -> float:
        """Return the largest absolute difference between what is stored and the same numbers computed from `values`.

        `values` is float32 (rows, K). For each row, the k stored logits are compared, and the log-sum-exp of the other
        logits, i.e. the part "tail".
        """
        classes = parts["class"].astype(np.int64)
        top = np.abs(parts[""].astype(np.float64) - np.take_along_axis(values, classes, axis=1)).max()
        rest = values.astype(np.float64)
        np.put_along_axis(rest, classes, -np.inf, axis=1)
        tail = np.abs(self._log_sum_exp(rest) - parts["tail"].astype(np.float64)).max()
        return max(float(top), float(tail))

    def refusal(self, temperature: float | None) -> str | None:
        """Return why the stored values aren't enough for an objective, or None if they are.

        The objective reads probabilities at `temperature`, or raw logits if `temperature` is None.
        """
        stored = f"only the {self.k} largest logits of a row and the others' mass at temperature {self.temperature:g}"
        if temperature is None:
            return f"it needs raw logits of all classes, and the cache holds {stored}"
        if temperature != self.temperature:
            return f"it needs probabilities at temperature {temperature:g}, and the cache holds {stored}"
        return None

    def _log_sum_exp(self, values: Array) -> NDArray[np.float64]:
        """Compute τ · log Σ exp(value / τ) of each row, with τ = `temperature`."""
        exact = values.astype(np.float64)
        largest = exact.max(axis=1)
        with np.errstate(over="ignore"):  # dividing by a low temperature may overflow to -inf; exp then gives 0
            terms = np.exp((exact - largest[:, None]) / self.temperature)
        return np.asarray(largest + self.temperature * np.log(terms.sum(axis=1)))


def _split_order(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return one integer for each value of a row, with the integers of the k largest values first.

    An integer's lower half (`CLASS_BITS`) is the value's class, and its upper half falls as the value rises. So the
    integers sort by falling value, then by class. All integers differ, so every sorting algorithm gives the same order.
    """
    bits = np.subtract(0, values, dtype=np.float32).view(np.int32).astype(np.int64)  # 0 - x is +0 for both zeros
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # bits of negative floats fall as the values rise
    order: NDArray[np.int64] = np.partition(rising << 32 | np.arange(values.shape[1]), k - 1, axis=1)
    return order


def _class_dtype(num_classes: int) -> str:
    return "uint8" if num_classes <= 256 else "int16" if num_classes <= 2**15 else "int32"
