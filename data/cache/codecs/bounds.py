"""What the error bound of stored logits means for losses that are computed from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """What logits t' that lie within ε = `error` of t mean for losses, before their factor τ², and for the top class.

    With δ = (t' − t)/τ, KL is half the variance of δ under some softmax between the two, at most (ε/τ)²; BinaryKL is
    Σ ½ σ(1 − σ) δ² at some σ between the two, at most Σ δ²/8.
    """

    error: float
    num_classes: int

    def kl(self, temperature: float) -> float:
        """The most that KL(softmax(t/τ) ‖ softmax(t'/τ)) can be."""
        return self.error**2 / (2 * temperature**2)

    def binary_kl(self, temperature: float) -> float:
        """The most that Σ KL(Bernoulli(σ(t/τ)) ‖ Bernoulli(σ(t'/τ))) can be."""
        return self.num_classes * self.error**2 / (8 * temperature**2)

    @property
    def margin(self) -> float:
        """The top class can change only if it leads by at most this."""
        return 2 * self.error
