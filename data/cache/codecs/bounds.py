"""What the error bound of stored logits means for losses that are computed from these logits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Bounds for stored logits t' that differ from the teacher's logits t by at most ε = `error`.

    The losses have the temperature τ; the bounds hold without the losses' factor τ². With δ = (t' − t)/τ, KL is half
    the variance of δ under the softmax of some logits between t/τ and t'/τ, and that variance is at most (ε/τ)².
    BinaryKL is Σ ½ σ(1 − σ) δ² over the classes, where σ is the sigmoid of some value between t/τ and t'/τ; so BinaryKL
    is at most Σ δ²/8.
    """

    error: float
    num_classes: int

    def kl(self, temperature: float) -> float:
        """Return an upper bound of KL(softmax(t/τ) ‖ softmax(t'/τ)), for teacher logits t and stored logits t'."""
        return self.error**2 / (2 * temperature**2)

    def binary_kl(self, temperature: float) -> float:
        """Return an upper bound of Σ KL(Bernoulli(σ(t/τ)) ‖ Bernoulli(σ(t'/τ))), summed over the classes.

        σ is the sigmoid, and t and t' are the teacher's and the stored logits.
        """
        return self.num_classes * self.error**2 / (8 * temperature**2)

    @property
    def margin(self) -> float:
        """The top class can change only if its logit leads the next one by at most this margin."""
        return 2 * self.error
