"""A weighted sum of several objectives (the parts), such as "dhkd + reviewkd" or "kd + 0.5 * rkd"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dhkd.data.errors import ConfigError, unknown
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.architecture import Architecture
from dhkd.stages.models.network import Network
from dhkd.stages.models.student import AuxiliaryHead, StudentOutputs
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.objectives.contract import LATE, Objective, Setting
from torch import Tensor, nn

CE = "ce"

Part = tuple[str, float, Objective]  # name, factor, objective


class Adapters(nn.Module):
    """The adapters (modules trained with the student and then dropped) of all parts, by the parts' names.

    No adapter sees features that another adapter computed.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        modules = {part.replace(".", "_"): module for part, module in parts.items()}  # torch's names have no dots
        self.parts = nn.ModuleDict(modules)
        self.same_in_every_process = [
            f"parts.{part}.{name}"
            for part, module in modules.items()
            for name in getattr(module, "same_in_every_process", ())
        ]

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute the features of all adapters, in one dictionary."""
        return {name: value for part in self.parts.values() for name, value in part(features, batch).items()}


@dataclass(frozen=True)
class Combined(Objective):
    """The terms of all `parts`, each a (name, factor, objective); every weight is multiplied by the part's factor.

    Cross-entropy is taken from the first part that has a term `ce`, since the other parts would only repeat this term.
    A part that changes nothing, because it has no other term or because the rest has the same cross-entropy, raises
    `ConfigError`: two names for one method would be compared as two methods.
    If `aligned` is None, the first part that has an alignment determines which terms are protected, and their gradient
    is protected from all other terms that compare logits. Raises `ConfigError` for parts that don't fit together,
    and for an `aligned` that names unknown terms or leaves no term to protect or to project.
    """

    parts: tuple[Part, ...]
    aligned: Alignment | None = None

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.parts]
        if len(set(names)) < len(names):
            raise ConfigError(f"objective: expected each only once, got {' + '.join(names)}")
        terms: dict[str, str] = {}
        for name, _, part in self.parts:
            for term in part.weights(0):
                if term != CE and term in terms:
                    raise ConfigError(f"objective: {terms[term]} and {name} both have a term {term}; leave one out")
                terms[term] = name
        heads = {part.auxiliary for _, _, part in self.parts} - {None}
        if len(heads) > 1:
            raise ConfigError(f"objective: the parts need different auxiliary heads: {' and '.join(map(str, heads))}")
        self._require_that_each_counts()
        if self.aligned is not None:
            self._check(self.aligned, terms)

    def _require_that_each_counts(self) -> None:
        for position, (name, _, _) in enumerate(self.parts):
            others = [*self.parts[:position], *self.parts[position + 1 :]]
            if not others or _effect(self.parts) != _effect(others):
                continue
            first = [self.parts[position], *others]
            remedy = "put it first or leave it out" if _effect(first) != _effect(others) else "leave it out"
            raise ConfigError(
                f"objective: expected that each part adds a term, got {name}, which adds nothing to"
                f" {' + '.join(other for other, _, _ in others)} in {' + '.join(part for part, _, _ in self.parts)};"
                f" {remedy}"
            )

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        """Whether the terms of any part compare the rows of a batch with each other."""
        return any(part.couples_rows for _, _, part in self.parts)

    @property
    def remembers_rows(self) -> bool:  # type: ignore[override]
        """Whether any part changes what later rows are compared with."""
        return any(part.remembers_rows for _, _, part in self.parts)

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        """Whether the steps of all parts can be captured as CUDA graphs."""
        return all(part.capturable for _, _, part in self.parts)

    @property
    def label_smoothing(self) -> float:  # type: ignore[override]
        """The share of the target that the term `ce` spreads over all classes by an option of its part."""
        return next((part.label_smoothing for _, _, part in self.parts if CE in part.weights(0)), 0.0)

    @property
    def of_labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The terms of all parts that are computed from labels, each name once."""
        return tuple(dict.fromkeys(term for _, _, part in self.parts for term in part.of_labels))

    @property
    def needs_labels(self) -> Sequence[str]:
        """The terms for which images need labels; for `ce`, the weight in the combination decides."""
        of_parts = (term for _, _, part in self.parts for term in part.needs_labels if term != CE)
        return list(dict.fromkeys([*super().needs_labels, *of_parts]))

    @property
    def of_one_class(self) -> Sequence[str]:  # type: ignore[override]
        """The names of the methods, among all parts, that need one class for each image."""
        return [name for _, _, part in self.parts for name in part.of_one_class]

    @property
    def takes_of_teacher(self) -> str | None:  # type: ignore[override]
        """The components of the teacher's network that the parts need, joined by "and"; None if they need none."""
        return " and ".join(part.takes_of_teacher for _, _, part in self.parts if part.takes_of_teacher) or None

    @property
    def auxiliary(self) -> AuxiliaryHead | None:
        """The auxiliary head of the first part that has one, or None if no part has an auxiliary head."""
        return next((part.auxiliary for _, _, part in self.parts if part.auxiliary), None)

    @property
    def alignment(self) -> Alignment | None:
        """The alignment of the combined terms, or None if neither `aligned` is given nor a part has an alignment."""
        if self.aligned is not None:
            return self._resolved(self.aligned)
        alignment = next((part.alignment for _, _, part in self.parts if part.alignment), None)
        return alignment and self._resolved(replace(alignment, against=None))

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Merge the needs of all parts.

        Probabilities suffice for a signal if all parts that need the signal use the same temperature.
        """
        needs: dict[str, float | None] = {}
        for _, _, part in self.parts:
            for name, temperature in part.needs(setting).items():
                needs[name] = temperature if needs.get(name, temperature) == temperature else None
        return needs

    def reads(self, setting: Setting) -> Sequence[str]:
        """Merge the names that the parts read, each name once."""
        return list(dict.fromkeys(name for _, _, part in self.parts for name in part.reads(setting)))

    def architecture(self, setting: Setting) -> Architecture:
        """Return the network that a part trains in place of the preset's network, or else the preset's network.

        Raises `ConfigError` if parts need different networks.
        """
        wanted = {
            architecture.name: architecture for _, _, part in self.parts if (architecture := part.architecture(setting))
        }
        others = sorted(wanted.keys() - {setting.student.architecture})
        if len(others) > 1:
            raise ConfigError(f"objective: the parts train different networks: {' and '.join(others)}")
        return wanted[others[0]] if others else setting.student.wanted

    def start(self, network: Network, setting: Setting) -> None:
        """Copy the teacher's weights that each part reuses."""
        for _, _, part in self.parts:
            part.start(network, setting)

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Merge the definitions of all parts."""
        return {name: number for _, _, part in self.parts for name, number in part.definitions(setting).items()}

    def adapter(self, setting: Setting) -> nn.Module | None:
        """Build the adapters of all parts that have one, or return None if no part has an adapter."""
        adapters = {name: part.adapter(setting) for name, _, part in self.parts}
        present = {name: adapter for name, adapter in adapters.items() if adapter is not None}
        return Adapters(present) if present else None

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms of all parts, under the names that the parts give them."""
        terms: dict[str, Tensor] = {}
        for _, _, part in self.parts:
            terms = part.terms(student, labels, teacher) | terms
        return terms

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the weights of every part's terms, each multiplied by the part's factor."""
        weights: dict[str, float] = {}
        for _, factor, part in self.parts:
            weights = {term: factor * weight for term, weight in part.weights(epoch).items()} | weights
        return weights

    def _check(self, aligned: Alignment, terms: Mapping[str, str]) -> None:
        for term in [*aligned.kept, *(aligned.against or ())]:
            if term not in terms:
                raise ConfigError(f"alignment: {unknown('term', term, terms)}")
        kept, against, _ = self._resolved(aligned).split(terms)
        if not kept or not against:
            lacking = "against" if kept else "kept"
            raise ConfigError(f"alignment.{lacking}: expected at least one of {', '.join(terms)}, got none")

    def _resolved(self, aligned: Alignment) -> Alignment:
        """Return `aligned`; if its `against` is None, replace it by all terms outside `kept` that compare logits."""
        if aligned.against is not None:
            return aligned
        terms = [term for _, _, part in self.parts if part.of_logits for term in part.weights(0)]
        return replace(aligned, against=tuple(term for term in dict.fromkeys(terms) if term not in aligned.kept))


def _effect(parts: Sequence[Part]) -> dict[str, tuple[float, ...]]:
    """Return, for each term that counts, its weights in the first and in a late epoch, and how it smooths labels."""
    effect: dict[str, tuple[float, ...]] = {}
    for _, factor, part in parts:
        for term, weight in part.weights(0).items():
            weights = factor * weight, factor * part.weights(LATE)[term]
            effect.setdefault(term, (*weights, part.label_smoothing if term == CE else 0.0))
    return {term: numbers for term, numbers in effect.items() if any(numbers[:2])}
