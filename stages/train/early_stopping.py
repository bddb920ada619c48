"""Early stopping: training ends when the accuracy on the held-out part has shown no gain for some epochs.

The decision is a function of the recorded metrics alone, so a resumed run stops where an uninterrupted run does. The
rule is that of Keras and Lightning: the best value changes only by a gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs in a row without a gain of more than `min_delta` percent in the metric `monitor`."""

    patience: int
    min_delta: float = 0.0
    monitor: str = "top1"

    def stops(self, values: Sequence[float]) -> bool:
        """Return whether training ends after epochs with these `values` of the metric, in percent."""
        return bool(values) and len(values) - self.best_epoch(values) >= self.patience

    def best_epoch(self, values: Sequence[float]) -> int:
        """Return the epoch of the last gain, counted from 1; the first epoch always is one."""
        best, epoch = values[0], 1
        for number, value in enumerate(values[1:], 2):
            if value - self.min_delta > best:
                best, epoch = value, number
        return epoch
