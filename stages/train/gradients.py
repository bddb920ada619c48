"""From named terms to the gradients in `p.grad`: summed, or aligned so that one term's gradient is never opposed.

The alignment rule is that of Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation", KDD 2025, arXiv
2411.08937: with g1 the protected gradient and g2 the rest's, both over all parameters, g2 loses its component along g1
where the two conflict. It is one-sided: g1 is never altered. Weight decay and clipping come after it and are the
caller's. Projecting tensor by tensor, or both gradients, would be other methods and is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AlignmentReport:
    """How the two gradients stood to each other, as scalars on their device: reading one waits for the device.

    They are of the gradients as computed, so with the square of any factor that `scale` applied; `cosine` and
    `conflict` are free of it.
    """

    dot: Tensor
    norm1_squared: Tensor
    norm2_squared: Tensor

    @property
    def cosine(self) -> Tensor:
        """The cosine between the gradients over all parameters; 0 where one of them is zero."""
        norms = self.norm1_squared.sqrt() * self.norm2_squared.sqrt()
        return torch.where(norms == 0, 0.0, self.dot / norms)

    @property
    def conflict(self) -> Tensor:
        """Whether the gradients opposed each other, so that the second one was projected: a bool scalar."""
        return self.dot < 0


def backward(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    parameters: Sequence[nn.Parameter],
    *,
    protected: str | None,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    average: Callable[[list[Tensor]], None] | None = None,
) -> AlignmentReport | None:
    """Put the gradient of the weighted terms into the `grad` of `parameters`, which the caller has cleared.

    `parameters` are all trainable ones, in an order that all processes share. With `protected` None this is one
    `backward()` of the weighted sum, which DDP's hooks average, and None comes back. Otherwise `protected` names the
    term whose gradient g1 is kept, g2 is the gradient of all others, and `grad` becomes
    (1 − c)·g1 + g2 with c = min(0, ⟨g1, g2⟩) / ‖g1‖², c = 0 where g1 = 0. A parameter that a loss doesn't reach counts
    as zero there; one that neither reaches keeps its `grad`, as after `backward()`.

    `scale` multiplies each loss (fp16's GradScaler). A common factor cancels in c, so scaled gradients are aligned like
    true ones; what overflowed stays non-finite, for the scaler to see. `average` replaces each tensor of a list by its
    mean over the processes, in place; it is applied to g1 and g2 before they are projected, for autograd.grad bypasses
    DDP, and projecting first would be another algorithm. All processes pass it lists of the same tensors: which
    parameters a loss reaches is a property of the graph, and that is the same everywhere.
    """
    assert terms.keys() == weights.keys(), f"terms {sorted(terms)}, weights {sorted(weights)}"
    weighted = {name: weights[name] * term for name, term in terms.items()}
    if protected is None:
        torch.autograd.backward([scale(_sum(weighted.values()))])
        return None

    first = scale(weighted.pop(protected))
    second = scale(_sum(weighted.values()))
    gradients1 = _gradients(first, parameters, retain_graph=True)
    gradients2 = _gradients(second, parameters, retain_graph=False)
    reached1 = [g1 for g1 in gradients1 if g1 is not None]
    reached2 = [g2 for g2 in gradients2 if g2 is not None]
    if average is not None:
        average(reached1)
        average(reached2)

    # What only one loss reaches adds nothing to the dot product; the network's body is what both reach.
    both = [(g1, g2) for g1, g2 in zip(gradients1, gradients2, strict=True) if g1 is not None and g2 is not None]
    products = torch._foreach_mul([g1 for g1, _ in both], [g2 for _, g2 in both])
    dot = torch.stack([product.sum() for product in products]).sum()
    report = AlignmentReport(dot, _norm_squared(reached1), _norm_squared(reached2))
    # clamp hands a NaN on, so that a gradient that overflowed is NaN after the projection too.
    c = torch.where(report.norm1_squared == 0, 0.0, dot.clamp(max=0) / report.norm1_squared)

    # All of g1 is multiplied, the part that g2 doesn't reach too: the projection's direction is g1 as a whole.
    torch._foreach_mul_(reached1, 1 - c)
    torch._foreach_add_([g1 for g1, _ in both], [g2 for _, g2 in both])
    for parameter, g1, g2 in zip(parameters, gradients1, gradients2, strict=True):
        merged = g2 if g1 is None else g1
        if merged is not None:
            parameter.grad = merged
    return report


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> list[Tensor | None]:
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    return [None if g is None else _owned(g, p) for g, p in zip(gradients, parameters, strict=True)]


def _owned(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    # backward() gives grad the layout of its parameter; autograd.grad hands out what the last operation made, which may
    # be an expanded view that nobody can write to. Differing layouts also throw _foreach and optimizers off their fast path.
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _norm_squared(gradients: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(gradients)).square().sum()
