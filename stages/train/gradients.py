"""From named terms to the gradients in `p.grad`: summed, or aligned so that some terms' gradient is never opposed.

The alignment rule is that of Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation", KDD 2025, arXiv
2411.08937: g1 is the gradient that is kept and g2 the one against it, both over all parameters, and g2 loses its
component along g1 if the two conflict. The rule is one-sided: g1 is never altered. Weight decay and clipping come
afterwards and are left to the caller. Projecting each tensor by itself, or both gradients, would be other methods.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# A gradient over all parameters: its tensors, by the position of their parameter. A parameter that the loss doesn't
# reach is absent, and counts as zero.
Gradient = dict[int, Tensor]


@dataclass(frozen=True)
class Alignment:
    """The terms whose gradient g1 is `kept`, and the terms `against` them, whose gradient g2 is projected.

    If `against` is None, it means all other terms. A term that is in neither is added as it is. The coefficient of the
    projection is computed in every step of an epoch whose number, from 0, is a multiple of `every`, and is used in the
    steps that follow. Above 1 that is an approximation, which saves those steps the second backward pass.
    """

    kept: tuple[str, ...]
    against: tuple[str, ...] | None = None
    every: int = 1

    def split(self, names: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """The names of the terms that are kept, of those against them, and of all others."""
        kept: list[str] = []
        against: list[str] = []
        free: list[str] = []
        for name in names:
            group = kept if name in self.kept else against if self.against is None or name in self.against else free
            group.append(name)
        return kept, against, free


@dataclass(frozen=True)
class AlignmentReport:
    """How g1 and g2 relate to each other, as scalars on their device: reading one waits for the device.

    They belong to the gradients as computed, so they contain the square of the factor of `scale`; `cosine` and
    `conflict` don't.
    """

    dot: Tensor
    norm1_squared: Tensor
    norm2_squared: Tensor

    @property
    def cosine(self) -> Tensor:
        """The cosine between the gradients over all parameters; 0 if one of them is zero."""
        norms = self.norm1_squared.sqrt() * self.norm2_squared.sqrt()
        return torch.where(norms == 0, 0.0, self.dot / norms)

    @property
    def conflict(self) -> Tensor:
        """Whether the gradients opposed each other, so that g2 was projected: a bool scalar."""
        return self.dot < 0

    @property
    def coefficient(self) -> Tensor:
        """c = min(0, ⟨g1, g2⟩) / ‖g1‖², or 0 if g1 = 0: the share of g1 that the projection subtracts from g2."""
        # clamp passes a NaN on, so a gradient that overflowed stays non-finite after the projection.
        return torch.where(self.norm1_squared == 0, 0.0, self.dot.clamp(max=0) / self.norm1_squared)


def backward(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    parameters: Sequence[nn.Parameter],
    *,
    alignment: Alignment | None,
    coefficient: Tensor | None = None,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    average: Callable[[list[Tensor]], None] | None = None,
) -> AlignmentReport | None:
    """Write the gradient of the weighted terms into the `grad` of `parameters`, which the caller has cleared.

    `parameters` are all that are trained, in the same order in all processes. Without an `alignment` this is one
    `backward()` of the weighted sum, which DDP's hooks average. With one, g1 is the gradient of the terms that are
    kept, g2 of those against them, g3 of the others, and `grad` becomes (1 − c)·g1 + g2 + g3 with
    c = min(0, ⟨g1, g2⟩) / ‖g1‖², or c = 0 if g1 = 0. If c is given, as the `coefficient` of an earlier step, this is
    one `backward()` again, of terms weighted by it. A parameter that no term reaches keeps its `grad`, as after
    `backward()`. Only a step that computed c returns a report.

    `scale` multiplies each loss (the GradScaler of fp16). A common factor cancels in c, so scaled gradients are aligned
    as the true ones would be, and a gradient that overflowed stays non-finite, for the scaler to see. `average`
    replaces each tensor of a list by its mean over the processes, in place. It gets the gradients before they are
    projected: autograd.grad bypasses DDP, and projecting first would be another algorithm. Every process passes it the
    same lists, because which parameters a loss reaches is a property of the graph, which is the same in all processes.
    """
    assert terms.keys() == weights.keys(), f"terms {sorted(terms)}, weights {sorted(weights)}"
    weighted = {name: weights[name] * term for name, term in terms.items()}
    if alignment is None:
        torch.autograd.backward(scale(_sum(weighted.values())))
        return None

    groups = alignment.split(weighted)
    assert groups[0], f"no term is kept of {sorted(terms)}"
    assert groups[1], f"no term is against those that are kept, of {sorted(terms)}"
    if coefficient is not None:
        g1_of, *others_of = [_sum(weighted[name] for name in names) for names in groups if names]
        torch.autograd.backward(scale(_sum([(1 - coefficient) * g1_of, *others_of])))
        return None
    losses = [scale(_sum(weighted[name] for name in names)) for names in groups if names]
    kept = losses[0]
    gradients = [_gradient(loss, parameters, retain_graph=loss is not losses[-1]) for loss in losses]
    if average is not None:
        for gradient in gradients:
            average(list(gradient.values()))
    g1, g2, *free = gradients

    shared = [i for i in g1 if i in g2]  # a parameter that only one loss reaches adds nothing to the product
    report = AlignmentReport(
        dot=_dot([g1[i] for i in shared], [g2[i] for i in shared], like=kept),
        norm1_squared=_norm_squared(g1),
        norm2_squared=_norm_squared(g2),
    )
    c = report.coefficient

    # All of g1 is multiplied, also where g2 doesn't reach: the projection is along g1 as a whole. It is not done in
    # place, because autograd may return one tensor for two parameters.
    merged = dict(zip(g1, torch._foreach_mul(list(g1.values()), 1 - c), strict=True))
    if shared:
        torch._foreach_add_([merged[i] for i in shared], [g2[i] for i in shared])
    total = g2 | merged
    for others in free:
        common = [i for i in others if i in total]
        sums = torch._foreach_add([total[i] for i in common], [others[i] for i in common]) if common else ()
        total |= others | dict(zip(common, sums, strict=True))
    for i, summed in total.items():
        parameters[i].grad = summed
    return report


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> Gradient:
    tensors = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    return {i: _laid_out_like(parameters[i], g) for i, g in enumerate(tensors) if g is not None}


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    # backward() gives `grad` the layout of its parameter. autograd.grad returns what the last operation made. That may
    # be an expanded view, which can't be written to, or of another memory format, which slows _foreach and optimizers.
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _dot(first: list[Tensor], second: list[Tensor], *, like: Tensor) -> Tensor:
    if not first:
        return torch.zeros_like(like)
    return _sum(product.sum() for product in torch._foreach_mul(first, second))


def _norm_squared(gradient: Gradient) -> Tensor:
    return torch.stack(torch._foreach_norm(list(gradient.values()))).square().sum()
