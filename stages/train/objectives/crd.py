"""The objective `crd`: the two networks' embeddings of the same sample should match.

Each embedding is contrasted with the other network's embeddings of negatives, i.e. samples of other classes. Tian,
Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. A memory holds both networks'
embeddings of the whole training set; the negatives' embeddings are taken from this memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from dhkd.data.draws.philox import Domain, raw_rows
from dhkd.data.errors import ConfigError
from dhkd.data.stream.batches import Batch
from dhkd.data.stream.labels import Labels
from dhkd.stages.models.student import StudentOutputs
from dhkd.stages.processes import joined
from dhkd.stages.train.objectives import losses
from dhkd.stages.train.objectives.contract import (
    Objective,
    Setting,
    require_at_least,
    require_temperature,
    require_weights,
)
from torch import Tensor, nn

Row = np.ndarray[tuple[int], np.dtype[np.int64]]

EMBEDDING = "embedding"
STUDENT, TEACHER = "crd-student", "crd-teacher"


def contrastive_loss(ratio_BM: Tensor) -> Tensor:
    """Compute the loss of noise-contrastive estimation: column 0 is the positive, the M other columns are noise.

    The loss is −1/N · Σ_i [ log h(r_i0) + Σ_j log(1 − h(r_ij)) ] with h(r) = r / (r + 1), where i runs over the N rows
    and j over the columns 1 to M. Each entry r_ij > 0 of `ratio_BM` is the likelihood of the sample in column j under
    the model, divided by the sample's likelihood as noise. `Contrast` computes r_ij as the sample's scaled score,
    divided by M / (number of training samples). Tian et al., equations 9 to 11.
    """
    ratio_BM = losses.widened(ratio_BM)
    # log h(r) is computed from log r. Computed from 1/r, whose gradient is 1/r², it would overflow for small ratios.
    positive_B = F.logsigmoid(ratio_BM[:, 0].log())
    noise_B = -torch.log1p(ratio_BM[:, 1:]).sum(dim=1)
    return -(positive_B + noise_B).mean()


class Negatives:
    """A sampler of negatives: samples of other classes, drawn uniformly.

    Without `replacement`, the negatives of a row are different samples; if fewer than `number` are of other classes,
    they are drawn with replacement all the same, as in the authors' code. The draws (random integers) for a sample
    depend only on (seed, epoch, index).
    """

    def __init__(self, labels_N: Tensor, number: int, seed: int, *, replacement: bool = False) -> None:
        labels = labels_N.cpu().numpy()
        self._labels, self._number, self._seed, self._replacement = labels, number, seed, replacement
        self._by_class = np.argsort(labels, kind="stable")
        self._ends = np.cumsum(np.bincount(labels))
        if self._ends[0] == len(labels) or len(np.unique(labels)) < 2:
            raise ConfigError("objective 'crd': expected samples of at least two classes, to tell them apart")

    def draw(self, epoch: int, index_B: Tensor) -> Tensor:
        """Draw the indices of negatives, int64 (B, number): for each row, samples of classes other than the row's."""
        rows = [self._row(epoch, index) for index in index_B.tolist()]
        return torch.from_numpy(np.stack(rows))

    def _row(self, epoch: int, index: int) -> Row:
        label = self._labels[index]
        stop = self._ends[label]
        start = self._ends[label - 1] if label else 0
        others = len(self._labels) - (stop - start)
        if self._replacement or self._number > others:
            position = self._positions(epoch, index, others, self._number)
        else:
            position = self._different_positions(epoch, index, others)
        # Positions from the row's class on are shifted by the size of that class.
        row: Row = self._by_class[np.where(position < start, position, position + (stop - start))]
        return row

    def _positions(self, plane: int, index: int, others: int, number: int) -> Row:
        """Draw positions among the samples of the other classes, which are sorted by class."""
        raw = raw_rows(self._seed, Domain.NEGATIVES, plane, index, index + 1, width=-(-number // 2))
        # Each raw 64-bit integer gives two 32-bit draws, which are scaled to positions.
        draws = raw.astype("<u8").view("<u4")[0, :number].astype(np.uint64)
        positions: Row = ((draws * np.uint64(others)) >> np.uint64(32)).astype(np.int64)
        return positions

    def _different_positions(self, epoch: int, index: int, others: int) -> Row:
        """Draw positions and skip those that were drawn before, until there are enough."""
        # A tenth more than the number of draws that is expected to give as many different positions.
        number = self._number
        tries = int(1.1 * others * math.log((others + 1) / (others + 1 - number))) + 16
        plane = epoch
        while True:
            position = self._positions(plane, index, others, tries)
            order = np.arange(len(position))
            first = np.empty(others, dtype=np.int64)
            first[position[::-1]] = order[::-1]  # where each position was drawn first: the last assignment remains
            different: Row = position[first[position] == order][:number]
            if len(different) == number:
                return different
            # Each attempt has a plane of its own, so that no draw serves two rows.
            plane, tries = plane + (1 << 32), 2 * tries


class Contrast(nn.Module):
    """The projections of both networks, and a memory of every sample's projected embeddings.

    The memory is the same in every process, because each process stores the rows of all processes.
    """

    same_in_every_process = ("memory_student", "memory_teacher")

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        dim: int,
        negatives: Negatives,
        num_samples: int,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.student = nn.Linear(student_dim, dim)
        self.teacher = nn.Linear(teacher_dim, dim)
        self._negatives, self._temperature, self._momentum = negatives, temperature, momentum
        bound = (3 / dim) ** 0.5
        for name in self.same_in_every_process:
            self.register_buffer(name, torch.empty(num_samples, dim).uniform_(-bound, bound))
        # A score is exp(cosine / temperature). Scores are divided by these scales, so that the results are roughly
        # probabilities. The first batch sets the scales; 0 means that a scale is not yet set.
        self.register_buffer("scale_student", torch.zeros(()))
        self.register_buffer("scale_teacher", torch.zeros(()))

    def forward(self, features: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compare each network's embeddings with the remembered embeddings of the other network.

        Return each network's ratios for `contrastive_loss`, (B, 1 + negatives), as `crd-student` and `crd-teacher`.
        """
        batch.labels.require_one_class("crd")  # negatives are samples of classes other than the row's class
        device = self.student.weight.device
        index_B = batch.index_B.to(device)
        chosen_BM = torch.cat([index_B[:, None], self._negatives.draw(batch.epoch, batch.index_B).to(device)], dim=1)
        with torch.autocast(device.type, enabled=False):  # exp(cosine / temperature) needs float32
            student_BD = F.normalize(self.student(features[EMBEDDING].float()), dim=1)
            teacher_BD = F.normalize(self.teacher(batch.teacher[EMBEDDING].float()), dim=1)
            ratios = {
                STUDENT: self._ratios(student_BD, "memory_teacher", "scale_student", chosen_BM),
                TEACHER: self._ratios(teacher_BD, "memory_student", "scale_teacher", chosen_BM),
            }
        if self.training:
            index_of_all = joined(index_B)
            self._remember("memory_student", index_of_all, joined(student_BD.detach()))
            self._remember("memory_teacher", index_of_all, joined(teacher_BD.detach()))
        return ratios

    def _ratios(self, embedding_BD: Tensor, memory: str, scale: str, chosen_BM: Tensor) -> Tensor:
        # All products are computed first, then the chosen ones are gathered. The memory is cloned because it changes
        # before the backward pass. Copying the chosen rows for each row of the batch would take much more memory.
        cosine_BN = embedding_BD @ self.get_buffer(memory).clone().T
        score_BM = torch.exp(cosine_BN.gather(1, chosen_BM) / self._temperature)
        factor = self.get_buffer(scale)
        if self.training and factor == 0:
            factor.copy_(joined(score_BM.detach().mean(dim=1)).mean() * cosine_BN.shape[1])
        noise = (chosen_BM.shape[1] - 1) / cosine_BN.shape[1]
        return score_BM / (factor * noise)

    def _remember(self, memory: str, index_B: Tensor, embedding_BD: Tensor) -> None:
        remembered = self.get_buffer(memory)
        mixed = self._momentum * remembered[index_B] + (1 - self._momentum) * embedding_BD
        remembered[index_B] = F.normalize(mixed, dim=1)


@dataclass(frozen=True)
class CRD(Objective):
    """ce_weight · CE + crd_weight · (the student's contrastive loss + the teacher's contrastive loss).

    Embeddings are projected to `dim` values. For each row of a batch, `negatives` samples of other classes are drawn,
    without replacement as in the published CIFAR-100 runs, or with it (`replacement`) as in the ImageNet runs. Per row
    and network, this takes num_samples cosines and 1 + negatives scores; the memory of embeddings takes num_samples ·
    dim · 2 floats.
    """

    ce_weight: float = 1.0
    crd_weight: float = 0.8
    dim: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    replacement: bool = False

    of_logits = False
    of_labels = ("ce", "student-contrast", "teacher-contrast")
    of_one_class = ("crd",)  # negatives are of other classes than the row's, and the memory is by sample
    capturable = False  # negatives are drawn on the host
    remembers_rows = True

    def __post_init__(self) -> None:
        require_temperature("crd", self.temperature)
        require_weights("crd", ce_weight=self.ce_weight, crd_weight=self.crd_weight)
        require_at_least("crd", 1, dim=self.dim, negatives=self.negatives)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"objective 'crd': momentum: expected at least 0 and below 1, got {self.momentum!r}")

    @property
    def needs_labels(self) -> Sequence[str]:
        """All terms, because negatives are samples of other classes."""
        return self.of_labels

    def needs(self, setting: Setting) -> Mapping[str, float | None]:
        """Request the teacher's pooled feature."""
        return {EMBEDDING: None}

    def reads(self, setting: Setting) -> Sequence[str]:
        """Request the student's pooled feature."""
        return [EMBEDDING]

    def definitions(self, setting: Setting) -> Mapping[str, int]:
        """Return 2 without `replacement`; the first definition drew all negatives with replacement."""
        return {} if self.replacement else {"crd": 2}

    def adapter(self, setting: Setting) -> nn.Module:
        """Build the projections and the memory."""
        assert setting.labels_N is not None
        negatives = Negatives(setting.labels_N, self.negatives, setting.seed, replacement=self.replacement)
        widths = setting.student.embedding_dim, setting.teacher.embedding_dim
        return Contrast(*widths, self.dim, negatives, len(setting.labels_N), self.temperature, self.momentum)

    def terms(self, student: StudentOutputs, labels: Labels, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms `ce`, `student-contrast` and `teacher-contrast`."""
        return {
            "ce": losses.cross_entropy(student.task, labels),
            "student-contrast": contrastive_loss(student.features[STUDENT]),
            "teacher-contrast": contrastive_loss(student.features[TEACHER]),
        }

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the same weights in every epoch."""
        return {"ce": self.ce_weight, "student-contrast": self.crd_weight, "teacher-contrast": self.crd_weight}
