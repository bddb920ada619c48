"""The objective `dhkd`: cross-entropy on the task head, a logit-level loss on an auxiliary head, and aligned gradients.

Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
KDD 2025, arXiv 2411.08937. The auxiliary head is built in `stages/models/`, the alignment in `gradients.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhkd.data.errors import ConfigError
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import AuxiliaryHead, StudentOutputs
from dhkd.stages.train.gradients import Alignment
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.binary_kl import LOGIT_LOSSES, LogitLoss
from dhkd.stages.train.objectives.contract import Objective, Setting, require_temperature, require_weights
from torch import Tensor


@dataclass(frozen=True)
class DHKD(Objective):
    """ce_weight · CE (task head) + alpha · the logit-level loss named by `loss` (auxiliary head).

    If `align` is true, the gradient of the logit-level loss is aligned so that it doesn't oppose the gradient of CE.
    The defaults are the published settings for CIFAR-100; ce_weight is the paper's γ. If `alpha_epochs` is given, alpha
    is used only in the first `alpha_epochs` epochs and is 0 afterwards; if it is None, alpha is used in every epoch.
    The published ImageNet run has alpha_epochs 49 (its alpha is 0 from epoch 50 on, counted from 1), alpha 0.1, a
    linear head and no alignment. With `standardize`, the
    logits of the auxiliary head and of the teacher are standardised first (`losses.standardized`).
    """

    alpha: float = 1.0
    temperature: float = 2.0
    ce_weight: float = 1.0
    head: AuxiliaryHead = "nonlinear"
    align: bool = True
    loss: LogitLoss = "binary-kl-norm"
    alpha_epochs: int | None = None
    standardize: bool = False

    def __post_init__(self) -> None:
        require_temperature("dhkd", self.temperature)
        require_weights("dhkd", alpha=self.alpha, ce_weight=self.ce_weight)
        if self.alpha_epochs is not None and self.alpha_epochs < 0:
            raise ConfigError(f"objective 'dhkd': alpha_epochs: expected an epoch >= 0, got {self.alpha_epochs!r}")

    @property
    def auxiliary(self) -> AuxiliaryHead:
        """The kind of the auxiliary head."""
        return self.head

    @property
    def alignment(self) -> Alignment | None:
        """The alignment that protects cross-entropy from the logit-level loss, or None if `align` is false."""
        return Alignment(kept=("ce",), against=(self.loss,)) if self.align else None

    @property
    def needs_labels(self) -> Sequence[str]:
        """The term `ce`, because the task head learns from nothing else."""
        return self.of_labels

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's raw logits."""
        return {"logits": None}

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 with `standardize`; the first definition divided by the population standard deviation."""
        return {"dhkd": 2} if self.standardize else {}

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce` on the task head and the logit-level loss, named by `loss`, on the auxiliary head."""
        prepared = losses.standardized if self.standardize else losses.widened
        loss = LOGIT_LOSSES[self.loss]
        return {
            "ce": losses.task_loss(student.task, labels),
            self.loss: loss(prepared(student.distill), prepared(teacher["logits"]), self.temperature),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return alpha, or 0 from `alpha_epochs` on, and the constant weight of cross-entropy."""
        ended = self.alpha_epochs is not None and epoch >= self.alpha_epochs
        return {"ce": self.ce_weight, self.loss: 0.0 if ended else self.alpha}
