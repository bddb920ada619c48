"""What the error bound of stored logits means for losses that are computed from these logits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Bounds for stored logits t' that differ from the teacher's logits t by at most ε = `error`.

    Losses are bounded before their factor τ². With δ = (t' − t)/τ, KL is half the variance of δ under some softmax
    between the two, and that variance is at most (ε/τ)². BinaryKL is Σ ½ σ(1 − σ) δ² at some σ between the two, which
    is at most Σ δ²/8.
    """

    error: float
    num_classes: int

    def kl(self, temperature: float) -> float:
        """Return an upper bound of KL(softmax(t/τ) ‖ softmax(t'/τ))."""
        return self.error**2 / (2 * temperature**2)

    def binary_kl(self, temperature: float) -> float:
        """Return an upper bound of Σ KL(Bernoulli(σ(t/τ)) ‖ Bernoulli(σ(t'/τ)))."""
        return self.num_classes * self.error**2 / (8 * temperature**2)

    @property
    def margin(self) -> float:
        """The top class can change only if its logit leads the next one by at most this margin."""
        return 2 * self.error
