"""From named loss terms to the gradients in the parameters' `grad`, which are either summed or aligned.

Aligned gradients don't oppose the gradient of the protected terms.

The alignment rule is from Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation", KDD 2025, arXiv 2411.08937.
g1 is the gradient of the protected terms and g2 the gradient of the terms that must not oppose them, both over all
parameters. If the two conflict, i.e. ⟨g1, g2⟩ < 0, the component of g2 along g1 is removed; g1 is never altered. The
caller applies clipping and weight decay afterwards. Projecting each parameter tensor separately, or projecting both
gradients, would be a different method.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# A gradient over all parameters: one tensor for each parameter, by the parameter's position. A parameter that the loss
# doesn't reach is absent; its gradient counts as zero.
Gradient = dict[int, Tensor]


@dataclass(frozen=True)
class Alignment:
    """Names of the protected terms, `kept` (gradient g1), and of the terms that must not oppose them, `against` (g2).

    If `against` is None, g2 is the gradient of all other terms. The gradient of a term in neither group is added
    unchanged. The coefficient c of the projection (see `backward`) is computed in every `every`-th step, starting with
    an epoch's first step, and reused in the steps between. `every` above 1 is an approximation: a step that reuses c
    needs only one backward pass.
    """

    kept: tuple[str, ...]
    against: tuple[str, ...] | None = None
    every: int = 1

    def split(self, names: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
        """Split the names of terms into the protected terms, the terms that must not oppose them, and the rest."""
        kept: list[str] = []
        against: list[str] = []
        free: list[str] = []
        for name in names:
            group = kept if name in self.kept else against if self.against is None or name in self.against else free
            group.append(name)
        return kept, against, free


@dataclass(frozen=True)
class AlignmentReport:
    """How g1 and g2 relate, as scalar tensors on the device of the gradients; reading a value waits for the device.

    g1 is the gradient of the protected terms, g2 the gradient of the terms that must not oppose them. The three fields
    are computed from gradients that `backward` multiplied by the factor of its argument `scale`, so they contain the
    square of this factor. The factor cancels in the properties.
    """

    dot: Tensor
    norm1_squared: Tensor
    norm2_squared: Tensor

    @property
    def cosine(self) -> Tensor:
        """The cosine between g1 and g2 over all parameters; 0 if either gradient is zero."""
        norms = self.norm1_squared.sqrt() * self.norm2_squared.sqrt()
        return torch.where(norms == 0, 0.0, self.dot / norms)

    @property
    def conflict(self) -> Tensor:
        """Whether g1 and g2 opposed each other, so that g2 was projected: a bool scalar."""
        return self.dot < 0

    @property
    def coefficient(self) -> Tensor:
        """c = min(0, ⟨g1, g2⟩) / ‖g1‖², or 0 if g1 = 0: the projection subtracts c·g1 from g2."""
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
    """Write the gradient of the weighted terms into the `grad` of `parameters`.

    `parameters` contains every trained parameter, in the same order in every process, with `grad` cleared. If
    `alignment` is None, this is one `backward()` of the weighted sum. With an alignment, the terms fall into three
    groups: the protected terms (gradient g1), the terms that must not oppose them (g2) and the rest (g3). Then
    grad = (1 − c)·g1 + g2 + g3 with c = min(0, ⟨g1, g2⟩) / ‖g1‖², or c = 0 if g1 = 0. If `coefficient` is given, it is
    used as c, and a single `backward()` suffices; it is the c of an earlier step. A parameter that no term reaches
    keeps its `grad`, as after `backward()`. Returns an `AlignmentReport` if this call computes c, otherwise None.

    `scale` multiplies every loss by a factor (fp16's GradScaler). This factor cancels in c, and a gradient that
    overflowed stays non-finite, so that the scaler notices. `average` replaces tensors by their mean over the
    processes, in place; if it is None, nothing is averaged. `average` is called only if c is computed: computing c uses
    autograd.grad, which bypasses DDP, while DDP averages in `backward()`. `average` comes before the projection,
    because averaging projected gradients would give a different result. Every process averages the same list of
    tensors, because the graph decides which parameters a loss reaches, and the graph is the same in every process.
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
    return align(gradients_by_group(terms, weights, parameters, alignment=alignment, scale=scale), parameters, average)


def gradients_by_group(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    parameters: Sequence[nn.Parameter],
    *,
    alignment: Alignment,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> list[Gradient]:
    """Compute g1, g2 and, if there are terms in neither group, g3 of the weighted terms, for `align`."""
    weighted = {name: weights[name] * term for name, term in terms.items()}
    groups = alignment.split(weighted)
    assert groups[0], f"no term is kept of {sorted(terms)}"
    assert groups[1], f"no term is against those that are kept, of {sorted(terms)}"
    losses = [scale(_sum(weighted[name] for name in names)) for names in groups if names]
    return [_gradient(loss, parameters, retain_graph=loss is not losses[-1]) for loss in losses]


def added(first: Sequence[Gradient], second: Sequence[Gradient]) -> list[Gradient]:
    """Add the gradients of two parts of a batch, group by group."""
    return [_plus(one, other) for one, other in zip(first, second, strict=True)]


def align(
    gradients: Sequence[Gradient],
    parameters: Sequence[nn.Parameter],
    average: Callable[[list[Tensor]], None] | None = None,
) -> AlignmentReport:
    """Write the aligned sum of g1, g2 and, if given, g3 into the `grad` of `parameters`, as `backward` describes."""
    if average is not None:
        for gradient in gradients:
            average(list(gradient.values()))
    g1, g2, *free = gradients

    shared = [
        i for i in g1 if i in g2
    ]  # a parameter that only one of the losses reaches adds nothing to the dot product
    report = AlignmentReport(
        dot=_dot([g1[i] for i in shared], [g2[i] for i in shared], like=next(iter(g1.values()))),
        norm1_squared=_norm_squared(g1),
        norm2_squared=_norm_squared(g2),
    )
    c = report.coefficient

    # All tensors of g1 are multiplied, even those of parameters that g2 doesn't reach, because the projection is along
    # the whole of g1. The product is not in place, because autograd may return one tensor for two parameters.
    merged = dict(zip(g1, torch._foreach_mul(list(g1.values()), 1 - c), strict=True))
    if shared:
        torch._foreach_add_([merged[i] for i in shared], [g2[i] for i in shared])
    total = g2 | merged
    for others in free:
        total = _plus(total, others)
    for i, summed in total.items():
        parameters[i].grad = summed
    return report


def _plus(total: Gradient, others: Gradient) -> Gradient:
    common = [i for i in others if i in total]
    sums = torch._foreach_add([total[i] for i in common], [others[i] for i in common]) if common else ()
    return total | others | dict(zip(common, sums, strict=True))


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> Gradient:
    tensors = torch.autograd.grad(loss, list(parameters), retain_graph=retain_graph, allow_unused=True)
    return {i: _laid_out_like(parameters[i], g) for i, g in enumerate(tensors) if g is not None}


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    # backward() gives `grad` the layout of its parameter; autograd.grad returns the last operation's result unchanged.
    # This may be an expanded view, which can't be written to, or a tensor in another memory format, which slows
    # _foreach functions and optimizers.
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _dot(first: list[Tensor], second: list[Tensor], *, like: Tensor) -> Tensor:
    if not first:
        return like.new_zeros(())
    return _sum(product.sum() for product in torch._foreach_mul(first, second))


def _norm_squared(gradient: Gradient) -> Tensor:
    return torch.stack(torch._foreach_norm(list(gradient.values()))).square().sum()
